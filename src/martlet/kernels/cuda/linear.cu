// y = act(norm(x) @ W.T + bias) + residual for few rows of x, W being integers of 8 or 4 bits in
// tiles: decoding.
//
// Bound by reading W once. A block of WARPS warps owns a tile of 16 output rows and splits its
// inputs; blocks walk over the tiles of up to three matrices with the same input (q, k and v). In
// the gated form they walk over the same tile of two matrices: act(gate) * up. Every thread keeps
// STAGES loads of 16 bytes in flight, which are its own operand as it comes, so that no thread waits
// for another before a tile is done; the first of them are issued before the inputs are ready, while
// the kernel before still runs.
//
// MATRIX_UNITS 1: float16 products with float32 sums (mma), exact integers times the activation
// rounded to float16 under a power-of-two scale a row. MATRIX_UNITS 0: dp4a, the activation rounded
// to int8 with one scale for every 32 inputs.
//
// Where groups of inputs have scales of their own (GROUP), these come along with the weights.
#include "linear_walk.cuh"
#if MATRIX_UNITS
#include "linear_float16.cuh"
#else
#include "linear_dp4a.cuh"
#endif

#define SLOT_BYTES (512 + 8 * TABLE_BYTES)  // of a step and a matrix: weights, and their tables

// A chunk's weights and what they stand for, in registers.
struct Chunk {
    uint4 words;
#if GROUP
    Table table;
#endif
};

__device__ __forceinline__ void add_chunk(Accumulator& sum, const Operands& x, const Chunk& chunk) {
#if GROUP
    sum.add(x, chunk.words, chunk.table);
#else
    sum.add(x, chunk.words);
#endif
}

#if __CUDA_ARCH__ >= 800
// The loads of one thread, STAGES ahead of their use, across the ends of tiles. BATCH of them are
// waited for together.
struct Ring {
    const u8* memory;  // of this thread's first slot
    u32 address;       // the same in the window of shared memory
    const u8* from[MATRICES];
#if GROUP
    const u8* tables[MATRICES];
#endif
    Walk walk;
    int steps, left;  // of a tile; of this one
    u32 slot;         // bytes behind the first

    __device__ __forceinline__ Ring(const Arguments& a, u8* shared, int steps_of_tile)
        : walk(a), steps(steps_of_tile), slot(0) {
        memory =
            shared + (threadIdx.x >> 5) * (STAGES * MATRICES * SLOT_BYTES) + (threadIdx.x & 31) * 16;
        address = (u32)__cvta_generic_to_shared(memory);
        begin_tile(a);
#pragma unroll
        for (int s = 0; s < STAGES; s += BATCH) issue(a, s * (MATRICES * SLOT_BYTES));
    }
    __device__ __forceinline__ void begin_tile(const Arguments& a) {
        left = walk.done(a) ? 0 : steps;
        if (left)
#pragma unroll
            for (int m = 0; m < MATRICES; m++) {
                from[m] = walk.weights(a, m, threadIdx.x >> 5);
#if GROUP
                tables[m] = walk.tables(a, m, threadIdx.x >> 5);
#endif
            }
    }
    __device__ __forceinline__ void issue(const Arguments& a, u32 to) {
        if (left) {
#pragma unroll
            for (int s = 0; s < BATCH; s++) {
#if RAGGED
                // Behind the end of a row there is nothing to read: its inputs are zeros.
                const int chunk = (steps - left + s) * WARPS + (int)(threadIdx.x >> 5);
                if (chunk >= a.num_chunks) {
#if GROUP
                    // But no scale may be what memory held: it might not be finite.
#pragma unroll
                    for (int m = 0; m < MATRICES; m++)
                        copy_table(table_address(to, s, m), tables[m], 0);
#endif
                    continue;
                }
#endif
#pragma unroll
                for (int m = 0; m < MATRICES; m++) {
                    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                                     address + to + (s * MATRICES + m) * SLOT_BYTES),
                                 "l"(from[m] + s * (WARPS * 512))
                                 : "memory");
#if GROUP
                    copy_table(table_address(to, s, m),
                               tables[m] + s * (WARPS / UNIT_CHUNKS * UNIT_BYTES), TABLE_BYTES);
#endif
                }
            }
#pragma unroll
            for (int m = 0; m < MATRICES; m++) {
                from[m] += BATCH * WARPS * 512;
#if GROUP
                tables[m] += BATCH * (WARPS / UNIT_CHUNKS) * UNIT_BYTES;
#endif
            }
            left -= BATCH;
            if (left == 0) {
                walk.next(a);
                begin_tile(a);
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
#if GROUP
    // From a lane's weights to the table of its rows.
    static __device__ __forceinline__ u32 table_offset() {
        const u32 lane = threadIdx.x & 31;
        return 512 - lane * 16 + (lane >> 2) * TABLE_BYTES;
    }
    __device__ __forceinline__ u32 table_address(u32 to, int s, int m) const {
        return address + to + (s * MATRICES + m) * SLOT_BYTES + table_offset();
    }
#endif
    __device__ __forceinline__ void take(Chunk (&chunks)[BATCH][MATRICES]) const {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES / BATCH - 1) : "memory");
        if (GROUP) __syncwarp();  // the tables that other lanes copied
#pragma unroll
        for (int s = 0; s < BATCH; s++)
#pragma unroll
            for (int m = 0; m < MATRICES; m++) {
                const u8* at = memory + slot + (s * MATRICES + m) * SLOT_BYTES;
                chunks[s][m].words = *(const uint4*)at;
#if GROUP
                chunks[s][m].table = *(const Table*)(at + table_offset());
#endif
            }
    }
    __device__ __forceinline__ void refill(const Arguments& a) {
        if (GROUP) __syncwarp();  // all lanes have read what is now overwritten
        issue(a, slot);
        slot += BATCH * MATRICES * SLOT_BYTES;
        if (slot == STAGES * MATRICES * SLOT_BYTES) slot = 0;
    }
};
#endif

// Sums of the warps for a tile lie in two places in turn. One warp adds them up and writes the tile
// while the others go on; they wait for it only when they are two tiles ahead. Barriers 1 and 2 say
// that a place is full, 3 and 4 that it is empty again.
template <int FIRST>
__device__ __forceinline__ void arrive(int place) {
    if (place)
        asm volatile("bar.arrive %0, %1;" ::"n"(FIRST + 1), "n"(THREADS) : "memory");
    else
        asm volatile("bar.arrive %0, %1;" ::"n"(FIRST), "n"(THREADS) : "memory");
}

template <int FIRST>
__device__ __forceinline__ void wait(int place) {
    if (place)
        asm volatile("bar.sync %0, %1;" ::"n"(FIRST + 1), "n"(THREADS) : "memory");
    else
        asm volatile("bar.sync %0, %1;" ::"n"(FIRST), "n"(THREADS) : "memory");
}

constexpr int FULL = 1, EMPTY = 3;

__device__ __forceinline__ float total(const float* partial, int rows, int index) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += partial[w * 16 * rows + index];
    return sum;
}

__device__ __forceinline__ void write_tile(const Arguments& a, const Walk& walk,
                                           const float* partial, const float* row_scale,
                                           const float* row_offset) {
    const int num_rows = a.segment[GATED ? 0 : walk.segment].num_rows;
    for (int index = threadIdx.x & 31; index < 16 * rows_of(a); index += 32) {
        const int row = index % rows_of(a), feature = walk.feature(0) + index / rows_of(a);
        if (feature >= num_rows) continue;
        const Finish finish(a, walk, feature, row);
        const float offset = row_offset[row];
        const float value = (total(partial, rows_of(a), index) - offset) * row_scale[row];
        float other = 0.0f;
        if (GATED)
            other = (total(partial + WARPS * 16 * rows_of(a), rows_of(a), index) - offset) *
                    row_scale[row];
        finish.write(a, value, other);
    }
}

// Grid: any number of blocks up to the number of tiles. Dynamic shared memory, in this order: ring
// (compute capability 8.0 on), inputs, partial sums of two tiles, scales and offsets of the rows, scratch of
// 2 * WARPS floats.
extern "C" __global__ void __launch_bounds__(THREADS) linear(const GRID_CONSTANT Arguments a) {
    extern __shared__ __align__(16) u8 memory[];
    const int warp = threadIdx.x >> 5;
    const int step_chunks = WARPS * BATCH;
    const int steps = (a.num_chunks + step_chunks - 1) / step_chunks * BATCH;
    const int chunks = steps * WARPS * HALVES;  // of 32 inputs
#if __CUDA_ARCH__ >= 800
    u8* staged = memory + WARPS * STAGES * MATRICES * SLOT_BYTES;
    Ring ring(a, memory, steps);
#else
    u8* staged = memory;
#endif
    const int partial_size = MATRICES * WARPS * 16 * rows_of(a);
    float* partial = (float*)(staged + ((INPUT_BYTES(chunks, rows_of(a)) + 15) & ~15));
    float* row_scale = partial + 2 * partial_size;

    allow_next_kernel();
    touch_norm(a);
    wait_for_inputs();
    float* row_offset = row_scale + MAX_ROWS;
    stage_inputs(a, chunks, staged, row_scale, row_offset, row_offset + MAX_ROWS);
    __syncthreads();

    const Inputs inputs(staged, rows_of(a), chunks);
    int number = 0;
    for (Walk walk(a); !walk.done(a); walk.next(a), number++) {
        if (number % WARPS == warp) touch_tile(a, walk);
        Accumulator sum[MATRICES];
#pragma unroll
        for (int m = 0; m < MATRICES; m++) sum[m].clear();
#if __CUDA_ARCH__ >= 800
#pragma unroll 2
        for (int step = 0; step < steps; step += BATCH) {
            Operands operands[BATCH];
            Chunk weights[BATCH][MATRICES];
#pragma unroll
            for (int s = 0; s < BATCH; s++) inputs.load(step + s, operands[s]);
            ring.take(weights);
#pragma unroll
            for (int s = 0; s < BATCH; s++)
#pragma unroll
                for (int m = 0; m < MATRICES; m++) add_chunk(sum[m], operands[s], weights[s][m]);
            ring.refill(a);
        }
#else
        const u8* from[MATRICES];
#pragma unroll
        for (int m = 0; m < MATRICES; m++) from[m] = walk.weights(a, m, threadIdx.x >> 5);
#if GROUP
        const u8* tables[MATRICES];
#pragma unroll
        for (int m = 0; m < MATRICES; m++) tables[m] = walk.tables(a, m, threadIdx.x >> 5);
#endif
        for (int step = 0; step < steps; step += AHEAD) {
            Chunk weights[AHEAD][MATRICES];
#pragma unroll
            for (int s = 0; s < AHEAD; s++)
#pragma unroll
                for (int m = 0; m < MATRICES; m++) {
                    weights[s][m] = Chunk();
                    if ((step + s) * WARPS + warp >= a.num_chunks) continue;
                    weights[s][m].words =
                        load_stream((const uint4*)(from[m] + (size_t)(step + s) * WARPS * 512));
#if GROUP
                    weights[s][m].table = *(const Table*)(
                        tables[m] + (size_t)(step + s) * (WARPS / UNIT_CHUNKS) * UNIT_BYTES);
#endif
                }
#pragma unroll
            for (int s = 0; s < AHEAD; s++) {
                if (step + s >= steps) break;
                Operands operands;
                inputs.load(step + s, operands);
#pragma unroll
                for (int m = 0; m < MATRICES; m++) add_chunk(sum[m], operands, weights[s][m]);
            }
        }
#endif
        const int place = number & 1, writer = number % WARPS;
        float* mine = partial + place * partial_size;
        if (number >= 2 && (number - 2) % WARPS != warp) wait<EMPTY>(place);
#pragma unroll
        for (int m = 0; m < MATRICES; m++)
            sum[m].store(mine + (m * WARPS + warp) * 16 * rows_of(a), rows_of(a));
        if (warp != writer) {
            arrive<FULL>(place);
            continue;
        }
        wait<FULL>(place);
        write_tile(a, walk, mine, row_scale, row_offset);
        arrive<EMPTY>(place);
    }
}
