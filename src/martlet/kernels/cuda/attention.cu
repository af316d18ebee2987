// Attention of one new token a sequence over a static cache: decoding.
//
// A block takes one key/value head of one sequence and a stretch of its keys; it computes all the
// query heads that share the head. Where a sequence is cut into several stretches, the block that
// finishes last joins them, in the order of the stretches, so that results do not depend on timing.
// Self attention first writes the new key and value behind the others (turned to its position where
// positions are rotary). Lengths are read on the device: one captured launch serves every step.
#include "common.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 64
#endif
// Query heads for each key/value head.
#ifndef GROUP
#define GROUP 1
#endif

#define WARPS 8
#define THREADS (WARPS * 32)
#define VECTORS ((HEAD_DIM + 7) / 8)  // of 8 elements in a head
#define LANES (VECTORS <= 4 ? 4 : VECTORS <= 8 ? 8 : VECTORS <= 16 ? 16 : 32)  // for one key
#define KEYS (32 / LANES)                                                     // a warp at a time
#define AHEAD 4  // keys of a lane in flight

struct Arguments {
    const act_t* q;      // (slots, heads * HEAD_DIM), rows q_stride apart
    const act_t* k;      // new keys and values, nullptr for cross attention
    const act_t* v;
    act_t* keys;         // (slots, kv_heads, capacity, HEAD_DIM)
    act_t* values;
    const int* lengths;  // (slots,) keys in the cache: before the new one, or of the encoder
    const float* bias;       // (heads, num_distances), by min(distance, num_distances - 1); or nullptr
    const float* frequency;  // (HEAD_DIM / 2,) of rotary positions; or nullptr
    act_t* y;            // (slots, heads * HEAD_DIM)
    float* partial;      // (slots, kv_heads, stretches, GROUP, HEAD_DIM + 2)
    int* finished;       // (slots, kv_heads), zero before and after
    int q_stride;
    int k_stride;
    int v_stride;
    int capacity;        // tokens that fit into a slot
    int stretch;         // keys of a block
    int num_distances;
    float scale;
};

__device__ __forceinline__ void store8(act_t* to, const float (&v)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] = from_float(v[i]);
}

// One component of a head turned to a position: p and p + HEAD_DIM / 2 are a complex number.
__device__ __forceinline__ float turned(const act_t* head, int d, int position,
                                        const float* frequency) {
    const float own = to_float(head[d]);
    if (!frequency) return own;
    const int half = HEAD_DIM / 2, pair = d < half ? d : d - half;
    const float other = to_float(head[d < half ? d + half : pair]);
    float sine, cosine;
    sincosf((float)position * frequency[pair], &sine, &cosine);
    return d < half ? own * cosine - other * sine : own * cosine + other * sine;
}

__device__ __forceinline__ void append(const Arguments& a, int slot, int head, int position) {
    const int num_kv_heads = gridDim.x;
    const size_t at = (((size_t)slot * num_kv_heads + head) * a.capacity + position) * HEAD_DIM;
    for (int d = threadIdx.x; d < 2 * HEAD_DIM; d += THREADS) {
        const int component = d < HEAD_DIM ? d : d - HEAD_DIM;
        if (d < HEAD_DIM) {
            const act_t* k = a.k + (size_t)slot * a.k_stride + head * HEAD_DIM;
            a.keys[at + component] = from_float(turned(k, component, position, a.frequency));
        } else {
            a.values[at + component] = a.v[(size_t)slot * a.v_stride + head * HEAD_DIM + component];
        }
    }
}

// scores[g][key - begin] = q_g . key * scale + bias
__device__ __forceinline__ void score(const Arguments& a, const float* q, const act_t* keys,
                                      int head, int begin, int end, int position, float* scores) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int part = lane % LANES, first = begin + warp * KEYS + lane / LANES;
    const bool is_used = part < VECTORS;
    float mine[GROUP][8];
#pragma unroll
    for (int g = 0; g < GROUP; g++)
#pragma unroll
        for (int i = 0; i < 8; i++) mine[g][i] = is_used ? q[g * HEAD_DIM + part * 8 + i] : 0.0f;
    // Whole warps stay together for the exchange below.
    for (int base = first; base - lane / LANES < end; base += WARPS * KEYS * AHEAD) {
        float key[AHEAD][8];
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const int at = base + u * WARPS * KEYS;
            if (at < end && is_used)
                load8(keys + (size_t)at * HEAD_DIM + part * 8, key[u]);
            else
#pragma unroll
                for (int i = 0; i < 8; i++) key[u][i] = 0.0f;
        }
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const int at = base + u * WARPS * KEYS;
#pragma unroll
            for (int g = 0; g < GROUP; g++) {
                float sum = 0.0f;
#pragma unroll
                for (int i = 0; i < 8; i++) sum = fmaf(mine[g][i], key[u][i], sum);
#pragma unroll
                for (int distance = LANES / 2; distance; distance >>= 1)
                    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
                if (part == 0 && at < end) {
                    sum *= a.scale;
                    if (a.bias)
                        sum += a.bias[(head * GROUP + g) * a.num_distances +
                                      min(position - at, a.num_distances - 1)];
                    scores[g * a.stretch + at - begin] = sum;
                }
            }
        }
    }
}

// Scores to exp(score - largest); the largest and the sum of each head.
__device__ __forceinline__ void exponentials(const Arguments& a, int count, float* scores,
                                             float* largest, float* sum) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    for (int g = warp; g < GROUP; g += WARPS) {
        float* row = scores + g * a.stretch;
        float top = -INFINITY, all = 0.0f;
        for (int i = lane; i < count; i += 32) top = fmaxf(top, row[i]);
        top = warp_max(top);
        for (int i = lane; i < count; i += 32) {
            const float value = expf(row[i] - top);
            row[i] = value;
            all += value;
        }
        all = warp_sum(all);
        if (lane == 0) largest[g] = top, sum[g] = all;
    }
}

// mixed[warp][g][d] = sum over this warp's keys of weight * value
__device__ __forceinline__ void mix(const Arguments& a, const act_t* values, int begin, int end,
                                    const float* weights, float* mixed) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int part = lane % LANES, first = begin + warp * KEYS + lane / LANES;
    const bool is_used = part < VECTORS;
    float sum[GROUP][8];
#pragma unroll
    for (int g = 0; g < GROUP; g++)
#pragma unroll
        for (int i = 0; i < 8; i++) sum[g][i] = 0.0f;
    if (is_used)
        for (int base = first; base < end; base += WARPS * KEYS * AHEAD) {
            float value[AHEAD][8];
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                const int at = base + u * WARPS * KEYS;
                if (at < end) load8(values + (size_t)at * HEAD_DIM + part * 8, value[u]);
            }
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                const int at = base + u * WARPS * KEYS;
                if (at < end)
#pragma unroll
                    for (int g = 0; g < GROUP; g++) {
                        const float weight = weights[g * a.stretch + at - begin];
#pragma unroll
                        for (int i = 0; i < 8; i++) sum[g][i] = fmaf(weight, value[u][i], sum[g][i]);
                    }
            }
        }
#pragma unroll
    for (int g = 0; g < GROUP; g++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
#pragma unroll
            for (int distance = LANES; distance < 32; distance <<= 1)
                sum[g][i] += __shfl_xor_sync(0xffffffffu, sum[g][i], distance);
            if (lane < VECTORS) mixed[(warp * GROUP + g) * HEAD_DIM + lane * 8 + i] = sum[g][i];
        }
}

// The stretches of a sequence into its result; every thread of the block that finished last.
__device__ __forceinline__ void join(const Arguments& a, const float* partial, act_t* y) {
    const int stretches = gridDim.z;
    for (int index = threadIdx.x; index < GROUP * HEAD_DIM; index += THREADS) {
        const int g = index / HEAD_DIM, d = index % HEAD_DIM;
        const float* of_head = partial + g * (HEAD_DIM + 2);
        const int step = GROUP * (HEAD_DIM + 2);
        float largest = -INFINITY, sum = 0.0f, value = 0.0f;
        for (int s = 0; s < stretches; s++)
            largest = fmaxf(largest, __ldcg(of_head + s * step + HEAD_DIM));
        for (int s = 0; s < stretches; s++) {
            const float factor = expf(__ldcg(of_head + s * step + HEAD_DIM) - largest);
            sum += factor * __ldcg(of_head + s * step + HEAD_DIM + 1);
            value += factor * __ldcg(of_head + s * step + d);
        }
        y[index] = from_float(sum > 0.0f ? value / sum : 0.0f);
    }
}

// Grid: (kv_heads, slots, stretches). Dynamic shared memory: GROUP * stretch floats.
extern "C" __global__ void __launch_bounds__(THREADS) attention(const GRID_CONSTANT Arguments a) {
    extern __shared__ float scores[];
    __shared__ float q[GROUP * HEAD_DIM], mixed[WARPS * GROUP * HEAD_DIM];
    __shared__ float largest[GROUP], sum[GROUP];
    __shared__ bool is_last;
    const int head = blockIdx.x, slot = blockIdx.y, num_kv_heads = gridDim.x;
    allow_next_kernel();
    wait_for_inputs();

    const int position = a.lengths[slot];
    // A sequence that has ended stays where it is; its slot may be full.
    const int num_keys = min(a.k ? position + 1 : position, a.capacity);
    const int begin = blockIdx.z * a.stretch, end = min(begin + a.stretch, num_keys);
    const size_t cache = ((size_t)slot * num_kv_heads + head) * a.capacity * HEAD_DIM;
    for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += THREADS)
        q[i] = turned(a.q + (size_t)slot * a.q_stride + (head * GROUP + i / HEAD_DIM) * HEAD_DIM,
                      i % HEAD_DIM, position, a.frequency);
    if (a.k && position >= begin && position < end) append(a, slot, head, position);
    __syncthreads();
    score(a, q, a.keys + cache, head, begin, end, position, scores);
    __syncthreads();
    exponentials(a, end - begin, scores, largest, sum);
    __syncthreads();
    mix(a, a.values + cache, begin, end, scores, mixed);
    __syncthreads();

    act_t* y = a.y + ((size_t)slot * num_kv_heads + head) * GROUP * HEAD_DIM;
    const int pair = slot * num_kv_heads + head, stretches = gridDim.z;
    float* partial = a.partial + (size_t)pair * stretches * GROUP * (HEAD_DIM + 2);
    for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += THREADS) {
        const int g = i / HEAD_DIM, d = i % HEAD_DIM;
        float value = 0.0f;
        for (int w = 0; w < WARPS; w++) value += mixed[w * GROUP * HEAD_DIM + i];
        if (stretches == 1) {
            y[i] = from_float(sum[g] > 0.0f ? value / sum[g] : 0.0f);
            continue;
        }
        float* own = partial + (blockIdx.z * GROUP + g) * (HEAD_DIM + 2);
        own[d] = value;
        if (d == 0) own[HEAD_DIM] = largest[g], own[HEAD_DIM + 1] = sum[g];
    }
    if (stretches == 1) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(a.finished + pair, 1) == stretches - 1;
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    join(a, partial, y);
    if (threadIdx.x == 0) a.finished[pair] = 0;
}
