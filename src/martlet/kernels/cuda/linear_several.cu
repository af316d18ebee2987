// y = act(x @ W.T + bias) + residual for several rows of x, up to 16: the step of a batch.
//
// As in linear.cu a block of WARPS warps owns tiles of 16 output rows and splits their inputs, and W
// is read once through a ring of STAGES. But x comes as float16 rows, normalised and scaled by
// round_rows.cu where they were not float16 before, so that a row costs a block no arithmetic. A warp
// reads the inputs of its own chunks only: it copies them by itself, a step's inputs with the step's
// weights, and no warp waits for another before the sums of a tile are joined.
//
// STREAMED 0: inputs stay in shared memory for all tiles of the block. STREAMED 1: they go through
// the ring too, however many there are, and are read again for the next tiles; two tiles at a time
// (those of gate and up, else neighbours) share each reading.
//
// Where groups of inputs have scales of their own (GROUP), they come with the weights, as in linear.cu.
//
// Compute capability 8.0 on. Defines: ACTIVATION_TYPE (of y, bias and residual), WARPS (a power of
// two), STAGES, GATED, STREAMED, MAX_ROWS (8 or 16), RAGGED (the inputs are no whole number of BATCH
// steps of all warps), ACTIVATION.
#ifndef STREAMED
#define STREAMED 0
#endif
#define PAIRED (STREAMED && !GATED)
#include "linear_groups.cuh"
#include "linear_walk.cuh"

#define HALF_BYTES (MAX_ROWS * 64)             // 32 inputs of a step: [row] of 64 bytes
#define SLOT_BYTES (HALVES * HALF_BYTES)       // inputs of a step
#define CHUNK_BYTES (512 + 8 * TABLE_BYTES)    // weights of a step and a matrix, and their tables
#define PARTIAL_STRIDE (MAX_ROWS + 2) // floats from one output to the next: other banks
#define PARTIAL_SIZE (WARPS * 16 * PARTIAL_STRIDE)

#if __CUDA_ARCH__ >= 800
// Copies 16 bytes, or writes zeros where `bytes` is 0.
__device__ __forceinline__ void copy16(u32 to, const u8* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ uint2 load_shared8(u32 from) {
    uint2 to;
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(to.x), "=r"(to.y) : "r"(from) : "memory");
    return to;
}

__device__ __forceinline__ uint4 load_shared16(u32 from) {
    uint4 to;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to.x), "=r"(to.y), "=r"(to.z), "=r"(to.w)
                 : "r"(from)
                 : "memory");
    return to;
}

// This thread's weights on their way: its own 16 bytes of each chunk of its warp, as in linear.cu.
struct WeightRing {
    u32 address;  // of the first slot
    const u8* from[MATRICES];
#if GROUP
    const u8* tables[MATRICES];
    u32 table;  // of the first slot
#endif
    Walk walk;
    int steps, left;  // of a tile; of those not asked for yet
    u32 slot;         // that is computed next, bytes behind the first

    __device__ __forceinline__ WeightRing(const Arguments& a, u8* shared, int steps_of_tile)
        : walk(a), steps(steps_of_tile), slot(0) {
        const u8* first = shared + (threadIdx.x >> 5) * (STAGES * MATRICES * CHUNK_BYTES);
        address = (u32)__cvta_generic_to_shared(first) + (threadIdx.x & 31) * 16;
#if GROUP
        table = (u32)__cvta_generic_to_shared(first) + 512 + ((threadIdx.x & 31) >> 2) * TABLE_BYTES;
#endif
        begin_tile(a);
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
        if (left == 0) return;
#pragma unroll
        for (int s = 0; s < BATCH; s++) {
            // Behind the end of a row there is nothing to read: its inputs are zeros.
            const bool is_there =
                !RAGGED || (steps - left + s) * WARPS + (int)(threadIdx.x >> 5) < a.num_chunks;
#if GROUP
            // But no scale may be what memory held: it might not be finite.
#pragma unroll
            for (int m = 0; m < MATRICES; m++)
                copy_table(table + to + (s * MATRICES + m) * CHUNK_BYTES,
                           tables[m] + (is_there ? s * (WARPS / UNIT_CHUNKS * UNIT_BYTES) : 0),
                           is_there ? TABLE_BYTES : 0);
#endif
            if (!is_there) continue;
#pragma unroll
            for (int m = 0; m < MATRICES; m++)
                copy16(address + to + (s * MATRICES + m) * CHUNK_BYTES, from[m] + s * (WARPS * 512),
                       16);
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
    __device__ __forceinline__ void load(uint4 (&weights)[BATCH][MATRICES]) const {
#pragma unroll
        for (int s = 0; s < BATCH; s++)
#pragma unroll
            for (int m = 0; m < MATRICES; m++)
                weights[s][m] = load_shared16(address + slot + (s * MATRICES + m) * CHUNK_BYTES);
    }
#if GROUP
    __device__ __forceinline__ void load_tables(Table (&to)[BATCH][MATRICES]) const {
#pragma unroll
        for (int s = 0; s < BATCH; s++)
#pragma unroll
            for (int m = 0; m < MATRICES; m++)
                load_table(to[s][m], table + slot + (s * MATRICES + m) * CHUNK_BYTES);
    }
#endif
    __device__ __forceinline__ void advance() {
        slot += BATCH * MATRICES * CHUNK_BYTES;
        if (slot == STAGES * MATRICES * CHUNK_BYTES) slot = 0;
    }
};

// The inputs of this warp's chunks. A lane copies 16 bytes of a row, and reads two times 8 for each
// eight rows; every second pair of rows has its halves exchanged, so that reads meet no bank twice.
struct RowRing {
    const u8* from;     // of the step that is asked for next
    u32 address;        // where this lane's first copy goes
    u32 first, second;  // where it reads inputs of the first and second 16 of a chunk
    u32 to, slot, end;  // of copies, of reads, of all slots: bytes behind the first
    int steps, step, passes;  // of a tile, asked for of this one, tiles to go
    int row, rows, input, row_bytes;

    __device__ __forceinline__ RowRing(const Arguments& a, u8* shared, int steps_of_tile, int tiles)
        : to(0), slot(0), steps(steps_of_tile), step(0), passes(STREAMED ? tiles : 1) {
        const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
        const int part = lane & 3, g = lane >> 2;
        row = g, rows = rows_of(a), row_bytes = a.in_features * 2;
        input = warp * CHUNK_INPUTS + part * 8;
        from = (const u8*)a.x + (size_t)row * row_bytes + input * 2;
        end = (STREAMED ? STAGES : steps) * SLOT_BYTES;
        const u32 own = (u32)__cvta_generic_to_shared(shared) + warp * end + g * 64;
        const u32 turn = g & 2, inside = (part >> 1) * 16 + (part & 1) * 8;
        address = own + (part ^ turn) * 16;
        first = own + inside + turn * 16;
        second = own + inside + (turn ^ 2) * 16;
    }
    __device__ __forceinline__ void issue(const Arguments& a) {
        if (passes == 0) return;
#pragma unroll
        for (int s = 0; s < BATCH * HALVES; s++) {
            const int more = s / HALVES * (WARPS * CHUNK_INPUTS) + s % HALVES * 32;  // inputs
            int bytes = 16, ahead = more * 2;
            if (RAGGED && step * (WARPS * CHUNK_INPUTS) + more + input >= a.in_features)
                bytes = 0, ahead = -(step * (WARPS * CHUNK_INPUTS) + input) * 2;
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; n++)
                if (row + 8 * n < rows)
                    copy16(address + to + s * HALF_BYTES + n * 512,
                           from + ahead + n * 8 * row_bytes, bytes);
        }
        from += BATCH * WARPS * CHUNK_INPUTS * 2;
        step += BATCH;
        if (step == steps) {
            from -= (size_t)steps * (WARPS * CHUNK_INPUTS * 2);
            step = 0, passes--;
        }
        to += BATCH * SLOT_BYTES;
        if (to == end) to = 0;
    }
    // Rows that are not there are what lies in their place: their sums are not written.
    __device__ __forceinline__ void load(uint4 (&operands)[BATCH][HALVES][COLUMN_TILES]) const {
#pragma unroll
        for (int s = 0; s < BATCH * HALVES; s++)
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; n++) {
                const u32 ahead = slot + s * HALF_BYTES + n * 512;
                const uint2 x = load_shared8(first + ahead), y = load_shared8(second + ahead);
                operands[s / HALVES][s % HALVES][n] = make_uint4(x.x, x.y, y.x, y.y);
            }
    }
    __device__ __forceinline__ void advance() {
        slot += BATCH * SLOT_BYTES;
        if (slot == end) slot = 0;
    }
};

#if GROUP
// Sums of the inputs of each group, for the two columns whose products a lane holds: a zero other than
// the middle of the integers is taken off with them. The units give them for a row of ones.
struct Totals {
#if ZEROS
    float of[CHUNK_GROUPS][COLUMN_TILES][2];
    __device__ __forceinline__ void take(const uint4 (&b)[HALVES][COLUMN_TILES]) {
        constexpr u32 ones = 0x3c003c00u;
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++)
#pragma unroll
            for (int group = 0; group < CHUNK_GROUPS; group++) {
                float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
                for (int half = group * HALVES / CHUNK_GROUPS;
                     half < (group + 1) * HALVES / CHUNK_GROUPS; half++) {
                    multiply(sum, ones, ones, ones, ones, b[half][n].x, b[half][n].y);
                    multiply(sum, ones, ones, ones, ones, b[half][n].z, b[half][n].w);
                }
                of[group][n][0] = sum[0], of[group][n][1] = sum[1];
            }
    }
#else
    __device__ __forceinline__ void take(const uint4 (&)[HALVES][COLUMN_TILES]) {}
#endif
};
#endif

struct Sums {
    float of[COLUMN_TILES][4];
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) of[n][i] = 0.0f;
    }
#if GROUP
    __device__ __forceinline__ void add(const uint4 (&b)[HALVES][COLUMN_TILES], const Totals& totals,
                                        const uint4& w, const Table& t) {
        u32 a[STEPS16][4];
        left_operands<true>(w, a);
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++) {
            float part[HALVES][4];
#pragma unroll
            for (int half = 0; half < HALVES; half++) {
#pragma unroll
                for (int i = 0; i < 4; i++) part[half][i] = 0.0f;
                multiply_half(part[half], a, half, b[half][n]);
            }
#pragma unroll
            for (int group = 0; group < CHUNK_GROUPS; group++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float value = part[group][i];
                    if (HALVES > CHUNK_GROUPS) value += part[HALVES - 1][i];
#if ZEROS
                    value = fmaf(MIDDLE - t.zero(group, i >> 1), totals.of[group][n][i & 1], value);
#endif
                    of[n][i] = fmaf(t.scale(group, i >> 1), value, of[n][i]);
                }
        }
    }
#else
    __device__ __forceinline__ void add(const uint4 (&b)[HALVES][COLUMN_TILES], const uint4& w) {
        u32 a[STEPS16][4];
        left_operands<true>(w, a);
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++)
            multiply(of[n], a[0][0], a[0][1], a[0][2], a[0][3], b[0][n].x, b[0][n].y);
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++)
            multiply(of[n], a[1][0], a[1][1], a[1][2], a[1][3], b[0][n].z, b[0][n].w);
    }
#endif
    // partial: (16, PARTIAL_STRIDE) of this warp
    __device__ __forceinline__ void store(float* partial) const {
        const int g = (threadIdx.x & 31) >> 2, c = threadIdx.x & 3;
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                *(float2*)(partial + (g + 8 * h) * PARTIAL_STRIDE + 8 * n + 2 * c) =
                    make_float2(of[n][2 * h], of[n][2 * h + 1]);
    }
};

__device__ __forceinline__ float total(const float* partial) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += partial[w * 16 * PARTIAL_STRIDE];
    return sum;
}

// An output a thread, from another warp on for each tile.
__device__ __forceinline__ void write_tiles(const Arguments& a, const Walk& walk, int number,
                                            const float* partial, const float* row_scale) {
    const int outputs = 16 * rows_of(a), count = outputs * (PAIRED + 1);
    const int num_rows = a.segment[GATED ? 0 : walk.segment].num_rows;
    const int start = number * ((count + 31) & ~31);
    for (int index = (threadIdx.x - start) & (THREADS - 1); index < count; index += THREADS) {
        const int tile = index >= outputs, place = (index - tile * outputs) & 15;
        const int row = (index - tile * outputs) >> 4, feature = walk.feature(tile) + place;
        if (feature >= num_rows) continue;
        const Finish finish(a, walk, feature, row);
        const float factor = row_scale ? row_scale[row] : 1.0f;
        const float* mine = partial + place * PARTIAL_STRIDE + row;
        const float value = total(mine + tile * PARTIAL_SIZE) * factor;
        finish.write(a, value, GATED ? total(mine + PARTIAL_SIZE) * factor : 0.0f);
    }
}
#endif

// Grid: any number of blocks up to the number of tiles, or of pairs. x: (rows, in_features) float16,
// to be multiplied by row_scale where that is not null. Dynamic shared memory, in this order: the
// ring of weights, inputs, partial sums of two turns.
//
// A block a multiprocessor is asked for: without that, the compiler saves registers for more of them
// by loading each operand just before its product.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
linear_several(const GRID_CONSTANT Arguments a, const float* row_scale) {
#if __CUDA_ARCH__ >= 800
    extern __shared__ __align__(128) u8 memory[];
    const int warp = threadIdx.x >> 5;
    constexpr int step_chunks = WARPS * BATCH;
    const int steps = (a.num_chunks + step_chunks - 1) / step_chunks * BATCH;
    WeightRing weights(a, memory, steps);
#pragma unroll
    for (int s = 0; s < STAGES; s += BATCH) {
        weights.issue(a, s * (MATRICES * CHUNK_BYTES));
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    allow_next_kernel();
    int units = Walk::units(a.segment[0]);
    for (int s = 1; s < a.num_segments && !GATED; s++) units += Walk::units(a.segment[s]);
    const int turns = (units - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
    u8* staged = memory + WARPS * STAGES * MATRICES * CHUNK_BYTES;
    RowRing rows(a, staged, steps, turns);
    wait_for_inputs();
    // As many groups as of weights: then the oldest but STAGES / BATCH - 1 are always those of the
    // step to compute, whether they brought inputs, weights or both.
#pragma unroll
    for (int s = 0; s < STAGES; s += BATCH) {
        rows.issue(a);
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    float* partial = (float*)(staged + WARPS * rows.end);
    int number = 0;
    for (Walk walk(a); !walk.done(a); walk.next(a), number++) {
        if (number % WARPS == warp) touch_tile(a, walk);
        Sums sum[MATRICES];
#pragma unroll
        for (int m = 0; m < MATRICES; m++) sum[m].clear();
#pragma unroll 2
        for (int step = 0; step < steps; step += BATCH) {
            uint4 operands[BATCH][HALVES][COLUMN_TILES], words[BATCH][MATRICES];
            asm volatile("cp.async.wait_group %0;" ::"n"(STAGES / BATCH - 1) : "memory");
            __syncwarp();  // the copies of the other lanes
            rows.load(operands);
            weights.load(words);
#if GROUP
            Table tables[BATCH][MATRICES];
            weights.load_tables(tables);
#pragma unroll
            for (int s = 0; s < BATCH; s++) {
                Totals totals;
                totals.take(operands[s]);
#pragma unroll
                for (int m = 0; m < MATRICES; m++)
                    sum[m].add(operands[s], totals, words[s][m], tables[s][m]);
            }
#else
#pragma unroll
            for (int s = 0; s < BATCH; s++)
#pragma unroll
                for (int m = 0; m < MATRICES; m++) sum[m].add(operands[s], words[s][m]);
#endif
            __syncwarp();  // all lanes have read what is now overwritten
            weights.issue(a, weights.slot);
            rows.issue(a);
            asm volatile("cp.async.commit_group;" ::: "memory");
            weights.advance();
            rows.advance();
        }
        // Two places in turn: who stores there again has passed the barrier of the turn between, and
        // so has everyone who read.
        float* place = partial + (number & 1) * (MATRICES * PARTIAL_SIZE);
#pragma unroll
        for (int m = 0; m < MATRICES; m++)
            sum[m].store(place + (m * WARPS + warp) * 16 * PARTIAL_STRIDE);
        __syncthreads();
        write_tiles(a, walk, number, place, row_scale);
    }
#endif
}
