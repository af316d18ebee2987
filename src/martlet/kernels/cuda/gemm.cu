// Products of many tokens with tiled weights, y = x @ W.T, on the matrix units of Ampere and everything
// later (mma). Hopper has a faster way of its own for int8: gemm_hopper.cu.
//
// The weights are the left operand: a lane's 16 bytes of a tile become its registers of two steps, or of
// four where they have 4 bits: exact integers in float16, times the scale of their group if there is one.
// The sums are float32, and the scales of row and token come in at the end. A block of 4 warps computes
// 128 rows x TOKENS tokens, a warp a quarter of that; both operands come through shared memory in a ring
// of STAGES, the inputs of a tile each, in the order they are read in, so that no access meets a bank
// conflict.
//
// Defines: ACTIVATION_TYPE, TOKENS (32, 64 or 128), GATED (half of the rows from either weight), BITS,
// GROUP, ZEROS.

#include "gemm_output.cuh"

#define ROWS 128
#define STAGES 4
#define COLUMNS (TOKENS / 16) // groups of 8 tokens that a warp computes
#define TILE_WORDS 32         // 16-byte words of a tile of weights, or of 8 tokens x 32 inputs
#define STAGE_WORDS ((ROWS / 16 + HALVES * TOKENS / 8) * TILE_WORDS)

#if __CUDA_ARCH__ >= 800
__device__ __forceinline__ void copy16(u32 to, const uint4* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from));
}

__device__ __forceinline__ void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Which of the weights a row tile of the block belongs to, and its number there.
struct Tile {
    int side, number;
    __device__ __forceinline__ Tile(const Product& p, int local) : side(0) {
        if (GATED && local >= ROWS / 32) local -= ROWS / 32, side = 1;
        const int first = (int)blockIdx.y * (GATED ? ROWS / 32 : ROWS / 16);
        number = min(first + local, p.num_tiles - 1);
    }
};

// The chunk of weights for a step: x is zero behind the last one.
__device__ __forceinline__ int chunk_of(const Product& p, int step) {
    return min(step % (p.x_chunks / HALVES), p.chunks - 1);
}

// Both operands of a step into a slot of the ring.
__device__ __forceinline__ void load(const Product& p, u32 slot, int step) {
    const int chunk = chunk_of(p, step);
#pragma unroll
    for (int i = 0; i < ROWS / 16 * TILE_WORDS / 128; i++) {
        const int word = i * 128 + threadIdx.x;
        const Tile tile(p, word / TILE_WORDS);
        const uint4* tiles = tile.side ? p.tiles[1] : p.tiles[0];
        copy16(slot + word * 16,
               tiles + ((size_t)tile.number * p.chunks + chunk) * TILE_WORDS + word % TILE_WORDS);
    }
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        const size_t tokens = (size_t)(step * HALVES + half) * (p.padded_tokens / 8);
        const uint4* x = p.x + (tokens + blockIdx.x * (TOKENS / 8)) * TILE_WORDS;
#pragma unroll
        for (int i = 0; i < TOKENS / 8 * TILE_WORDS / 128; i++) {
            const int word = i * 128 + threadIdx.x;
            copy16(slot + ((ROWS / 16 + half * TOKENS / 8) * TILE_WORDS + word) * 16, x + word);
        }
    }
}

#if GROUP
__device__ __forceinline__ u32 both(float value) {
    return (u32)float_to_half(value) * 0x00010001u;
}

// Integers of a row, less their zero, times the scale of their group.
__device__ __forceinline__ void scale(u32& pair, float zero, float by) {
    if (ZEROS) asm("sub.f16x2 %0, %0, %1;" : "+r"(pair) : "r"(both(zero - MIDDLE)));
    asm("mul.f16x2 %0, %0, %1;" : "+r"(pair) : "r"(both(by)));
}

__device__ __forceinline__ Table table_of(const Product& p, const Tile& tile, int chunk) {
    const int units = (p.chunks + UNIT_CHUNKS - 1) / UNIT_CHUNKS;
    const size_t at = (size_t)tile.number * units + chunk / UNIT_CHUNKS;
    return *(const Table*)(p.groups[tile.side] + at * UNIT_BYTES +
                           ((threadIdx.x & 31) >> 2) * TABLE_BYTES);
}
#endif
#endif

// Grid: (token blocks, row blocks, splits of the inputs). Dynamic shared memory: STAGES slots.
extern "C" __global__ void __launch_bounds__(128, 2) gemm(const GRID_CONSTANT Product p) {
#if __CUDA_ARCH__ >= 800
    extern __shared__ uint4 ring[];
    const u32 base = (u32)__cvta_generic_to_shared(ring);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, c = lane & 3;
    const int row_half = warp >> 1, token_half = warp & 1;
    const int total = p.x_chunks / HALVES * p.parts;
    const int first = (int)((long long)total * blockIdx.z / gridDim.z);
    const int count = (int)((long long)total * (blockIdx.z + 1) / gridDim.z) - first;

    float sums[4][COLUMNS][4];
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[m][n][i] = 0.0f;

#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) {
        if (stage < count) load(p, base + stage * STAGE_WORDS * 16, first + stage);
        asm volatile("cp.async.commit_group;");
    }
    for (int step = 0; step < count; step++) {
#if GROUP
        Table tables[4];
#pragma unroll
        for (int m = 0; m < 4; m++)
            tables[m] = table_of(p, Tile(p, row_half * 4 + m), chunk_of(p, first + step));
#endif
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads();
        const int ahead = step + STAGES - 1;
        if (ahead < count) load(p, base + ahead % STAGES * STAGE_WORDS * 16, first + ahead);
        asm volatile("cp.async.commit_group;");

        const int slot = step % STAGES * STAGE_WORDS;
        u32 a[4][STEPS16][4];
#pragma unroll
        for (int m = 0; m < 4; m++) {
            left_operands<true>(ring[slot + (row_half * 4 + m) * TILE_WORDS + lane], a[m]);
#if GROUP
#pragma unroll
            for (int i = 0; i < STEPS16 * 4; i++) {
                const int group = i / 8 * CHUNK_GROUPS / HALVES, h = i & 1;
                scale(a[m][i / 4][i % 4], ZEROS ? tables[m].zero(group, h) : MIDDLE,
                      tables[m].scale(group, h));
            }
#endif
        }
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            const int tokens = ROWS / 16 + half * TOKENS / 8 + token_half * COLUMNS;
            const u32 x = base + (slot + tokens * TILE_WORDS + lane) * 16;
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) {
                u32 b0, b1, b2, b3;
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                             : "=r"(b0), "=r"(b1), "=r"(b2), "=r"(b3)
                             : "r"(x + n * TILE_WORDS * 16)
                             : "memory");
#pragma unroll
                for (int m = 0; m < 4; m++) multiply(sums[m][n], a[m][2 * half], b0, b1);
#pragma unroll
                for (int m = 0; m < 4; m++) multiply(sums[m][n], a[m][2 * half + 1], b2, b3);
            }
        }
    }

    // 16 tokens of either half at a time go through shared memory, to be written row by row.
    asm volatile("cp.async.wait_all;" ::: "memory");
    float* staged = (float*)ring;
#pragma unroll
    for (int pass = 0; pass < COLUMNS / 2; pass++) {
        __syncthreads();
#pragma unroll
        for (int m = 0; m < 4; m++)
#pragma unroll
            for (int n = 0; n < 2; n++) {
                const float* d = sums[m][pass * 2 + n];
                float* at = staged + (token_half * 16 + n * 8 + 2 * c) * (ROWS + 4) + row_half * 64 + m * 16 + g;
                at[0] = d[0], at[ROWS + 4] = d[1], at[8] = d[2], at[ROWS + 4 + 8] = d[3];
            }
        __syncthreads();
        store_staged<ROWS, 128>(p, staged, 32, blockIdx.x * TOKENS + pass * 16, 16, TOKENS / 2,
                                blockIdx.y * (GATED ? ROWS / 2 : ROWS));
    }
#endif
}

extern "C" __global__ void __launch_bounds__(256)
gemm_finish(const GRID_CONSTANT Product p, int splits) {
    finish(p, splits);
}
