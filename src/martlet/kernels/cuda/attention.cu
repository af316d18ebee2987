// Attention of one new token a sequence over a static cache, lane by lane: any activations and cards, and
// int8 caches. attention.cuh says what a block is for.
#include "attention.cuh"

// Keys of a lane that are in flight together: as many as its registers hold, which is more of int8.
#if __CUDA_ARCH__ < 700
#define AHEAD (GROUP > 1 ? 1 : 4)
#elif ACTIVATION_TYPE == 2 || __CUDA_ARCH__ < 800
#define AHEAD (GROUP > 1 ? 2 : 4)
#elif CACHE_INT8
#define AHEAD (GROUP > 4 ? 4 : 8)
#else
#define AHEAD (GROUP > 4 ? 2 : GROUP > 1 ? 4 : 8)
#endif

// What the lanes of one key have gathered so far: online softmax, each group of lanes for itself.
struct Gathered {
    float largest[GROUP], sum[GROUP], value[GROUP][8];
    __device__ __forceinline__ Gathered() {
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            largest[g] = -INFINITY, sum[g] = 0.0f;
#pragma unroll
            for (int i = 0; i < 8; i++) value[g][i] = 0.0f;
        }
    }
    // AHEAD more keys; a score of -infinity is no key.
    __device__ __forceinline__ void add(int g, const float (&score)[AHEAD],
                                        const CacheVector (&v)[AHEAD]) {
        float top = largest[g];
#pragma unroll
        for (int u = 0; u < AHEAD; u++) top = fmaxf(top, score[u]);
        if (top == -INFINITY) return;
        const float shrink = expf(largest[g] - top);
        largest[g] = top;
        sum[g] *= shrink;
#pragma unroll
        for (int i = 0; i < 8; i++) value[g][i] *= shrink;
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const float weight = expf(score[u] - top);
            float of[8];
            unpack8(v[u], of);
            sum[g] += weight;
            const float scaled = weight * v[u].scale();
#pragma unroll
            for (int i = 0; i < 8; i++) value[g][i] = fmaf(scaled, of[i], value[g][i]);
        }
    }
    // The groups of lanes of a warp into one.
    __device__ __forceinline__ void join_lanes() {
#pragma unroll
        for (int g = 0; g < GROUP; g++)
#pragma unroll
            for (int distance = LANES; distance < 32; distance <<= 1) {
                const float other = __shfl_xor_sync(0xffffffffu, largest[g], distance);
                const float top = fmaxf(largest[g], other);
                const float own = top == -INFINITY ? 0.0f : expf(largest[g] - top);
                largest[g] = top;
                sum[g] *= own;
                sum[g] += __shfl_xor_sync(0xffffffffu, sum[g], distance);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    value[g][i] *= own;
                    value[g][i] += __shfl_xor_sync(0xffffffffu, value[g][i], distance);
                }
            }
    }
};

struct KeyValue {
    CacheVector key, value;
};

// The new key and value of a lane as they will be read from now on; both go into the cache, once of
// the blocks that share the head. All lanes of the key come here, those beyond the head too.
__device__ __forceinline__ KeyValue append(const Arguments& a, const Angles& angles,
                                           const Place& place, int part) {
    KeyValue fresh = {};
    float v[8];
    const act_t* key = a.k + (size_t)place.slot * a.k_stride + place.head * HEAD_DIM;
    load_head(a, angles, key, a.k_norm, part, v);
    const act_t* from = a.v + (size_t)place.slot * a.v_stride + place.head * HEAD_DIM + part;
    const size_t vector = place.vectors + place.position, at = vector * HEAD_DIM + part;
    const bool writes = place.split == 0;
#if CACHE_INT8
    float w[8] = {};
    if (part < HEAD_DIM) load8(from, w);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = to_float(from_float(v[i]));
    fresh.key = quantise8<LANES>(v), fresh.value = quantise8<LANES>(w);
    if (part >= HEAD_DIM || !writes) return fresh;
    *(uint2*)(a.keys + at) = fresh.key.words, *(uint2*)(a.values + at) = fresh.value.words;
    if (part > 0) return fresh;
    a.key_scales[vector] = fresh.key.scale_bits;
    a.value_scales[vector] = fresh.value.scale_bits;
#else
    if (part >= HEAD_DIM) return fresh;
    act_t* keys = (act_t*)fresh.key.components.words;
#pragma unroll
    for (int i = 0; i < 8; i++) keys[i] = from_float(v[i]);
    fresh.value.components = *(const Vector8*)from;
    if (!writes) return fresh;
    *(Vector8*)(a.keys + at) = fresh.key.components;
    *(Vector8*)(a.values + at) = fresh.value.components;
#endif
    return fresh;
}

// A lane's part of AHEAD keys and values of the cache, from one of its keys on.
struct Batch {
    CacheVector key[AHEAD], value[AHEAD];
    // `vectors` is the number of the sequence's first vector in the cache.
    __device__ __forceinline__ void load(const Arguments& a, size_t vectors, int part, int first,
                                         int end) {
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const int number = first + u * WARPS * KEYS;
            key[u] = value[u] = CacheVector{};
            if (number >= end) continue;
            const size_t vector = vectors + number, at = vector * HEAD_DIM + part;
            key[u].load(a.keys + at, a.key_scales + vector);
            value[u].load(a.values + at, a.value_scales + vector);
        }
    }
};

// Grid: (kv_heads * splits, slots, stretches). Dynamic shared memory: WARPS * GROUP * (HEAD_DIM + 2) floats.
//
// What stands before wait_for_inputs() reads lengths and keys of earlier tokens: no kernel of this
// step writes them but this one, and steps do not overlap.
extern "C" __global__ void __launch_bounds__(THREADS) attention(const GRID_CONSTANT Arguments a) {
    extern __shared__ float gathered[];  // of each warp and head: values, largest score, sum
    __shared__ Angles angles;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int part = lane % LANES * 8;  // this lane's components
    allow_next_kernel();
    const Place place(a);
    if (!place.has_keys) return;
    const int end = place.end, position = place.position;
    // Keys that lie in the cache; lanes beyond the head have none.
    const int cached = part < HEAD_DIM ? min(end, position) : 0;
    const int first_key = place.begin + warp * KEYS + lane / LANES;
    Batch batch;
    batch.load(a, place.vectors, part, first_key, cached);
    touch_bias(a, place);
    prepare(a, position, angles);
    wait_for_inputs();

    const act_t* queries = a.q + (size_t)place.slot * a.q_stride;
    float q[GROUP][8];
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
        const act_t* query = queries + min(place.first_head + g, place.last_head) * HEAD_DIM;
        load_head(a, angles, query, a.q_norm, part, q[g]);
    }

    // The new key is that of one group of lanes.
    const bool is_own = place.is_own(a) && position >= first_key &&
                        (position - first_key) % (WARPS * KEYS) == 0;
    KeyValue fresh = {};
    if (is_own) fresh = append(a, angles, place, part);

    Gathered own;
    // Whole warps stay together for the exchange below. The loop's code is fetched once.
#pragma unroll 1
    for (int first = first_key; first - lane / LANES < end; first += WARPS * KEYS * AHEAD) {
        if (first != first_key) batch.load(a, place.vectors, part, first, cached);
        if (is_own)
#pragma unroll
            for (int u = 0; u < AHEAD; u++)
                if (first + u * WARPS * KEYS == position)
                    batch.key[u] = fresh.key, batch.value[u] = fresh.value;
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            float score[AHEAD];
#pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                float of[8];
                unpack8(batch.key[u], of);
                float product = 0.0f;
#pragma unroll
                for (int i = 0; i < 8; i++) product = fmaf(q[g][i], of[i], product);
                product = sum_of_lanes<LANES>(product) * batch.key[u].scale();
                score[u] = score_of(a, place, g, first + u * WARPS * KEYS, product);
            }
            own.add(g, score, batch.value);
        }
    }
    own.join_lanes();
    if (lane < VECTORS)
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            float* to = gathered + (warp * GROUP + g) * (HEAD_DIM + 2);
#pragma unroll
            for (int i = 0; i < 8; i++) to[part + i] = own.value[g][i];
            if (lane == 0) to[HEAD_DIM] = own.largest[g], to[HEAD_DIM + 1] = own.sum[g];
        }
    finish(a, place, gathered);
}
