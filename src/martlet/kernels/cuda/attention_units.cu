// Attention of one new token a sequence over a static cache, on matrix units: half activations and a
// cache of the same type. attention.cuh says what a block is for.
//
// The queries that share a key are the rows of an operand, so that a key costs as much for eight of them
// as for one. A warp takes 16 keys at a time: 32 products of 16x8x16 for heads of 128. Operands come
// straight from memory: a lane's 16 bytes are eight components of one key, whatever slots of a product
// they stand in, as long as those of the queries stand in the same. Of values, a lane takes the same
// eight components of keys that are neighbours, and pairs them.
//
// Capability 8.0 on. ACTIVATION_TYPE 0 or 1, GROUP up to 8.
#define WARPS 4
#include "attention.cuh"

#define KEY_PARTS ((HEAD_DIM + 31) / 32)    // of a key, 16 bytes of each for a lane
#define VALUE_PARTS ((HEAD_DIM + 63) / 64)  // of a value, 16 bytes of each for a lane
#define AT_ONCE 16                          // keys of a warp
// Rows in shared memory: queries, the new key, the new value; padded against conflicts of banks.
#define ROW (KEY_PARTS * 32 + 8)
#define KEY_ROW 8
#define VALUE_ROW 9
// Whether values are on their way while scores are computed; wide ones come later, part by part: so
// many registers there are not.
#define EARLY (VALUE_PARTS <= 2)
#define HELD_PARTS (EARLY ? VALUE_PARTS : 1)

#if __CUDA_ARCH__ >= 800
// d += a * b with the rows 8 to 15 of `a` being zeros.
__device__ __forceinline__ void multiply_rows(float (&d)[4], u32 a0, u32 a2, u32 b0, u32 b1) {
    asm volatile(
#if ACTIVATION_TYPE == 0
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%5}, {%7,%8}, "
#else
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%5}, {%7,%8}, "
#endif
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(0), "r"(a2), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 pack(float low, float high) {
    return (u32)from_float(low) | (u32)from_float(high) << 16;
}

__device__ __forceinline__ u32 word_of(const uint4& words, int i) {
    return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

// Eight components from `at` on, zeros behind the head or where there is no such vector.
__device__ __forceinline__ uint4 load_part(const act_t* vector, int at, bool is_there) {
    return is_there && at < HEAD_DIM ? *(const uint4*)(vector + at) : make_uint4(0, 0, 0, 0);
}

// A lane's parts of 16 keys and values: of the keys g and g + 8, and of the values of the keys 2c,
// 2c + 1, 2c + 8 and 2c + 9.
struct Batch {
    uint4 key[2][KEY_PARTS], value[4][HELD_PARTS];
    static __device__ __forceinline__ int key_of(int base, int i) {
        return base + ((threadIdx.x & 31) >> 2) + 8 * i;
    }
    static __device__ __forceinline__ int value_of(int base, int i) {
        return base + 2 * (threadIdx.x & 3) + (i & 1) + 8 * (i >> 1);
    }
    __device__ __forceinline__ void load_keys(const Arguments& a, size_t vectors, int base, int end) {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int t = 0; t < KEY_PARTS; t++)
                key[i][t] = load_part(a.keys + (vectors + key_of(base, i)) * HEAD_DIM,
                                      (threadIdx.x & 3) * 8 + 32 * t, key_of(base, i) < end);
    }
    // Parts of the values, of which the first is given.
    __device__ __forceinline__ void load_values(const Arguments& a, size_t vectors, int base, int end,
                                                int first) {
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int v = 0; v < HELD_PARTS; v++)
                value[i][v] = load_part(a.values + (vectors + value_of(base, i)) * HEAD_DIM,
                                        ((threadIdx.x & 31) >> 2) * 8 + 64 * (first + v),
                                        value_of(base, i) < end);
    }
    // The new key or value takes its place.
    __device__ __forceinline__ void insert_key(const act_t* fresh, int base, int position) {
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (key_of(base, i) == position)
#pragma unroll
                for (int t = 0; t < KEY_PARTS; t++)
                    key[i][t] = load_part(fresh, (threadIdx.x & 3) * 8 + 32 * t, true);
    }
    __device__ __forceinline__ void insert_values(const act_t* fresh, int base, int position,
                                                  int first) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (value_of(base, i) == position)
#pragma unroll
                for (int v = 0; v < HELD_PARTS; v++)
                    value[i][v] =
                        load_part(fresh, ((threadIdx.x & 31) >> 2) * 8 + 64 * (first + v), true);
    }
};

// The queries of the block, and the new key and value, as rows in shared memory. What is new goes into
// the cache too, once of the blocks that share the head.
__device__ __forceinline__ void stage_heads(const Arguments& a, const Angles& angles,
                                            const Place& place, act_t (&rows)[VALUE_ROW + 1][ROW]) {
    const int group = threadIdx.x / LANES, at = threadIdx.x % LANES * 8;
    const bool is_own = place.is_own(a);
    const act_t* queries = a.q + (size_t)place.slot * a.q_stride;
#pragma unroll 1
    for (int row = group; row < VALUE_ROW; row += THREADS / LANES) {
        const bool is_key = row == KEY_ROW;
        if (is_key && !is_own) break;
        const act_t* head =
            is_key ? a.k + (size_t)place.slot * a.k_stride + place.head * HEAD_DIM
                   : queries + min(place.first_head + row, place.last_head) * HEAD_DIM;
        float v[8];
        load_head(a, angles, head, is_key ? a.k_norm : a.q_norm, at, v);
        Vector8 rounded;
        act_t* to = (act_t*)rounded.words;
#pragma unroll
        for (int i = 0; i < 8; i++) to[i] = from_float(v[i]);
        if (at < KEY_PARTS * 32) *(Vector8*)(rows[row] + at) = rounded;
        if (!is_key || at >= HEAD_DIM) continue;
        const size_t vector = (place.vectors + place.position) * HEAD_DIM + at;
        const act_t* value = a.v + (size_t)place.slot * a.v_stride + place.head * HEAD_DIM + at;
        const Vector8 fresh = *(const Vector8*)value;
        *(Vector8*)(rows[VALUE_ROW] + at) = fresh;
        if (place.split > 0) continue;
        *(Vector8*)(a.keys + vector) = rounded;
        *(Vector8*)(a.values + vector) = fresh;
    }
    __syncthreads();
}

// What a warp has gathered: of head g values 64 v + 16 c + j and 8 further (sum[v][j]), online softmax.
struct Gathered {
    float sum[VALUE_PARTS][8][4], largest, weight;
    __device__ __forceinline__ Gathered() : largest(-INFINITY), weight(0.0f) {
#pragma unroll
        for (int v = 0; v < VALUE_PARTS; v++)
#pragma unroll
            for (int j = 0; j < 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) sum[v][j][i] = 0.0f;
    }
    // Scores become weights.
    __device__ __forceinline__ void weigh(float (&score)[4]) {
        float top = fmaxf(fmaxf(score[0], score[1]), fmaxf(score[2], score[3]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(largest, fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2)));
        // Without any key so far every score is -infinity.
        const float base = top == -INFINITY ? 0.0f : top;
        const float shrink = expf(largest - base);
        largest = top, weight *= shrink;
#pragma unroll
        for (int i = 0; i < 4; i++) score[i] = expf(score[i] - base), weight += score[i];
#pragma unroll
        for (int v = 0; v < VALUE_PARTS; v++)
#pragma unroll
            for (int j = 0; j < 8; j++) sum[v][j][0] *= shrink, sum[v][j][1] *= shrink;
    }
    // Parts of the values, of which the first is given.
    __device__ __forceinline__ void add(const float (&weights)[4], const Batch& batch, int first) {
        const u32 a0 = pack(weights[0], weights[1]), a2 = pack(weights[2], weights[3]);
#pragma unroll
        for (int v = 0; v < HELD_PARTS; v++)
#pragma unroll
            for (int j = 0; j < 8; j++) {
                u32 b[2];
#pragma unroll
                for (int i = 0; i < 2; i++)
                    b[i] = __byte_perm(word_of(batch.value[2 * i][v], j / 2),
                                       word_of(batch.value[2 * i + 1][v], j / 2),
                                       j & 1 ? 0x7632 : 0x5410);
                multiply_rows(sum[first + v][j], a0, a2, b[0], b[1]);
            }
    }
    __device__ __forceinline__ void store(float* of_warp) {
        const int g = (threadIdx.x & 31) >> 2, c = threadIdx.x & 3;
        weight += __shfl_xor_sync(0xffffffffu, weight, 1);
        weight += __shfl_xor_sync(0xffffffffu, weight, 2);
        if (g >= GROUP) return;
        float* to = of_warp + g * (HEAD_DIM + 2);
#pragma unroll
        for (int v = 0; v < VALUE_PARTS; v++)
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    const int at = 64 * v + 16 * c + 8 * half + j;
                    if (at < HEAD_DIM) to[at] = sum[v][j][half];
                }
        if (c == 0) to[HEAD_DIM] = largest, to[HEAD_DIM + 1] = weight;
    }
};

// The scores of head g with the keys 2c, 2c + 1, 2c + 8 and 2c + 9 of a batch.
__device__ __forceinline__ void scores_of(const Arguments& a, const Place& place,
                                          const act_t (&rows)[VALUE_ROW + 1][ROW],
                                          const Batch& batch, int base, float (&score)[4]) {
    const int g = (threadIdx.x & 31) >> 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float product[4] = {};
#pragma unroll
        for (int t = 0; t < KEY_PARTS; t++) {
            const uint4 q = *(const uint4*)(rows[g] + (threadIdx.x & 3) * 8 + 32 * t);
            const uint4& k = batch.key[i][t];
            multiply_rows(product, q.x, q.y, k.x, k.y);
            multiply_rows(product, q.z, q.w, k.z, k.w);
        }
#pragma unroll
        for (int h = 0; h < 2; h++)
            score[2 * i + h] =
                score_of(a, place, g, Batch::value_of(base, 2 * i + h), product[h]);
    }
}
#endif

// Grid: (kv_heads * splits, slots, stretches). Dynamic shared memory: WARPS * GROUP * (HEAD_DIM + 2) floats.
//
// What stands before wait_for_inputs() reads lengths and keys of earlier tokens: no kernel of this
// step writes them but this one, and steps do not overlap.
extern "C" __global__ void __launch_bounds__(THREADS)
attention_units(const GRID_CONSTANT Arguments a) {
#if __CUDA_ARCH__ >= 800
    extern __shared__ float gathered[];
    __shared__ Angles angles;
    __shared__ __align__(16) act_t rows[VALUE_ROW + 1][ROW];
    const int warp = threadIdx.x >> 5;
    allow_next_kernel();
    const Place place(a);
    if (!place.has_keys) return;
    const int end = place.end, cached = min(end, place.position);
    const int first = place.begin + warp * AT_ONCE;
    Batch batch;
    batch.load_keys(a, place.vectors, first, cached);
    if (EARLY) batch.load_values(a, place.vectors, first, cached, 0);
    touch_bias(a, place);
    prepare(a, place.position, angles);
    wait_for_inputs();
    stage_heads(a, angles, place, rows);
    Gathered own;
#pragma unroll 1
    for (int base = first; base < end; base += WARPS * AT_ONCE) {
        const bool has_new = place.is_own(a) && place.position >= base &&
                             place.position < base + AT_ONCE;
        if (base != first) batch.load_keys(a, place.vectors, base, cached);
        if (EARLY && base != first) batch.load_values(a, place.vectors, base, cached, 0);
        if (has_new) batch.insert_key(rows[KEY_ROW], base, place.position);
        float score[4];
        scores_of(a, place, rows, batch, base, score);
        own.weigh(score);
#pragma unroll
        for (int v = 0; v < VALUE_PARTS; v += HELD_PARTS) {
            if (!EARLY) batch.load_values(a, place.vectors, base, cached, v);
            if (has_new) batch.insert_values(rows[VALUE_ROW], base, place.position, v);
            own.add(score, batch, v);
        }
    }
    own.store(gathered + warp * GROUP * (HEAD_DIM + 2));
    finish(a, place, gathered);
#endif
}
