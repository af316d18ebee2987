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
#define BATCH 2
// Loads in flight without asynchronous copies: they cost registers.
#define AHEAD 4

#define THREADS (WARPS * 32)
#define MATRICES (GATED + 1)
#define COLUMN_TILES (MAX_ROWS / 8)

enum Normalisation { NO_NORM = 0, RMS_NORM = 1, LAYER_NORM = 2 };
enum Activation { IDENTITY = 0, GELU_TANH = 1, GELU = 2, RELU = 3, SILU = 4 };

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
    if (a.norm == NO_NORM) return;
    const int step = team.size() * 8;
    float v[8];
    if (a.norm == LAYER_NORM) {
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
    if (a.norm == NO_NORM || at >= a.in_features) return;
    float weight[8], bias[8];
    load8(a.norm_weight + at, weight);
    if (a.norm == LAYER_NORM) load8(a.norm_bias + at, bias);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        v[i] = (v[i] - mean) * rstd * weight[i];
        if (a.norm == LAYER_NORM) v[i] += bias[i];
    }
}

#if MATRIX_UNITS
// Bytes 0,1 (low) or 2,3 (high) of a word as two float16: 0x64 above a byte u is 1024 + u.
__device__ __forceinline__ u32 halves(u32 word, u32 selector) {
    u32 biased, exact;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(biased) : "r"(word), "r"(0x64646464u), "r"(selector));
    asm("sub.f16x2 %0, %1, %2;" : "=r"(exact) : "r"(biased), "r"(0x64806480u));
    return exact;
}

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
// the order (q, e); zeros up to a whole step of the block.
__device__ void stage_inputs(const Arguments& a, int chunks, u8* staged, float* row_scale,
                             float* scratch) {
    Team team(a.rows, scratch);
    for (int first = 0; first < a.rows; first += team.count()) {
        const int r = min(first + team.index(), a.rows - 1);  // some do the last row once more
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
#pragma unroll 2
        for (int at = team.rank() * 8; at < chunks * 32; at += team.size() * 8) {
            load_input(a, row, at, mean, rstd, v);
            const int chunk = at >> 5, q = (at >> 4) & 1, c = (at >> 2) & 3;
            u32 pair[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                pair[i] = (u32)float_to_half(v[2 * i] * factor) |
                          ((u32)float_to_half(v[2 * i + 1] * factor) << 16);
            u8* place = staged + ((chunk * a.rows + r) * 4 + c) * 16 + q * 8;
            *(uint2*)place = make_uint2(pair[0], pair[1]);
            *(uint2*)(place + 16) = make_uint2(pair[2], pair[3]);
        }
    }
}

struct Accumulator {
    float d[COLUMN_TILES][4];  // of even chunks of 16 inputs
    float odd[COLUMN_TILES][4];
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) d[n][i] = odd[n][i] = 0.0f;
    }
    __device__ __forceinline__ void add(const uint4 (&b)[COLUMN_TILES], const uint4& w) {
        const u32 low[4] = {halves(w.x, 0x4140), halves(w.y, 0x4140), halves(w.z, 0x4140),
                            halves(w.w, 0x4140)};
        const u32 high[4] = {halves(w.x, 0x4342), halves(w.y, 0x4342), halves(w.z, 0x4342),
                             halves(w.w, 0x4342)};
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++) {
            multiply(d[n], low[0], low[1], high[0], high[1], b[n].x, b[n].y);
            multiply(odd[n], low[2], low[3], high[2], high[3], b[n].z, b[n].w);
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
                if (column < rows) partial[(g + 8 * (i >> 1)) * rows + column] = d[n][i] + odd[n][i];
            }
    }
};

typedef uint4 Operands[COLUMN_TILES];

__device__ __forceinline__ void load_operands(const u8* staged, int chunk, int rows, int,
                                              Operands& b) {
    const int g = (threadIdx.x & 31) >> 2, c = threadIdx.x & 3;
#pragma unroll
    for (int n = 0; n < COLUMN_TILES; n++) {
        const int row = 8 * n + g;
        b[n] = make_uint4(0, 0, 0, 0);
        if (row < rows) b[n] = ((const uint4*)staged)[(chunk * rows + row) * 4 + c];
    }
}
#define INPUT_BYTES(chunks, rows) ((chunks) * (rows) * 64)

#else  // dp4a

// The inputs as int8: [chunk][row] of 32 bytes in the order (c, q, e); scales behind them.
__device__ void stage_inputs(const Arguments& a, int chunks, u8* staged, float* row_scale,
                             float* scratch) {
    float* scales = (float*)(staged + chunks * a.rows * 32);
    Team team(a.rows, scratch);
    for (int first = 0; first < a.rows; first += team.count()) {
        const int r = min(first + team.index(), a.rows - 1);  // some do the last row once more
        const act_t* row = a.x + (size_t)r * a.in_features;
        float mean, rstd, v[8];
        statistics(a, row, team, mean, rstd);
        if (team.rank() == 0) row_scale[r] = 1.0f;
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
            u8* place = staged + (chunk * a.rows + r) * 32 + c * 8 + q * 4;
            *(u32*)place = word[0];
            *(u32*)(place + 8) = word[1];
            if ((at & 31) == 0) scales[chunk * a.rows + r] = largest / 127.0f;
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

__device__ __forceinline__ void load_operands(const u8* staged, int chunk, int rows, int chunks,
                                              Operands& b) {
    const float* scales = (const float*)(staged + chunks * rows * 32);
#pragma unroll
    for (int r = 0; r < MAX_ROWS; r++) {
        b[r].word = make_uint2(0, 0), b[r].scale = 0.0f;
        if (r < rows) {
            b[r].word = ((const uint2*)staged)[(chunk * rows + r) * 4 + (threadIdx.x & 3)];
            b[r].scale = scales[chunk * rows + r];
        }
    }
}
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
// The loads of one thread, STAGES ahead of their use, across the ends of tiles.
struct Ring {
    const u8* memory;  // of this thread's first slot
    u32 address;       // the same in the window of shared memory
    const u8* from[MATRICES];
    Walk walk;
    int chunk, slot;

    __device__ __forceinline__ Ring(const Arguments& a, u8* shared) : walk(a), slot(0) {
        memory = shared + (threadIdx.x >> 5) * (STAGES * MATRICES * 512) + (threadIdx.x & 31) * 16;
        address = (u32)__cvta_generic_to_shared(memory);
        begin_tile(a);
#pragma unroll
        for (int s = 0; s < STAGES; s += BATCH) issue(a, s);
    }
    __device__ __forceinline__ void begin_tile(const Arguments& a) {
        chunk = threadIdx.x >> 5;
        if (walk.done(a)) return;
#pragma unroll
        for (int m = 0; m < MATRICES; m++) from[m] = walk.weights(a, m);
    }
    // BATCH steps of loads into consecutive slots, which are waited for together.
    __device__ __forceinline__ void issue(const Arguments& a, int to) {
#pragma unroll
        for (int s = 0; s < BATCH; s++) {
            if (!walk.done(a)) {
                // Behind the end of a row nothing is read, and zeros are written.
                const int bytes = chunk < a.num_chunks ? 16 : 0;
#pragma unroll
                for (int m = 0; m < MATRICES; m++) {
                    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                                     address + ((to + s) * MATRICES + m) * 512),
                                 "l"(bytes ? from[m] : a.segment[0].tiles), "r"(bytes)
                                 : "memory");
                    from[m] += WARPS * 512;
                }
                chunk += WARPS;
            }
        }
        if (chunk - (int)(threadIdx.x >> 5) >= a.num_chunks) {
            walk.next(a);
            begin_tile(a);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    __device__ __forceinline__ void take(uint4 (&weights)[BATCH][MATRICES]) const {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES / BATCH - 1) : "memory");
#pragma unroll
        for (int s = 0; s < BATCH; s++)
#pragma unroll
            for (int m = 0; m < MATRICES; m++)
                weights[s][m] = *(const uint4*)(memory + ((slot + s) * MATRICES + m) * 512);
    }
    __device__ __forceinline__ void refill(const Arguments& a) {
        issue(a, slot);
        slot = slot + BATCH == STAGES ? 0 : slot + BATCH;
    }
};
#endif

__device__ __forceinline__ float total(const float* partial, int rows, int index) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += partial[w * 16 * rows + index];
    return sum;
}

// One output of a tile a thread. What comes from memory is asked for before the tile is computed.
struct Output {
    size_t at;
    float scale, other_scale, bias, residual;
    bool is_mine;
    int index, row;  // of the tile's outputs, of x

    __device__ __forceinline__ Output(const Arguments& a, const Walk& walk) {
        index = threadIdx.x, row = index % a.rows;
        const Segment& segment = a.segment[GATED ? 0 : walk.segment];
        const int feature = walk.tile * 16 + index / a.rows;
        is_mine = index < 16 * a.rows && feature < segment.num_rows;
        scale = other_scale = bias = residual = 0.0f, at = 0;
        if (!is_mine) return;
        int column = feature;
        for (int s = 0; s < walk.segment; s++) column += a.segment[s].num_rows;
        at = (size_t)row * a.out_features + column;
        scale = segment.scale[feature];
        if (GATED) other_scale = a.segment[1].scale[feature];
        if (segment.bias) bias = to_float(segment.bias[feature]);
        if (a.residual) residual = to_float(a.residual[at]);
    }
    __device__ __forceinline__ void write(const Arguments& a, const float* partial,
                                          const float* row_scale) const {
        if (!is_mine) return;
        float value = total(partial, a.rows, index) * row_scale[row] * scale + bias;
        value = activate(value, a.activation);
        if (GATED)
            value *= total(partial + WARPS * 16 * a.rows, a.rows, index) * row_scale[row] *
                     other_scale;
        value += residual;
        if (a.is_y_float)
            ((float*)a.y)[at] = value;
        else
            ((act_t*)a.y)[at] = from_float(value);
    }
};

// Grid: any number of blocks up to the number of tiles; 16 * rows <= THREADS. Dynamic shared memory,
// in this order: ring (compute capability 8.0 on), inputs, partial sums of two tiles, scales of the
// rows, scratch of 2 * WARPS floats.
extern "C" __global__ void __launch_bounds__(THREADS) linear(const GRID_CONSTANT Arguments a) {
    extern __shared__ __align__(16) u8 memory[];
    const int warp = threadIdx.x >> 5;
    const int step_chunks = WARPS * BATCH;
    const int steps = (a.num_chunks + step_chunks - 1) / step_chunks * BATCH;
    const int chunks = steps * WARPS;
#if __CUDA_ARCH__ >= 800
    u8* staged = memory + WARPS * STAGES * MATRICES * 512;
    Ring ring(a, memory);
#else
    u8* staged = memory;
#endif
    const int partial_size = MATRICES * WARPS * 16 * a.rows;
    float* partial = (float*)(staged + ((INPUT_BYTES(chunks, a.rows) + 15) & ~15));
    float* row_scale = partial + 2 * partial_size;

    allow_next_kernel();
    wait_for_inputs();
    stage_inputs(a, chunks, staged, row_scale, row_scale + MAX_ROWS);
    __syncthreads();

    int parity = 0;
    for (Walk walk(a); !walk.done(a); walk.next(a)) {
        const Output output(a, walk);
        Accumulator sum[MATRICES];
#pragma unroll
        for (int m = 0; m < MATRICES; m++) sum[m].clear();
#if __CUDA_ARCH__ >= 800
#pragma unroll 2
        for (int step = 0; step < steps; step += BATCH) {
            Operands operands[BATCH];
            uint4 weights[BATCH][MATRICES];
#pragma unroll
            for (int s = 0; s < BATCH; s++)
                load_operands(staged, (step + s) * WARPS + warp, a.rows, chunks, operands[s]);
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
                load_operands(staged, (step + s) * WARPS + warp, a.rows, chunks, operands);
#pragma unroll
                for (int m = 0; m < MATRICES; m++) sum[m].add(operands, weights[s][m]);
            }
        }
#endif
        float* mine = partial + parity * partial_size;
#pragma unroll
        for (int m = 0; m < MATRICES; m++)
            sum[m].store(mine + (m * WARPS + warp) * 16 * a.rows, a.rows);
        __syncthreads();
        output.write(a, mine, row_scale);
        // Two buffers: the next tile's sums must not meet this one's readers.
        parity ^= 1;
    }
}
