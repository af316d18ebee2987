// y = act(norm(x) @ W.T + bias) + residual for few rows of x, W being int8 in tiles: decoding.
//
// Bound by reading W once. A block of WARPS warps owns a tile of 16 output rows and splits its
// inputs; blocks walk over the tiles of up to three matrices with the same input (q, k and v). In
// the gated form they walk over the same tile of two matrices: act(gate) * up. Every thread keeps
// STAGES loads of 16 bytes in flight, which are its own operand as it comes, so that no thread waits
// for another before a tile is done; the first of them are issued before the inputs are ready, while
// the kernel before still runs. For that a kernel takes less than half of a multiprocessor.
//
// MATRIX_UNITS 1: float16 products with float32 sums (mma), exact integers times the activation
// rounded to float16 under a power-of-two scale a row. MATRIX_UNITS 0: dp4a, the activation rounded
// to int8 with one scale for every 32 inputs.
#include "common.cuh"

#ifndef WARPS
#define WARPS 8
#endif
#ifndef STAGES
#define STAGES 8
#endif
#ifndef GATED
#define GATED 0
#endif
#ifndef MATRIX_UNITS
#define MATRIX_UNITS 1
#endif
// Rows of x: MAX_ROWS at most, a multiple of 8 for the matrix units.
#ifndef MAX_ROWS
#define MAX_ROWS 8
#endif
// Steps that are waited for and computed together; a tile is a whole number of them.
#ifndef BATCH
#define BATCH 2
#endif
// Whether a tile's inputs are no whole number of BATCH steps of all warps.
#ifndef RAGGED
#define RAGGED 1
#endif
// Loads in flight without asynchronous copies: they cost registers.
#define AHEAD 4

#define THREADS (WARPS * 32)
#define MATRICES (GATED + 1)
#define COLUMN_TILES (MAX_ROWS / 8)

enum Normalisation { NO_NORM = 0, RMS_NORM = 1, LAYER_NORM = 2 };
enum ActivationKind { IDENTITY = 0, GELU_TANH = 1, GELU = 2, RELU = 3, SILU = 4 };

struct Segment {
    const u8* tiles;
    const float* scale;
    const act_t* bias;
    int num_tiles;
    int num_rows;
};

struct Arguments {
    Segment segment[3];
    const act_t* x;          // (rows, in_features)
    const act_t* norm_weight;
    const act_t* norm_bias;
    const act_t* residual;   // (rows, out_features), may be y
    void* y;                 // (rows, out_features)
    int num_segments;
    int rows;
    int in_features;         // a multiple of 8
    int num_chunks;          // of 32 inputs, the last one padded
    int out_features;
    int norm;
    int activation;
    int is_y_float;
    float eps;
};

// What the host knows of a launch may be compiled in: less code is sooner there.
__device__ __forceinline__ int rows_of(const Arguments& a) {
#ifdef ROWS
    return ROWS;
#else
    return a.rows;
#endif
}

__device__ __forceinline__ int norm_of(const Arguments& a) {
#ifdef NORM
    return NORM;
#else
    return a.norm;
#endif
}

__device__ __forceinline__ int activation_of(const Arguments& a) {
#ifdef ACTIVATION
    return ACTIVATION;
#else
    return a.activation;
#endif
}

__device__ __forceinline__ float activate(float x, int activation) {
    switch (activation) {
        case GELU_TANH: {
            const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
            return 0.5f * x * (1.0f + tanhf(inner));
        }
        case GELU:
            return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
        case RELU:
            return fmaxf(x, 0.0f);
        case SILU:
            return x / (1.0f + expf(-x));
        default:
            return x;
    }
}

// Who works together on a row of inputs: as many warps each as there are for so many rows. All
// threads of the block take part in every exchange, also those that have no row left.
struct Team {
    float* scratch;  // 2 * WARPS floats
    int num_warps, uses;
    __device__ __forceinline__ Team(int rows, float* memory)
        : scratch(memory), num_warps(WARPS), uses(0) {
        while (num_warps > 1 && num_warps * rows > WARPS) num_warps >>= 1;
    }
    __device__ __forceinline__ int count() const { return WARPS / num_warps; }
    __device__ __forceinline__ int index() const { return (threadIdx.x >> 5) / num_warps; }
    __device__ __forceinline__ int size() const { return 32 * num_warps; }
    __device__ __forceinline__ int rank() const { return threadIdx.x % size(); }
    // The values of all warps of the team; two places in turn, so that one barrier is enough.
    __device__ __forceinline__ const float* exchange(float value) {
        float* place = scratch + (uses++ & 1) * WARPS;
        if ((threadIdx.x & 31) == 0) place[threadIdx.x >> 5] = value;
        __syncthreads();
        return place + index() * num_warps;
    }
    __device__ __forceinline__ float sum(float value) {
        const float* values = exchange(warp_sum(value));
        value = 0.0f;
        for (int w = 0; w < num_warps; w++) value += values[w];
        return value;
    }
    __device__ __forceinline__ float max(float value) {
        const float* values = exchange(warp_max(value));
        for (int w = 0; w < num_warps; w++) value = fmaxf(value, values[w]);
        return value;
    }
};

__device__ __forceinline__ void load_or_zero(const act_t* from, int at, int end, float (&v)[8]) {
    if (at < end) {
        load8(from + at, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = 0.0f;
}

__device__ __forceinline__ void statistics(const Arguments& a, const act_t* row, Team& team,
                                           float& mean, float& rstd) {
    mean = 0.0f, rstd = 1.0f;
    if (norm_of(a) == NO_NORM) return;
    const int step = team.size() * 8;
    float v[8];
    if (norm_of(a) == LAYER_NORM) {
        float sum = 0.0f;
        for (int at = team.rank() * 8; at < a.in_features; at += step) {
            load8(row + at, v);
#pragma unroll
            for (int i = 0; i < 8; i++) sum += v[i];
        }
        mean = team.sum(sum) / a.in_features;
    }
    float square = 0.0f;
#pragma unroll 4
    for (int at = team.rank() * 8; at < a.in_features; at += step) {
        load8(row + at, v);
#pragma unroll
        for (int i = 0; i < 8; i++) square = fmaf(v[i] - mean, v[i] - mean, square);
    }
    rstd = rsqrtf(team.sum(square) / a.in_features + a.eps);
}

// Eight normalised inputs of a row; zeros behind its end. The row is in the first-level cache when
// its statistics have been taken.
__device__ __forceinline__ void load_input(const Arguments& a, const act_t* row, int at, float mean,
                                           float rstd, float (&v)[8]) {
    load_or_zero(row, at, a.in_features, v);
    if (norm_of(a) == NO_NORM || at >= a.in_features) return;
    float weight[8], bias[8];
    load8(a.norm_weight + at, weight);
    if (norm_of(a) == LAYER_NORM) load8(a.norm_bias + at, bias);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        v[i] = (v[i] - mean) * rstd * weight[i];
        if (norm_of(a) == LAYER_NORM) v[i] += bias[i];
    }
}

#if MATRIX_UNITS
// Bytes 0 and 2 (even) or 1 and 3 (odd) of a word as two float16: 0x64 above a byte u is 1024 + u.
// So a weight w, stored as u = w + 128, becomes w + 1152; the sum of 1152 times the inputs is taken
// off at the end. It costs 4 bits of a float32 sum, which has 13 more than the result.
__device__ __forceinline__ u32 even_halves(u32 word) {
    return (word & 0x00ff00ffu) | 0x64006400u;
}

__device__ __forceinline__ u32 odd_halves(u32 word, u32 exponents) {
    u32 value;
    asm("prmt.b32 %0, %1, %2, 0x4341;" : "=r"(value) : "r"(word), "r"(exponents));
    return value;
}

constexpr float OFFSET = 1152.0f;

__device__ __forceinline__ void multiply(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0,
                                         u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#elif __CUDA_ARCH__ >= 750
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(b0));
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a2), "r"(a3), "r"(b1));
#endif
}

// The inputs as operands: [chunk][row][c] of 16 bytes, float16 of inputs 32 chunk + 16 q + 4 c + e in
// the order (q, e = 0 2 1 3); zeros up to a whole step of the block. Also OFFSET times their sums.
__device__ void stage_inputs(const Arguments& a, int chunks, u8* staged, float* row_scale,
                             float* row_offset, float* scratch) {
    Team team(rows_of(a), scratch);
    for (int first = 0; first < rows_of(a); first += team.count()) {
        const int r = min(first + team.index(), rows_of(a) - 1);  // some do the last row once more
        const act_t* row = a.x + (size_t)r * a.in_features;
        float mean, rstd, v[8];
        statistics(a, row, team, mean, rstd);
        float factor = 1.0f;
#if ACTIVATION_TYPE != 0
        // float16 has fewer exponents: a power of two brings the largest input to 2^13 .. 2^14.
        float largest = 0.0f;
        for (int at = team.rank() * 8; at < a.in_features; at += team.size() * 8) {
            load_input(a, row, at, mean, rstd, v);
#pragma unroll
            for (int i = 0; i < 8; i++) largest = fmaxf(largest, fabsf(v[i]));
        }
        largest = team.max(largest);
        int exponent = (int)(__float_as_uint(largest) >> 23) - 127;
        exponent = min(max(exponent, -100), 110);
        factor = __uint_as_float((u32)(127 + 13 - exponent) << 23);
        if (team.rank() == 0) row_scale[r] = __uint_as_float((u32)(127 - 13 + exponent) << 23);
#else
        if (team.rank() == 0) row_scale[r] = 1.0f;
#endif
        float sum = 0.0f;
#pragma unroll 2
        for (int at = team.rank() * 8; at < chunks * 32; at += team.size() * 8) {
            load_input(a, row, at, mean, rstd, v);
            const int chunk = at >> 5, q = (at >> 4) & 1, c = (at >> 2) & 3;
            u32 half[8], pair[4];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                half[i] = float_to_half(v[i] * factor);
                sum += half_to_float((u16)half[i]);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int even = 4 * (i >> 1) + (i & 1);
                pair[i] = half[even] | (half[even + 2] << 16);
            }
            u8* place = staged + ((chunk * rows_of(a) + r) * 4 + c) * 16 + q * 8;
            *(uint2*)place = make_uint2(pair[0], pair[1]);
            *(uint2*)(place + 16) = make_uint2(pair[2], pair[3]);
        }
        sum = team.sum(sum);
        if (team.rank() == 0) row_offset[r] = OFFSET * sum;
    }
}

struct Accumulator {
    float first[COLUMN_TILES][4];  // of the first 16 inputs of chunks
    float second[COLUMN_TILES][4];
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) first[n][i] = second[n][i] = 0.0f;
    }
    __device__ __forceinline__ void add(const uint4 (&b)[COLUMN_TILES], const uint4& w) {
        // Out of the compiler's sight, so that it stays in a register and the selector does not.
        u32 exponents;
        asm("mov.b32 %0, 0x64646464;" : "=r"(exponents));
        const u32 even[4] = {even_halves(w.x), even_halves(w.y), even_halves(w.z),
                             even_halves(w.w)};
        const u32 odd[4] = {odd_halves(w.x, exponents), odd_halves(w.y, exponents),
                            odd_halves(w.z, exponents), odd_halves(w.w, exponents)};
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++) {
            multiply(first[n], even[0], even[1], odd[0], odd[1], b[n].x, b[n].y);
            multiply(second[n], even[2], even[3], odd[2], odd[3], b[n].z, b[n].w);
        }
    }
    // partial: (16, rows) of this warp
    __device__ __forceinline__ void store(float* partial, int rows) const {
        const int g = (threadIdx.x & 31) >> 2, c = threadIdx.x & 3;
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int column = 8 * n + 2 * c + (i & 1);
                if (column < rows) partial[(g + 8 * (i >> 1)) * rows + column] =
                        first[n][i] + second[n][i];
            }
    }
};

typedef uint4 Operands[COLUMN_TILES];

// Where this thread finds its operands of one chunk after the other, WARPS chunks apart. Columns
// beyond the rows repeat the last row: their sums are not stored.
struct Inputs {
    const u8* from[COLUMN_TILES];
    int step_bytes;
    __device__ __forceinline__ Inputs(const u8* staged, int rows, int) {
        const int g = (threadIdx.x & 31) >> 2, c = threadIdx.x & 3, chunk = threadIdx.x >> 5;
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++)
            from[n] = staged + ((chunk * rows + min(8 * n + g, rows - 1)) * 4 + c) * 16;
        step_bytes = WARPS * rows * 64;
    }
    __device__ __forceinline__ void load(int step, Operands& b) const {
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++) b[n] = *(const uint4*)(from[n] + step * step_bytes);
    }
};
#define INPUT_BYTES(chunks, rows) ((chunks) * (rows) * 64)

#else  // dp4a

// The inputs as int8: [chunk][row] of 32 bytes in the order (c, q, e); scales behind them.
__device__ void stage_inputs(const Arguments& a, int chunks, u8* staged, float* row_scale,
                             float* row_offset, float* scratch) {
    float* scales = (float*)(staged + chunks * rows_of(a) * 32);
    Team team(rows_of(a), scratch);
    for (int first = 0; first < rows_of(a); first += team.count()) {
        const int r = min(first + team.index(), rows_of(a) - 1);  // some do the last row once more
        const act_t* row = a.x + (size_t)r * a.in_features;
        float mean, rstd, v[8];
        statistics(a, row, team, mean, rstd);
        if (team.rank() == 0) row_scale[r] = 1.0f, row_offset[r] = 0.0f;
        // Four neighbouring threads hold a chunk; all of a warp stay in the loop for the exchange.
        for (int base = 0; base < chunks * 32; base += team.size() * 8) {
            const int at = base + team.rank() * 8;
            load_input(a, row, at, mean, rstd, v);
            float largest = 0.0f;
#pragma unroll
            for (int i = 0; i < 8; i++) largest = fmaxf(largest, fabsf(v[i]));
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
            if (at >= chunks * 32) continue;
            const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
            u32 word[2] = {0, 0};
#pragma unroll
            for (int i = 0; i < 8; i++)
                word[i >> 2] |= ((u32)__float2int_rn(v[i] * inverse) & 255u) << (8 * (i & 3));
            const int chunk = at >> 5, q = (at >> 4) & 1, c = (at >> 2) & 3;
            u8* place = staged + (chunk * rows_of(a) + r) * 32 + c * 8 + q * 4;
            *(u32*)place = word[0];
            *(u32*)(place + 8) = word[1];
            if ((at & 31) == 0) scales[chunk * rows_of(a) + r] = largest / 127.0f;
        }
    }
}

struct Operand {
    uint2 word;
    float scale;
};

__device__ __forceinline__ int dot4(u32 a, u32 b, int sum) {
#if __CUDA_ARCH__ >= 610
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(sum));
#endif
    return sum;
}

struct Accumulator {
    float sum[MAX_ROWS][2];
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int r = 0; r < MAX_ROWS; r++) sum[r][0] = sum[r][1] = 0.0f;
    }
    __device__ __forceinline__ void add(const Operand (&b)[MAX_ROWS], const uint4& w) {
        // The bias of 128 turned back: the sign bit.
        const u32 s[4] = {w.x ^ 0x80808080u, w.y ^ 0x80808080u, w.z ^ 0x80808080u,
                          w.w ^ 0x80808080u};
#pragma unroll
        for (int r = 0; r < MAX_ROWS; r++) {
            const int upper = dot4(s[2], b[r].word.y, dot4(s[0], b[r].word.x, 0));
            const int lower = dot4(s[3], b[r].word.y, dot4(s[1], b[r].word.x, 0));
            sum[r][0] = fmaf((float)upper, b[r].scale, sum[r][0]);
            sum[r][1] = fmaf((float)lower, b[r].scale, sum[r][1]);
        }
    }
    __device__ __forceinline__ void store(float* partial, int rows) const {
        const int g = (threadIdx.x & 31) >> 2;
#pragma unroll
        for (int r = 0; r < MAX_ROWS; r++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float value = sum[r][h];
                value += __shfl_xor_sync(0xffffffffu, value, 1);
                value += __shfl_xor_sync(0xffffffffu, value, 2);
                if ((threadIdx.x & 3) == 0 && r < rows) partial[(g + 8 * h) * rows + r] = value;
            }
    }
};

typedef Operand Operands[MAX_ROWS];

// Where this thread finds its operands of one chunk after the other, WARPS chunks apart. Rows beyond
// the last repeat it: their sums are not stored.
struct Inputs {
    const u8* words;
    const float* scales;
    int rows;
    __device__ __forceinline__ Inputs(const u8* staged, int num_rows, int chunks) {
        const int chunk = threadIdx.x >> 5;
        words = staged + chunk * num_rows * 32 + (threadIdx.x & 3) * 8;
        scales = (const float*)(staged + chunks * num_rows * 32) + chunk * num_rows;
        rows = num_rows;
    }
    __device__ __forceinline__ void load(int step, Operands& b) const {
#pragma unroll
        for (int r = 0; r < MAX_ROWS; r++) {
            const int row = step * WARPS * rows + min(r, rows - 1);
            b[r].word = *(const uint2*)(words + row * 32);
            b[r].scale = scales[row];
        }
    }
};
#define INPUT_BYTES(chunks, rows) ((chunks) * (rows) * 36)
#endif

// Which tile a block is at. The tiles of all segments lie behind each other in the output.
struct Walk {
    int tile;  // inside the segment
    int segment;
    __device__ __forceinline__ Walk(const Arguments& a) : tile(blockIdx.x), segment(0) { settle(a); }
    __device__ __forceinline__ void settle(const Arguments& a) {
        if (GATED) {
            if (tile >= a.segment[0].num_tiles) segment = a.num_segments;
            return;
        }
        while (segment < a.num_segments && tile >= a.segment[segment].num_tiles)
            tile -= a.segment[segment++].num_tiles;
    }
    __device__ __forceinline__ void next(const Arguments& a) {
        tile += gridDim.x;
        settle(a);
    }
    __device__ __forceinline__ bool done(const Arguments& a) const {
        return segment >= a.num_segments;
    }
    // This thread's 16 bytes of the warp's first chunk.
    __device__ __forceinline__ const u8* weights(const Arguments& a, int matrix) const {
        const u8* tiles = a.segment[GATED ? matrix : segment].tiles;
        return tiles + ((size_t)tile * a.num_chunks + (threadIdx.x >> 5)) * 512 +
               (threadIdx.x & 31) * 16;
    }
};

#if __CUDA_ARCH__ >= 800
// The loads of one thread, STAGES ahead of their use, across the ends of tiles. BATCH of them are
// waited for together.
struct Ring {
    const u8* memory;  // of this thread's first slot
    u32 address;       // the same in the window of shared memory
    const u8* from[MATRICES];
    Walk walk;
    int steps, left;  // of a tile; of this one
    u32 slot;         // bytes behind the first

    __device__ __forceinline__ Ring(const Arguments& a, u8* shared, int steps_of_tile)
        : walk(a), steps(steps_of_tile), slot(0) {
        memory = shared + (threadIdx.x >> 5) * (STAGES * MATRICES * 512) + (threadIdx.x & 31) * 16;
        address = (u32)__cvta_generic_to_shared(memory);
        begin_tile(a);
#pragma unroll
        for (int s = 0; s < STAGES; s += BATCH) issue(a, s * (MATRICES * 512));
    }
    __device__ __forceinline__ void begin_tile(const Arguments& a) {
        left = walk.done(a) ? 0 : steps;
        if (left)
#pragma unroll
            for (int m = 0; m < MATRICES; m++) from[m] = walk.weights(a, m);
    }
    __device__ __forceinline__ void issue(const Arguments& a, u32 to) {
        if (left) {
#pragma unroll
            for (int s = 0; s < BATCH; s++) {
#if RAGGED
                // Behind the end of a row there is nothing to read: its inputs are zeros.
                const int chunk = (steps - left + s) * WARPS + (int)(threadIdx.x >> 5);
                if (chunk >= a.num_chunks) continue;
#endif
#pragma unroll
                for (int m = 0; m < MATRICES; m++)
                    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                                     address + to + (s * MATRICES + m) * 512),
                                 "l"(from[m] + s * (WARPS * 512))
                                 : "memory");
            }
#pragma unroll
            for (int m = 0; m < MATRICES; m++) from[m] += BATCH * WARPS * 512;
            left -= BATCH;
            if (left == 0) {
                walk.next(a);
                begin_tile(a);
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    __device__ __forceinline__ void take(uint4 (&weights)[BATCH][MATRICES]) const {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES / BATCH - 1) : "memory");
#pragma unroll
        for (int s = 0; s < BATCH; s++)
#pragma unroll
            for (int m = 0; m < MATRICES; m++)
                weights[s][m] = *(const uint4*)(memory + slot + (s * MATRICES + m) * 512);
    }
    __device__ __forceinline__ void refill(const Arguments& a) {
        issue(a, slot);
        slot += BATCH * MATRICES * 512;
        if (slot == STAGES * MATRICES * 512) slot = 0;
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

// What the end of a tile reads beside the sums, brought near while the tile is computed.
__device__ __forceinline__ void touch_tile(const Arguments& a, const Walk& walk) {
    const Segment& segment = a.segment[GATED ? 0 : walk.segment];
    const int first = walk.tile * 16, lane = threadIdx.x & 31;
    if (lane == 0) touch(segment.scale + first);
    if (GATED && lane == 1) touch(a.segment[1].scale + first);
    if (lane == 2 && segment.bias) touch(segment.bias + first);
    if (lane >= 16 && lane - 16 < rows_of(a) && a.residual) {
        int before = 0;
        for (int s = 0; s < walk.segment; s++) before += a.segment[s].num_rows;
        touch(a.residual + (size_t)(lane - 16) * a.out_features + before + first);
    }
}

__device__ __forceinline__ void touch_norm(const Arguments& a) {
    if (norm_of(a) == NO_NORM) return;
    constexpr int line = 128 / sizeof(act_t);
    for (int at = threadIdx.x * line; at < a.in_features; at += THREADS * line) {
        touch(a.norm_weight + at);
        if (norm_of(a) == LAYER_NORM) touch(a.norm_bias + at);
    }
}

__device__ __forceinline__ void write_tile(const Arguments& a, const Walk& walk,
                                           const float* partial, const float* row_scale,
                                           const float* row_offset) {
    const Segment& segment = a.segment[GATED ? 0 : walk.segment];
    int before = 0;
    for (int s = 0; s < walk.segment; s++) before += a.segment[s].num_rows;
    for (int index = threadIdx.x & 31; index < 16 * rows_of(a); index += 32) {
        const int row = index % rows_of(a), feature = walk.tile * 16 + index / rows_of(a);
        if (feature >= segment.num_rows) continue;
        const size_t at = (size_t)row * a.out_features + before + feature;
        // All that comes from memory is asked for before the first of it is used.
        const float scale = segment.scale[feature];
        const float other_scale = GATED ? a.segment[1].scale[feature] : 0.0f;
        const act_t bias = segment.bias ? segment.bias[feature] : from_float(0.0f);
        const act_t residual = a.residual ? a.residual[at] : from_float(0.0f);
        const float offset = row_offset[row];
        float value = (total(partial, rows_of(a), index) - offset) * row_scale[row];
        float other = 0.0f;
        if (GATED)
            other = (total(partial + WARPS * 16 * rows_of(a), rows_of(a), index) - offset) * row_scale[row];
        value = activate(value * scale + to_float(bias), activation_of(a));
        if (GATED) value *= other * other_scale;
        value += to_float(residual);
        if (a.is_y_float)
            ((float*)a.y)[at] = value;
        else
            ((act_t*)a.y)[at] = from_float(value);
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
    const int chunks = steps * WARPS;
#if __CUDA_ARCH__ >= 800
    u8* staged = memory + WARPS * STAGES * MATRICES * 512;
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
            uint4 weights[BATCH][MATRICES];
#pragma unroll
            for (int s = 0; s < BATCH; s++) inputs.load(step + s, operands[s]);
            ring.take(weights);
#pragma unroll
            for (int s = 0; s < BATCH; s++)
#pragma unroll
                for (int m = 0; m < MATRICES; m++) sum[m].add(operands[s], weights[s][m]);
            ring.refill(a);
        }
#else
        const u8* from[MATRICES];
#pragma unroll
        for (int m = 0; m < MATRICES; m++) from[m] = walk.weights(a, m);
        for (int step = 0; step < steps; step += AHEAD) {
            uint4 weights[AHEAD][MATRICES];
#pragma unroll
            for (int s = 0; s < AHEAD; s++)
#pragma unroll
                for (int m = 0; m < MATRICES; m++) {
                    weights[s][m] = make_uint4(0, 0, 0, 0);
                    if ((step + s) * WARPS + warp < a.num_chunks)
                        weights[s][m] =
                            load_stream((const uint4*)(from[m] + (size_t)(step + s) * WARPS * 512));
                }
#pragma unroll
            for (int s = 0; s < AHEAD; s++) {
                if (step + s >= steps) break;
                Operands operands;
                inputs.load(step + s, operands);
#pragma unroll
                for (int m = 0; m < MATRICES; m++) sum[m].add(operands, weights[s][m]);
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
