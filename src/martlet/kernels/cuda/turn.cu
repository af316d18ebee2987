// Heads of queries or keys of a pass: with HEAD_NORM a root mean square norm of each, then a turn to
// their positions. A group of lanes takes a head of a token.
//
// Rounded where ops.norm and ops.rotary round. Defines: ACTIVATION_TYPE, HEAD_DIM, HEAD_NORM.
#include "activations.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 64
#endif
#ifndef HEAD_NORM
#define HEAD_NORM 0
#endif
#define THREADS 256
#define LANES (HEAD_DIM <= 32 ? 4 : HEAD_DIM <= 64 ? 8 : HEAD_DIM <= 128 ? 16 : 32)  // 8 components each

struct Arguments {
    const act_t* x;       // (batch, tokens, heads, HEAD_DIM), vectors without gaps
    const act_t* norm;    // (HEAD_DIM,) with HEAD_NORM
    const float* cosine;  // (batch or 1, tokens, num_pairs)
    const float* sine;
    act_t* y;             // without gaps
    int batch;
    int tokens;
    int heads;
    int batch_stride;     // of x
    int token_stride;
    int table_stride;     // between the angles of neighbouring texts, 0: they share them
    int num_pairs;        // a multiple of 8
    int is_interleaved;
    float eps;
    float offset;
};

// Eight components of a head, normalised.
__device__ __forceinline__ void load_normal(const Arguments& a, const act_t* head, int at, float rstd,
                                            float (&v)[8]) {
    load8(head + at, v);
#if HEAD_NORM
    float weight[8];
    load8(a.norm + at, weight);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        v[i] *= rstd;
        if (a.offset == 0.0f) v[i] = to_float(from_float(v[i]));
        v[i] = to_float(from_float(v[i] * (a.offset + weight[i])));
    }
#endif
}

// Grid: THREADS / LANES heads a block.
extern "C" __global__ void __launch_bounds__(THREADS) turn_heads(const GRID_CONSTANT Arguments a) {
    const int item = blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    const int at = threadIdx.x % LANES * 8;
    if (item >= a.batch * a.tokens * a.heads) return;
    const int head = item % a.heads, token = item / a.heads % a.tokens;
    const int text = item / a.heads / a.tokens;
    const act_t* x = a.x + (size_t)text * a.batch_stride + (size_t)token * a.token_stride +
                     head * HEAD_DIM;
    float rstd = 1.0f;
#if HEAD_NORM
    float square = 0.0f;
    if (at < HEAD_DIM) {
        float v[8];
        load8(x + at, v);
#pragma unroll
        for (int i = 0; i < 8; i++) square = fmaf(v[i], v[i], square);
    }
    rstd = rsqrtf(sum_of_lanes<LANES>(square) / HEAD_DIM + a.eps);
#endif
    if (at >= HEAD_DIM) return;
    float v[8];
    load_normal(a, x, at, rstd, v);
    if (at < 2 * a.num_pairs) {
        const size_t angles = (size_t)text * a.table_stride + (size_t)token * a.num_pairs;
        const float* cosine = a.cosine + angles;
        const float* sine = a.sine + angles;
        if (a.is_interleaved) {
#pragma unroll
            for (int i = 0; i < 8; i += 2) {
                const float c = cosine[(at + i) / 2], s = sine[(at + i) / 2], even = v[i];
                v[i] = even * c - v[i + 1] * s;
                v[i + 1] = v[i + 1] * c + even * s;
            }
        } else {
            const bool is_low = at < a.num_pairs;
            const int pair = is_low ? at : at - a.num_pairs;
            float other[8];
            load_normal(a, x, is_low ? at + a.num_pairs : pair, rstd, other);
#pragma unroll
            for (int i = 0; i < 8; i++)
                v[i] = v[i] * cosine[pair + i] + (is_low ? -other[i] : other[i]) * sine[pair + i];
        }
    }
    store8(a.y + (size_t)item * HEAD_DIM + at, v);
}
