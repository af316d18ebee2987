// y = act(norm(x) @ W.T + bias) + residual for one row of x, W being integers of 8 or 4 bits in tiles
// with scales of groups: the decode step of one text.
//
// As in linear.cu, blocks walk over tiles of 16 output rows, their warps split the inputs, and float16
// products on matrix units are summed in float32. Half the bytes leave half the time for everything
// else, so this form has fewer instructions: a warp's chunks are neighbours, how many there are is
// compiled in (CHUNKS), and weights go straight into registers, DEPTH chunks ahead of their use, across
// the ends of tiles. The first of them are asked for before the inputs are ready. Integers are used with
// what the packing adds to them; it is taken off with sums of the inputs (sums_of).
//
// Compute capability 8.0 on. Defines: ACTIVATION_TYPE, WARPS, CHUNKS (of a warp, a multiple of DEPTH),
// DEPTH, BLOCKS (of a multiprocessor), GATED, RAGGED (the inputs are not all chunks of all warps), BITS,
// GROUP, ZEROS, NORM, ACTIVATION.
#define ROWS 1
#define MAX_ROWS 8
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
#define INPUT_BYTES (WARPS * CHUNKS * HALVES * 72)  // operands, and sums behind them

#if __CUDA_ARCH__ >= 800
// The weights of a chunk on their way.
struct Loads {
    uint4 words[MATRICES];
    Table tables[MATRICES];
};

// Which chunks are asked for next.
struct Ahead {
    Walk walk;
    const u8* from[MATRICES];
    const u8* tables[MATRICES];
    bool is_done;
    __device__ __forceinline__ Ahead(const Arguments& a) : walk(a) { begin(a); }
    __device__ __forceinline__ void begin(const Arguments& a) {
        is_done = walk.done(a);
        if (is_done) return;
        const int first = (threadIdx.x >> 5) * CHUNKS;
#pragma unroll
        for (int m = 0; m < MATRICES; m++) {
            from[m] = walk.weights(a, m, first);
            // A unit may begin in the middle of a warp's chunks, so only the tile's address is kept.
            tables[m] = walk.tables(a, m, 0);
        }
    }
    __device__ __forceinline__ void next(const Arguments& a) {
        walk.next(a);
        begin(a);
    }
    __device__ __forceinline__ void load(const Arguments& a, int chunk, Loads& to) const {
        if (is_done) return;
        const int place = (threadIdx.x >> 5) * CHUNKS + chunk;
        if (RAGGED && place >= a.num_chunks) {
            // Their inputs are zeros; but a scale that is left from elsewhere might not be finite.
            to = Loads();
            return;
        }
#pragma unroll
        for (int m = 0; m < MATRICES; m++) {
            to.words[m] = load_stream((const uint4*)(from[m] + chunk * 512));
            to.tables[m] = *(const Table*)(tables[m] + place / UNIT_CHUNKS * UNIT_BYTES);
        }
    }
};

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
    float2 sums[HALVES];
    __device__ __forceinline__ Inputs(u32 operands, u32 group_sums, int chunk) {
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                         : "=r"(b[half].x), "=r"(b[half].y), "=r"(b[half].z), "=r"(b[half].w)
                         : "r"(operands + (chunk * HALVES + half) * 64));
            asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];"
                         : "=f"(sums[half].x), "=f"(sums[half].y)
                         : "r"(group_sums + (chunk * HALVES + half) * 8));
        }
    }
};

// Adds the products of a chunk to those of the rows g and g + 8; lanes with c = 0 hold them.
__device__ __forceinline__ void add_chunk(float (&sum)[2], const Inputs& x, const uint4& w,
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

// Grid: any number of blocks up to the number of tiles. Dynamic shared memory, in this
// order: inputs, partial sums of two turns, scale and offset of the row, scratch of 2 * WARPS floats.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
linear_one(const GRID_CONSTANT Arguments a) {
#if __CUDA_ARCH__ >= 800
    extern __shared__ __align__(16) u8 memory[];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    constexpr int chunks = WARPS * CHUNKS * HALVES;  // of 32 inputs
    constexpr int partial_size = MATRICES * WARPS * 16;
    float* partial = (float*)(memory + INPUT_BYTES);
    float* row_scale = partial + 2 * partial_size;
    float* row_offset = row_scale + MAX_ROWS;

    Ahead ahead(a);
    Loads loads[DEPTH];
#pragma unroll
    for (int chunk = 0; chunk < DEPTH; chunk++) ahead.load(a, chunk, loads[chunk]);
    allow_next_kernel();
    touch_norm(a);
    wait_for_inputs();
    stage_inputs(a, chunks, memory, row_scale, row_offset, row_offset + MAX_ROWS);
    __syncthreads();

    const u32 inputs = (u32)__cvta_generic_to_shared(memory);
    const u32 operands = inputs + warp * (CHUNKS * HALVES * 64) + (lane & 3) * 16;
    const u32 sums = inputs + chunks * 64 + warp * (CHUNKS * HALVES * 8);
    int number = 0;
    for (Walk walk(a); !walk.done(a); walk.next(a), number++) {
        if (number % WARPS == warp) touch_tile(a, walk);
        float sum[MATRICES][2] = {};
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            const Inputs x(operands, sums, chunk);
#pragma unroll
            for (int m = 0; m < MATRICES; m++)
                add_chunk(sum[m], x, loads[chunk % DEPTH].words[m], loads[chunk % DEPTH].tables[m]);
            if (chunk + DEPTH == CHUNKS) ahead.next(a);
            ahead.load(a, (chunk + DEPTH) % CHUNKS, loads[chunk % DEPTH]);
        }
        // Two places in turn: who stores there again has passed the barrier of the turn between.
        float* place = partial + (number & 1) * partial_size;
        if ((lane & 3) == 0)
#pragma unroll
            for (int m = 0; m < MATRICES; m++)
#pragma unroll
                for (int h = 0; h < 2; h++)
                    place[(m * WARPS + warp) * 16 + (lane >> 2) + 8 * h] = sum[m][h];
        __syncthreads();
        if (warp == number % WARPS) write_tile(a, walk, place, row_scale[0]);
    }
#endif
}
