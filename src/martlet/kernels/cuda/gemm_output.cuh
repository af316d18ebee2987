// What the two matrix products (gemm.cu, gemm_hopper.cu) share: their arguments, the reading of the
// weights, and the way from accumulators to activations.
#pragma once

#include "activations.cuh"
#include "left_operand.cuh"

#ifndef GATED
#define GATED 0
#endif
#ifndef TOKENS
#define TOKENS 128 // that a block computes
#endif

struct Product {
    const uint4* tiles[2]; // the second one is that of a gated product
    const u8* groups[2];   // tables of their groups, if there are any
    const float* scale[2]; // aligned to 16 bytes, as many as there are rows in tiles
    const uint4* x;        // by pack_rows
    const float* token_scale;
    const act_t* bias;
    const act_t* residual;
    void* y;
    float* partial; // (splits, padded tokens, padded rows), where splits > 1
    int num_tiles;
    int chunks;   // of CHUNK_INPUTS, in the weights
    int x_chunks; // of 32 inputs in a part of x, even
    int parts;
    int tokens;
    int padded_tokens;
    int rows;
    int y_stride;
    int residual_stride;
    int padded_rows;
    int activation; // 0 none, 1 gelu by tanh, 2 gelu, 3 relu, 4 silu
    int is_y_float;
    int is_aligned; // rows of y and residual begin at multiples of four elements
};

// Writes rows row .. row + 3 of a token, from their sums; `up` is read by gated products only.
__device__ __forceinline__ void store4(const Product& p, int token, int row, float4 sums, float4 up) {
    if (token >= p.tokens || row >= p.rows) return;
    const float by = p.token_scale[token];
    const float4 scale = *(const float4*)(p.scale[0] + row);
    float v[4] = {sums.x * scale.x, sums.y * scale.y, sums.z * scale.z, sums.w * scale.w};
#if GATED
    const float4 scale1 = *(const float4*)(p.scale[1] + row);
    const float u[4] = {up.x * scale1.x, up.y * scale1.y, up.z * scale1.z, up.w * scale1.w};
#endif
    const int count = min(4, p.rows - row);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v[i] *= by;
        if (p.bias && i < count) v[i] += to_float(p.bias[row + i]);
        v[i] = activate(v[i], p.activation);
#if GATED
        v[i] *= u[i] * by;
#endif
        if (p.residual && i < count)
            v[i] += to_float(p.residual[(size_t)token * p.residual_stride + row + i]);
    }
    const size_t at = (size_t)token * p.y_stride + row;
    if (ACTIVATION_TYPE == 2 || p.is_y_float) {
        float* y = (float*)p.y + at;
        if (p.is_aligned && count == 4) *(float4*)y = make_float4(v[0], v[1], v[2], v[3]);
        else
            for (int i = 0; i < 4; i++)
                if (i < count) y[i] = v[i];
    } else {
        act_t* y = (act_t*)p.y + at;
#if ACTIVATION_TYPE != 2
        if (p.is_aligned && count == 4) {
            *(uint2*)y = make_uint2(from_float(v[0]) | (u32)from_float(v[1]) << 16,
                                    from_float(v[2]) | (u32)from_float(v[3]) << 16);
            return;
        }
#endif
        for (int i = 0; i < 4; i++)
            if (i < count) y[i] = from_float(v[i]);
    }
}

// Sums of `count` tokens, staged as floats [token][row], to y, or as they are to the partial sums.
// Staged tokens 0 .. half - 1 are first_token and the following, the others jump .. more.
template <int rows, int threads>
__device__ __forceinline__ void store_staged(const Product& p, const float* staged, int count,
                                             int first_token, int half, int jump, int first_row) {
    const int width = (GATED ? rows / 2 : rows) / 4;
    for (int i = threadIdx.x; i < count * width; i += threads) {
        const int local = i / width, row = i % width * 4;
        const int token = first_token + (local < half ? local : local - half + jump);
        const float* from = staged + local * (rows + 4) + row;
        const float4 sums = *(const float4*)from;
        if (gridDim.z > 1) {
            const size_t line = (size_t)blockIdx.z * p.padded_tokens + token;
            *(float4*)(p.partial + line * p.padded_rows + first_row + row) = sums;
        } else {
            store4(p, token, first_row + row, sums, *(const float4*)(from + (GATED ? rows / 2 : 0)));
        }
    }
}

// Adds up what the parts of the inputs gave, always in the same order.
// Grid: (enough blocks of 256 threads for a thread per four rows, tokens).
__device__ __forceinline__ void finish(const Product& p, int splits) {
    const int row = (blockIdx.x * 256 + threadIdx.x) * 4, token = blockIdx.y;
    if (row >= p.rows) return;
    float4 sums = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int split = 0; split < splits; split++) {
        const size_t line = (size_t)split * p.padded_tokens + token;
        const float4 more = *(const float4*)(p.partial + line * p.padded_rows + row);
        sums.x += more.x, sums.y += more.y, sums.z += more.z, sums.w += more.w;
    }
    store4(p, token, row, sums, sums);
}
