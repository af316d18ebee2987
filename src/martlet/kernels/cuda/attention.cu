// Attention of one new token a sequence over a static cache: decoding.
//
// A block takes one key/value head of one sequence and a stretch of its keys; it computes the query
// heads that share the head, or GROUP of them where those are too many for the registers of a lane
// (the last block of such a head computes what it has too few of twice, and writes it once).
// Where a sequence is cut into several stretches, the block that
// finishes last joins them, in the order of the stretches, so that results do not depend on timing.
// Self attention first writes the new key and value behind the others (turned to its position where
// positions are rotary). Lengths are read on the device: one captured launch serves every step.
// With CACHE_INT8 keys and values are int8, and the new ones are quantised as they are written. With
// HEAD_NORM a root mean square norm of each head comes before the turn, with SOFTCAP scores are bent
// towards a limit.
#include "cache_vectors.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 64
#endif
// Query heads of a block.
#ifndef GROUP
#define GROUP 1
#endif
#ifndef HEAD_NORM
#define HEAD_NORM 0
#endif
#ifndef SOFTCAP
#define SOFTCAP 0
#endif

#define WARPS 8
#define THREADS (WARPS * 32)
#define VECTORS ((HEAD_DIM + 7) / 8)  // of 8 elements in a head
#define LANES (VECTORS <= 4 ? 4 : VECTORS <= 8 ? 8 : VECTORS <= 16 ? 16 : 32)  // for one key
#define KEYS (32 / LANES)                                                     // a warp at a time
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
    int stretch;         // keys of a block
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

// The new key and value of a lane as they will be read from now on; both go into the cache as the
// vector of that number. All lanes of the key come here, those beyond the head too.
__device__ __forceinline__ KeyValue append(const Arguments& a, const Angles& angles, int slot,
                                           int head, int part, size_t vector, bool writes) {
    KeyValue fresh = {};
    float v[8];
    const act_t* key = a.k + (size_t)slot * a.k_stride + head * HEAD_DIM;
    load_head(a, angles, key, a.k_norm, part, v);
    const act_t* from = a.v + (size_t)slot * a.v_stride + head * HEAD_DIM + part;
    const size_t at = vector * HEAD_DIM + part;
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

// The stretches of a sequence into its result; every thread of the block that finished last.
__device__ __forceinline__ void join(const float* partial, int width, act_t* y) {
    const int stretches = gridDim.z;
#pragma unroll 1
    for (int index = threadIdx.x; index < width; index += THREADS) {
        const int g = index / HEAD_DIM, d = index % HEAD_DIM;
        const float* of_head = partial + g * (HEAD_DIM + 2);
        const int step = GROUP * (HEAD_DIM + 2);
        float largest = -INFINITY, sum = 0.0f, value = 0.0f;
#pragma unroll 4
        for (int s = 0; s < stretches; s++)
            largest = fmaxf(largest, __ldcg(of_head + s * step + HEAD_DIM));
#pragma unroll 4
        for (int s = 0; s < stretches; s++) {
            const float factor = expf(__ldcg(of_head + s * step + HEAD_DIM) - largest);
            sum += factor * __ldcg(of_head + s * step + HEAD_DIM + 1);
            value += factor * __ldcg(of_head + s * step + d);
        }
        y[index] = from_float(sum > 0.0f ? value / sum : 0.0f);
    }
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
    __shared__ bool is_last;
    __shared__ Angles angles;
    const int head = blockIdx.x / a.splits, split = blockIdx.x % a.splits, slot = blockIdx.y;
    const int num_kv_heads = gridDim.x / a.splits;
    const int sharing = a.num_heads / num_kv_heads;  // heads of queries
    const int first_head = head * sharing + split * GROUP;
    const int last_head = min(first_head + GROUP, (head + 1) * sharing) - 1;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int part = lane % LANES * 8;  // this lane's components
    allow_next_kernel();

    const int position = a.lengths[slot];
    // A sequence that has ended stays where it is; its slot may be full.
    const int num_keys = min(a.k ? position + 1 : position, a.capacity);
    const int stretch = blockIdx.z * a.stretch, end = min(stretch + a.stretch, num_keys);
    const int begin = max(stretch, num_keys - a.window);
    const size_t cache = ((size_t)slot * num_kv_heads + head) * a.capacity;
    // Keys that lie in the cache; lanes beyond the head have none.
    const int cached = part < HEAD_DIM ? min(end, position) : 0;
    const int first_key = begin + warp * KEYS + lane / LANES;
    Batch batch;
    batch.load(a, cache, part, first_key, cached);
    if (a.bias)
        for (int h = first_head + warp; h <= last_head; h += WARPS)
            for (int at = lane * 32; at < a.num_distances; at += 1024)
                touch(a.bias + h * a.num_distances + at);
    prepare(a, position, angles);
    wait_for_inputs();

    const act_t* queries = a.q + (size_t)slot * a.q_stride;
    float q[GROUP][8];
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
        const act_t* query = queries + min(first_head + g, last_head) * HEAD_DIM;
        load_head(a, angles, query, a.q_norm, part, q[g]);
    }

    // The new key is that of one group of lanes, in one block.
    const bool is_own = a.k && position < end && position >= first_key &&
                        (position - first_key) % (WARPS * KEYS) == 0;
    KeyValue fresh = {};
    if (is_own) fresh = append(a, angles, slot, head, part, cache + position, split == 0);

    Gathered own;
    // Whole warps stay together for the exchange below.
#pragma unroll 1  // code that is not fetched twice
    for (int first = first_key; first - lane / LANES < end; first += WARPS * KEYS * AHEAD) {
        if (first != first_key) batch.load(a, cache, part, first, cached);
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
                const int at = first + u * WARPS * KEYS;
                float of[8];
                unpack8(batch.key[u], of);
                score[u] = 0.0f;
#pragma unroll
                for (int i = 0; i < 8; i++) score[u] = fmaf(q[g][i], of[i], score[u]);
#pragma unroll
                for (int distance = LANES / 2; distance; distance >>= 1)
                    score[u] += __shfl_xor_sync(0xffffffffu, score[u], distance);
                score[u] *= a.scale * batch.key[u].scale();
#if SOFTCAP
                score[u] = a.softcap * tanhf(score[u] / a.softcap);
#endif
                if (a.bias && at < end)
                    score[u] += a.bias[min(first_head + g, last_head) * a.num_distances +
                                       min(position - at, a.num_distances - 1)];
                if (at >= end) score[u] = -INFINITY;
            }
            own.add(g, score, batch.value);
        }
    }
    own.join_lanes();
    if (lane < VECTORS)
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            float* place = gathered + (warp * GROUP + g) * (HEAD_DIM + 2);
#pragma unroll
            for (int i = 0; i < 8; i++) place[part + i] = own.value[g][i];
            if (lane == 0) place[HEAD_DIM] = own.largest[g], place[HEAD_DIM + 1] = own.sum[g];
        }
    __syncthreads();

    const int pair = slot * gridDim.x + blockIdx.x, stretches = gridDim.z;
    const int width = (last_head - first_head + 1) * HEAD_DIM;
    act_t* y = a.y + ((size_t)slot * a.num_heads + first_head) * HEAD_DIM;
    float* partial = a.partial + (size_t)pair * stretches * GROUP * (HEAD_DIM + 2);
#pragma unroll 1
    for (int i = threadIdx.x; i < width; i += THREADS) {
        const int g = i / HEAD_DIM, d = i % HEAD_DIM;
        float largest = -INFINITY, sum = 0.0f, value = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++)
            largest = fmaxf(largest, gathered[(w * GROUP + g) * (HEAD_DIM + 2) + HEAD_DIM]);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float* of_warp = gathered + (w * GROUP + g) * (HEAD_DIM + 2);
            const float factor = largest > -INFINITY ? expf(of_warp[HEAD_DIM] - largest) : 0.0f;
            sum += factor * of_warp[HEAD_DIM + 1];
            value += factor * of_warp[d];
        }
        if (stretches == 1) {
            y[i] = from_float(sum > 0.0f ? value / sum : 0.0f);
            continue;
        }
        float* place = partial + (blockIdx.z * GROUP + g) * (HEAD_DIM + 2);
        place[d] = value;
        if (d == 0) place[HEAD_DIM] = largest, place[HEAD_DIM + 1] = sum;
    }
    if (stretches == 1) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(a.finished + pair, 1) == stretches - 1;
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    join(partial, width, y);
    if (threadIdx.x == 0) a.finished[pair] = 0;
}
