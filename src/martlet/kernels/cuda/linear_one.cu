// y = act(norm(x) @ W.T + bias) + residual for one row of x, W being integers of 8 or 4 bits in tiles:
// the decode step of one text.
//
// As in linear.cu, blocks walk over tiles of 16 output rows, their warps split the inputs, and float16
// products on matrix units are summed in float32. One row leaves little time for everything but the
// weights, so this form has fewer instructions: a warp's chunks are neighbours, how many there are is
// compiled in (CHUNKS), and weights go straight into registers, DEPTH chunks ahead of their use, across
// the ends of tiles. The first of them are asked for before the inputs are ready. Where groups have
// scales, the tables of a warp's chunks are neighbours too: all lanes together load them, and hand each
// other what they need. Integers are used with what the packing adds to them; it is taken off with
// sums of the inputs (sums_of).
//
// A warp prepares the inputs of its own chunks alone, under a scale of its own. What a root mean square
// norm divides by is known when the sums of all warps are joined, and comes in there.
//
// Compute capability 8.0 on. Defines: ACTIVATION_TYPE, WARPS, CHUNKS (of a warp, a multiple of DEPTH
// and of the chunks of a group), DEPTH, BLOCKS (of a multiprocessor), GATED, RAGGED (the inputs are not all chunks of all warps), BITS,
// GROUP, ZEROS, NORM, ACTIVATION.
#define ROWS 1
#define MAX_ROWS 8
#define NEIGHBOURS 1
#include "linear_groups.cuh"
#include "linear_walk.cuh"

#ifndef CHUNKS
#define CHUNKS 4
#endif
#ifndef DEPTH
#define DEPTH 4
#endif
#ifndef BLOCKS
#define BLOCKS 2
#endif
#define INPUT_BYTES (WARPS * CHUNKS * HALVES * (GROUP ? 72 : 64))  // operands, sums of groups behind
#define WARP_INPUTS (CHUNKS * CHUNK_INPUTS)
#define VECTORS ((WARP_INPUTS + 255) / 256)         // of 8 inputs, that a lane prepares
#if GROUP
#define TABLE_WORDS (TABLE_BYTES / 4)               // that a lane needs for a chunk
#define UNITS (CHUNKS / UNIT_CHUNKS)                // of a warp
#define TABLE_LOADS ((UNITS * 8 * TABLE_WORDS + 31) / 32)
#endif

#if __CUDA_ARCH__ >= 800
// The weights of a chunk on their way.
struct Loads {
    uint4 words[MATRICES];
};

#if GROUP
// The tables of a warp's chunks of a tile: word i * 32 + lane of them.
struct Tables {
    u32 words[MATRICES][TABLE_LOADS];
    // Those of a chunk, from the lanes that loaded them.
    __device__ __forceinline__ Table of(int matrix, int chunk) const {
        const int first = chunk / UNIT_CHUNKS * 8 * TABLE_WORDS, g = (threadIdx.x & 31) >> 2;
        Table table;
        u32* to = (u32*)table.of;
#pragma unroll
        for (int k = 0; k < TABLE_WORDS; k++)
            to[k] = __shfl_sync(0xffffffffu, words[matrix][first / 32],
                                first % 32 + g * TABLE_WORDS + k);
        return table;
    }
};
#else
struct Tables {};
#endif

// Which chunks are asked for next.
struct Ahead {
    Walk walk;
    const u8* from[MATRICES];
    bool is_done;
    __device__ __forceinline__ Ahead(const Arguments& a, Tables& tables) : walk(a) {
        begin(a, tables);
    }
    __device__ __forceinline__ void begin(const Arguments& a, Tables& tables) {
        is_done = walk.done(a);
        if (is_done) return;
        const int first = (threadIdx.x >> 5) * CHUNKS;
#pragma unroll
        for (int m = 0; m < MATRICES; m++) from[m] = walk.weights(a, m, first);
#if GROUP
        const int units = (a.num_chunks + UNIT_CHUNKS - 1) / UNIT_CHUNKS, lane = threadIdx.x & 31;
#pragma unroll
        for (int m = 0; m < MATRICES; m++) {
            const u32* words = (const u32*)walk.tables(a, m, 0, 0);
#pragma unroll
            for (int i = 0; i < TABLE_LOADS; i++) {
                const int word = i * 32 + lane, unit = first / UNIT_CHUNKS + word / (8 * TABLE_WORDS);
                // Behind the last unit inputs are zeros; but a scale might not be finite.
                const bool is_there = word < UNITS * 8 * TABLE_WORDS && (!RAGGED || unit < units);
                tables.words[m][i] =
                    is_there ? words[first / UNIT_CHUNKS * 8 * TABLE_WORDS + word] : 0;
            }
        }
#endif
    }
    __device__ __forceinline__ void next(const Arguments& a, Tables& tables) {
        walk.next(a);
        begin(a, tables);
    }
    __device__ __forceinline__ void load(const Arguments& a, int chunk, Loads& to) const {
        if (is_done) return;
        if (RAGGED && (int)(threadIdx.x >> 5) * CHUNKS + chunk >= a.num_chunks) return;
#pragma unroll
        for (int m = 0; m < MATRICES; m++)
            to.words[m] = load_stream((const uint4*)(from[m] + chunk * 512));
    }
};

// What a warp's inputs are multiplied with, before they are there: the weights of a norm.
struct NormWeights {
    Vector8 of[VECTORS];
    __device__ __forceinline__ NormWeights(const Arguments& a, int first) {
        if (norm_of(a) != RMS_NORM) return;
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            const int at = first + (i * 32 + (int)(threadIdx.x & 31)) * 8;
            if (at < a.in_features) of[i] = *(const Vector8*)(a.norm_weight + at);
        }
    }
};

// What comes of a warp's inputs beside their operands.
struct Staged {
    float inverse;  // what their products are to be multiplied with
    float square;   // sum of the inputs' squares, lane by lane
    float excess;   // what is taken off the products of a row without groups, lane by lane
};

// Prepares the inputs of this warp's chunks as stage_inputs does those of a block.
__device__ __forceinline__ Staged stage_own(const Arguments& a, const NormWeights& weights, int first,
                                            u8* operands, float2* sums) {
    const int lane = threadIdx.x & 31;
    float v[VECTORS][8], largest = 0.0f;
    Staged staged = {1.0f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < VECTORS; i++) load_or_zero(a.x, first + (i * 32 + lane) * 8, a.in_features, v[i]);
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        if (norm_of(a) == RMS_NORM && first + (i * 32 + lane) * 8 < a.in_features) {
            float weight[8];
            unpack8(weights.of[i], weight);
            // What belongs to the next warp is not counted here.
            const bool is_own = WARP_INPUTS % 256 == 0 || (i * 32 + lane) * 8 < WARP_INPUTS;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                if (is_own) staged.square = fmaf(v[i][j], v[i][j], staged.square);
                v[i][j] *= a.norm_offset + weight[j];
            }
        }
#pragma unroll
        for (int j = 0; j < 8; j++) largest = fmaxf(largest, fabsf(v[i][j]));
    }
    float factor = 1.0f;
    if (ACTIVATION_TYPE != 0 || norm_of(a) == RMS_NORM)
        factor = power_of_two_scale(warp_max(largest), staged.inverse);
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int at = (i * 32 + lane) * 8;
        u32 half[8];
        float number[8];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            half[j] = float_to_half(v[i][j] * factor);
            number[j] = half_to_float((u16)half[j]);
        }
#if GROUP
        float2 both = sums_of(number);
#pragma unroll
        for (int distance = 1; distance < 4; distance <<= 1) {
            both.x += __shfl_xor_sync(0xffffffffu, both.x, distance);
            both.y += __shfl_xor_sync(0xffffffffu, both.y, distance);
        }
#endif
        if (at >= WARP_INPUTS) continue;
        u8* place = operands + (at >> 5) * 64 + ((at >> 2) & 3) * 16 + ((at >> 4) & 1) * 8;
        *(uint2*)place = make_uint2(half[0] | half[1] << 16, half[2] | half[3] << 16);
        *(uint2*)(place + 16) = make_uint2(half[4] | half[5] << 16, half[6] | half[7] << 16);
#if GROUP
        if ((at & 31) == 0) sums[at >> 5] = both;
#else
#pragma unroll
        for (int j = 0; j < 8; j++) staged.excess = fmaf(OFFSET, number[j], staged.excess);
#endif
    }
    return staged;
}

__device__ __forceinline__ void multiply_first(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%10,%10,%10,%10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
}

// A lane's inputs of a chunk: every column of the operand is the same row. They are read where they
// stand in the program: all chunks at once would need more registers than there are.
struct Inputs {
    uint4 b[HALVES];
    float2 sums[HALVES];  // of groups
    __device__ __forceinline__ Inputs(u32 operands, u32 own_sums, int chunk) {
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                         : "=r"(b[half].x), "=r"(b[half].y), "=r"(b[half].z), "=r"(b[half].w)
                         : "r"(operands + (chunk * HALVES + half) * 64));
            if (GROUP)
                asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];"
                             : "=f"(sums[half].x), "=f"(sums[half].y)
                             : "r"(own_sums + (chunk * HALVES + half) * 8));
        }
    }
};

#if GROUP
#define SUMS 2  // of the rows g and g + 8
// Adds the products of a chunk to those of its rows; lanes with c = 0 hold them.
__device__ __forceinline__ void add_chunk(float (&sum)[SUMS], const Inputs& x, const uint4& w,
                                          const Table& table) {
    u32 a[STEPS16][4];
    left_operands<false>(w, a);
    float part[HALVES][4];
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        multiply_first(part[half], a[2 * half], x.b[half].x, x.b[half].y);
        const u32 (&second)[4] = a[2 * half + 1];
        multiply(part[half], second[0], second[1], second[2], second[3], x.b[half].z, x.b[half].w);
    }
#pragma unroll
    for (int group = 0; group < CHUNK_GROUPS; group++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float value = part[group][2 * h], excess = x.sums[group].x, total = x.sums[group].y;
            if (HALVES > CHUNK_GROUPS) {
                value += part[HALVES - 1][2 * h];
                excess += x.sums[HALVES - 1].x, total += x.sums[HALVES - 1].y;
            }
            value -= excess;
            if (ZEROS) value = fmaf(MIDDLE - table.zero(group, h), total, value);
            sum[h] = fmaf(table.scale(group, h), value, sum[h]);
        }
}
#else
#define SUMS 4  // as matrix units have them: every column is the same row
__device__ __forceinline__ void add_chunk(float (&sum)[SUMS], const Inputs& x, const uint4& w) {
    u32 a[STEPS16][4];
    left_operands<false>(w, a);
    multiply(sum, a[0][0], a[0][1], a[0][2], a[0][3], x.b[0].x, x.b[0].y);
    multiply(sum, a[1][0], a[1][1], a[1][2], a[1][3], x.b[0].z, x.b[0].w);
}
#endif

__device__ __forceinline__ float total(const float* partial) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += partial[w * 16];
    return sum;
}

// The outputs of a tile, a lane each.
__device__ __forceinline__ void write_tile(const Arguments& a, const Walk& walk,
                                           const float* partial, float factor) {
    const int lane = threadIdx.x & 31, feature = walk.feature(0) + lane;
    if (lane >= 16 || feature >= a.segment[GATED ? 0 : walk.segment].num_rows) return;
    const Finish finish(a, walk, feature, 0);
    const float value = total(partial + lane) * factor;
    finish.write(a, value, GATED ? total(partial + WARPS * 16 + lane) * factor : 0.0f);
}
#endif

// Grid: any number of blocks up to the number of tiles. Dynamic shared memory, in this order: inputs,
// partial sums of two turns, scale and offset of the row, scratch of 2 * WARPS floats.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
linear_one(const GRID_CONSTANT Arguments a) {
#if __CUDA_ARCH__ >= 800
    extern __shared__ __align__(16) u8 memory[];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    constexpr int chunks = WARPS * CHUNKS * HALVES;  // of 32 inputs
    constexpr int partial_size = MATRICES * WARPS * 16;
    float* partial = (float*)(memory + INPUT_BYTES);
    float* row_scale = partial + 2 * partial_size;
    float* squares = row_scale + 2 * MAX_ROWS;  // of each warp's inputs

    Tables tables, next_tables;
    Ahead ahead(a, tables);
    Loads loads[DEPTH];
#pragma unroll
    for (int chunk = 0; chunk < DEPTH; chunk++) {
        loads[chunk] = Loads();
        ahead.load(a, chunk, loads[chunk]);
    }
    const NormWeights norm_weights(a, warp * WARP_INPUTS);
    allow_next_kernel();
    if (norm_of(a) == LAYER_NORM) touch_norm(a);
    wait_for_inputs();
    u8* own = memory + warp * (CHUNKS * HALVES * 64);
#if GROUP
    float2* own_sums = group_sums(memory, chunks, 1) + warp * (CHUNKS * HALVES);
#else
    float2* own_sums = nullptr;
#endif
    float inverse, excess;  // of this warp's products
    if (norm_of(a) == LAYER_NORM) {
        stage_inputs(a, chunks, memory, row_scale, row_scale + MAX_ROWS, squares);
        __syncthreads();
        inverse = row_scale[0], excess = warp == 0 ? row_scale[MAX_ROWS] : 0.0f;
    } else {
        const Staged staged = stage_own(a, norm_weights, warp * WARP_INPUTS, own, own_sums);
        inverse = staged.inverse, excess = GROUP ? 0.0f : warp_sum(staged.excess);
        if (norm_of(a) == RMS_NORM) {
            const float square = warp_sum(staged.square);
            if (lane == 0) squares[warp] = square;
        }
        __syncwarp();
    }

    const u32 operands = (u32)__cvta_generic_to_shared(own) + (lane & 3) * 16;
    const u32 sums = GROUP ? (u32)__cvta_generic_to_shared(own_sums) : 0;
    int number = 0;
    for (Walk walk(a); !walk.done(a); walk.next(a), number++) {
        if (number % WARPS == warp) touch_tile(a, walk);
        float sum[MATRICES][SUMS] = {};
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            const Inputs x(operands, sums, chunk);
#pragma unroll
            for (int m = 0; m < MATRICES; m++)
#if GROUP
                add_chunk(sum[m], x, loads[chunk % DEPTH].words[m], tables.of(m, chunk));
#else
                add_chunk(sum[m], x, loads[chunk % DEPTH].words[m]);
#endif
            if (chunk + DEPTH == CHUNKS) ahead.next(a, next_tables);
            ahead.load(a, (chunk + DEPTH) % CHUNKS, loads[chunk % DEPTH]);
        }
        tables = next_tables;
        // Two places in turn: who stores there again has passed the barrier of the turn between.
        float* place = partial + (number & 1) * partial_size;
        if ((lane & 3) == 0)
#pragma unroll
            for (int m = 0; m < MATRICES; m++)
#pragma unroll
                for (int h = 0; h < 2; h++)
                    place[(m * WARPS + warp) * 16 + (lane >> 2) + 8 * h] =
                        (sum[m][h * (SUMS / 2)] - excess) * inverse;
        __syncthreads();
        if (warp != number % WARPS) continue;
        float factor = 1.0f;
        if (norm_of(a) == RMS_NORM) {
            float square = 0.0f;
            for (int w = 0; w < WARPS; w++) square += squares[w];
            factor = rsqrtf(square / a.in_features + a.eps);
        }
        write_tile(a, walk, place, factor);
    }
#endif
}
