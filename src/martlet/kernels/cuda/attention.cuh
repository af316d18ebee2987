// What attention of a decode step shares, whatever computes its products: arguments, which keys a block
// takes, heads on their way, and how warps and blocks join what they have gathered.
//
// A block takes one key/value head of one sequence and a stretch of its keys; it computes the query
// heads that share the head, or GROUP of them where those are too many for the registers of a lane
// (the last block of such a head computes what it has too few of twice, and writes it once).
// Where the keys of a sequence are in several stretches, the block that finishes last joins them, in
// the order of the stretches, so that results do not depend on timing. Self attention first writes
// the new key and value behind the others (turned to its position where positions are rotary).
// Lengths are read on the device: one captured launch serves every step.
//
// Defines: HEAD_DIM; GROUP, query heads of a block; HEAD_NORM, a root mean square norm of each head
// comes before the turn; SOFTCAP, scores are bent towards a limit; CACHE_INT8, see cache_vectors.cuh.
#pragma once
#include "cache_vectors.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 64
#endif
#ifndef GROUP
#define GROUP 1
#endif
#ifndef HEAD_NORM
#define HEAD_NORM 0
#endif
#ifndef SOFTCAP
#define SOFTCAP 0
#endif

#ifndef WARPS
#define WARPS 8
#endif
#define THREADS (WARPS * 32)
#define MAX_STRETCHES 64  // of a sequence, a block each
#define VECTORS ((HEAD_DIM + 7) / 8)  // of 8 elements in a head
#define LANES (VECTORS <= 4 ? 4 : VECTORS <= 8 ? 8 : VECTORS <= 16 ? 16 : 32)  // for one key
#define KEYS (32 / LANES)                                                     // a warp at a time
struct Arguments {
    const act_t* q;      // (slots, heads * HEAD_DIM), rows q_stride apart, whole vectors like k and v
    const act_t* k;      // new keys and values, nullptr for cross attention
    const act_t* v;
    cache_t* keys;       // (slots, kv_heads, capacity, HEAD_DIM)
    cache_t* values;
    u16* key_scales;     // bfloat16 (slots, kv_heads, capacity) of int8; else nullptr
    u16* value_scales;
    // (slots,) keys in the cache: before the new one, or of the encoder; -1: the slot is idle
    const int* lengths;
    const float* bias;       // (heads, num_distances), by min(distance, num_distances - 1); or nullptr
    const float* frequency;  // (num_pairs,) of rotary positions; or nullptr
    const act_t* q_norm;     // (HEAD_DIM,) with HEAD_NORM
    const act_t* k_norm;
    act_t* y;            // (slots, heads * HEAD_DIM)
    float* partial;      // (slots, gridDim.x, stretches, GROUP, HEAD_DIM + 2)
    int* finished;       // (slots, gridDim.x), zero before and after
    int q_stride;
    int k_stride;
    int v_stride;
    int capacity;        // tokens that fit into a slot
    int least_stretch;   // keys that a block takes at least
    int num_distances;
    int num_heads;       // of queries
    int splits;          // blocks that share a key/value head
    int window;          // keys that a query sees at most, its own included
    int num_pairs;       // that are turned: a multiple of 8, of 4 where they are interleaved
    int is_interleaved;  // pairs are neighbours, not num_pairs apart
    float scale;
    float turn_factor;   // of sine and cosine
    float softcap;
    float norm_eps;
    float norm_offset;
};

// Cosine and sine of the turned pairs, once for all warps of a block: code that computes them in every
// lane would be fetched for longer than the rest takes.
struct Angles {
    float cosine[HEAD_DIM / 2], sine[HEAD_DIM / 2];
};

__device__ __forceinline__ void prepare(const Arguments& a, int position, Angles& angles) {
    if (!a.frequency) return;
    for (int pair = threadIdx.x; pair < a.num_pairs; pair += THREADS) {
        float sine, cosine;
        sincosf((float)position * a.frequency[pair], &sine, &cosine);
        angles.sine[pair] = sine * a.turn_factor, angles.cosine[pair] = cosine * a.turn_factor;
    }
    __syncthreads();
}

// Components of a head from `at` on; with HEAD_NORM under the weights of the norm.
__device__ __forceinline__ void load_weighted(const Arguments& a, const act_t* head,
                                              const act_t* norm, int at, float (&v)[8]) {
    load8(head + at, v);
#if HEAD_NORM
    float weight[8];
    load8(norm + at, weight);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] *= a.norm_offset + weight[i];
#endif
}

// Components `first` .. `first + 7` of a head, normalised and turned. With HEAD_NORM all lanes of the
// head come here together.
__device__ __forceinline__ void load_head(const Arguments& a, const Angles& angles,
                                          const act_t* head, const act_t* norm, int first,
                                          float (&v)[8]) {
    float factor = 1.0f;
#if HEAD_NORM
    float square = 0.0f;
    if (first < HEAD_DIM) {
        load8(head + first, v);
#pragma unroll
        for (int i = 0; i < 8; i++) square = fmaf(v[i], v[i], square);
    }
    factor = rsqrtf(sum_of_lanes<LANES>(square) / HEAD_DIM + a.norm_eps);
#endif
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = 0.0f;
    if (first >= HEAD_DIM) return;
    load_weighted(a, head, norm, first, v);
    if (a.frequency && first < 2 * a.num_pairs) {
        const bool is_low = first < a.num_pairs;
        const int pair = a.is_interleaved ? first / 2 : is_low ? first : first - a.num_pairs;
        if (a.is_interleaved) {
#pragma unroll
            for (int i = 0; i < 8; i += 2) {
                const float c = angles.cosine[pair + i / 2], s = angles.sine[pair + i / 2];
                const float even = v[i];
                v[i] = even * c - v[i + 1] * s, v[i + 1] = v[i + 1] * c + even * s;
            }
        } else {
            float other[8];
            load_weighted(a, head, norm, is_low ? first + a.num_pairs : pair, other);
            const float sign = is_low ? -1.0f : 1.0f;
#pragma unroll
            for (int i = 0; i < 8; i++)
                v[i] = v[i] * angles.cosine[pair + i] + sign * other[i] * angles.sine[pair + i];
        }
    }
    if (HEAD_NORM)
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] *= factor;
}

// What a block is for.
struct Place {
    int head, split, slot;      // of keys and values; its part of the queries that share the head
    int first_head, last_head;  // of queries
    int position;               // of the new token
    int begin, end;             // keys
    int num_blocks;             // that have keys of this sequence and head
    size_t vectors;             // the number of the sequence's first vector in the cache
    bool has_keys;
    __device__ __forceinline__ Place(const Arguments& a) {
        head = blockIdx.x / a.splits, split = blockIdx.x % a.splits, slot = blockIdx.y;
        const int num_kv_heads = gridDim.x / a.splits;
        const int sharing = a.num_heads / num_kv_heads;
        first_head = head * sharing + split * GROUP;
        last_head = min(first_head + GROUP, (head + 1) * sharing) - 1;
        position = a.lengths[slot];
        // A sequence that has ended stays where it is; its slot may be full.
        const int num_keys = min(a.k ? position + 1 : position, a.capacity);
        const int first = max(0, num_keys - a.window), seen = num_keys - first;
        // As many keys for each block as they all need, whole steps of a warp.
        const int even = (seen + (int)gridDim.z - 1) / (int)gridDim.z;
        const int stretch = max(a.least_stretch, (even + 15) / 16 * 16);
        begin = first + (int)blockIdx.z * stretch, end = min(begin + stretch, num_keys);
        // The first block writes the zeros of a slot without keys.
        num_blocks = max(1, (seen + stretch - 1) / stretch);
        has_keys = (int)blockIdx.z < num_blocks;
        vectors = ((size_t)slot * num_kv_heads + head) * a.capacity;
    }
    // Whether the new key is one of this block's.
    __device__ __forceinline__ bool is_own(const Arguments& a) const {
        return a.k && position >= begin && position < end;
    }
};

__device__ __forceinline__ void touch_bias(const Arguments& a, const Place& place) {
    if (!a.bias) return;
    for (int h = place.first_head + (int)(threadIdx.x >> 5); h <= place.last_head; h += WARPS)
        for (int at = (threadIdx.x & 31) * 32; at < a.num_distances; at += 1024)
            touch(a.bias + h * a.num_distances + at);
}

// A product of query and key as a score.
__device__ __forceinline__ float score_of(const Arguments& a, const Place& place, int g, int key,
                                          float product) {
    float score = product * a.scale;
#if SOFTCAP
    score = a.softcap * tanhf(score / a.softcap);
#endif
    if (key >= place.end) return -INFINITY;
    if (a.bias)
        score += a.bias[min(place.first_head + g, place.last_head) * a.num_distances +
                        min(place.position - key, a.num_distances - 1)];
    return score;
}

// What other blocks have written has to come from the second-level cache.
template <bool OF_BLOCKS>
__device__ __forceinline__ float part_of(const float* from) {
    return OF_BLOCKS ? __ldcg(from) : *from;
}

// The largest score, and the sum, of several parts of what was gathered for a head, those of warps or
// OF_BLOCKS; each part comes in with its factor.
template <bool OF_BLOCKS>
struct Joint {
    float factor[GROUP][OF_BLOCKS ? MAX_STRETCHES : WARPS], largest[GROUP], sum[GROUP];
    // A warp takes a head, a lane a part; `parts` is the first part of the first head, and those of a
    // head are `stride` floats apart.
    __device__ __forceinline__ void prepare(const float* parts, int stride, int count) {
        const int lane = threadIdx.x & 31;
        for (int g = threadIdx.x >> 5; g < GROUP; g += WARPS) {
            const float* of_head = parts + g * (HEAD_DIM + 2);
            float top = -INFINITY, total = 0.0f;
            for (int part = lane; part < count; part += 32)
                top = fmaxf(top, part_of<OF_BLOCKS>(of_head + part * stride + HEAD_DIM));
            top = warp_max(top);
            for (int part = lane; part < count; part += 32) {
                const float* at = of_head + part * stride + HEAD_DIM;
                const float score = part_of<OF_BLOCKS>(at);
                const float own = top > -INFINITY ? expf(score - top) : 0.0f;
                factor[g][part] = own, total += own * part_of<OF_BLOCKS>(at + 1);
            }
            total = warp_sum(total);
            if (lane == 0) largest[g] = top, sum[g] = total;
        }
        __syncthreads();
    }
    // Two neighbouring values of head g, in the order of the parts.
    __device__ __forceinline__ float2 values(const float* parts, int stride, int count, int g,
                                             int d) const {
        const float* of_head = parts + g * (HEAD_DIM + 2) + d;
        float2 value = make_float2(0.0f, 0.0f);
#pragma unroll 8
        for (int part = 0; part < count; part++) {
            const float2* at = (const float2*)(of_head + part * stride);
            const float2 own = OF_BLOCKS ? __ldcg(at) : *at;
            value.x += factor[g][part] * own.x, value.y += factor[g][part] * own.y;
        }
        return value;
    }
    __device__ __forceinline__ void write(act_t* y, int i, int g, float2 value) const {
        const float divisor = sum[g] > 0.0f ? sum[g] : INFINITY;
        y[i] = from_float(value.x / divisor), y[i + 1] = from_float(value.y / divisor);
    }
};

// What the warps have gathered of each head (its values, the largest score, the sum) into the result,
// or into that of this block's stretch; the last block joins the stretches.
__device__ __forceinline__ void finish(const Arguments& a, const Place& place,
                                       const float* gathered) {
    __shared__ bool is_last;
    __shared__ Joint<false> warps;
    __shared__ Joint<true> blocks;
    const int pair = place.slot * gridDim.x + blockIdx.x;
    const int width = (place.last_head - place.first_head + 1) * HEAD_DIM;
    constexpr int size = GROUP * (HEAD_DIM + 2);  // of a part
    act_t* y = a.y + ((size_t)place.slot * a.num_heads + place.first_head) * HEAD_DIM;
    float* stretches = a.partial + (size_t)pair * gridDim.z * size;
    float* own = stretches + blockIdx.z * size;
    __syncthreads();
    warps.prepare(gathered, size, WARPS);
#pragma unroll 1
    for (int i = threadIdx.x * 2; i < width; i += THREADS * 2) {
        const int g = i / HEAD_DIM, d = i % HEAD_DIM;
        const float2 value = warps.values(gathered, size, WARPS, g, d);
        if (place.num_blocks == 1) {
            warps.write(y, i, g, value);
            continue;
        }
        float* to = own + g * (HEAD_DIM + 2);
        *(float2*)(to + d) = value;
        if (d == 0) to[HEAD_DIM] = warps.largest[g], to[HEAD_DIM + 1] = warps.sum[g];
    }
    if (place.num_blocks == 1) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(a.finished + pair, 1) == place.num_blocks - 1;
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    blocks.prepare(stretches, size, place.num_blocks);
#pragma unroll 1
    for (int i = threadIdx.x * 2; i < width; i += THREADS * 2) {
        const int g = i / HEAD_DIM;
        blocks.write(y, i, g, blocks.values(stretches, size, place.num_blocks, g, i % HEAD_DIM));
    }
    if (threadIdx.x == 0) a.finished[pair] = 0;
}
