// The sums of linear.cu on matrix units: what a lane holds, and where it finds its inputs.
#pragma once
#include "linear_groups.cuh"

#if GROUP
// A chunk's inputs, and the sums of each 32 of them for the columns 2c and 2c + 1.
struct Operands {
    uint4 b[HALVES][COLUMN_TILES];
    float2 sums[HALVES][COLUMN_TILES][2 - ONE_COLUMN];
};

struct Accumulator {
    float sum[COLUMN_TILES][4];
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sum[n][i] = 0.0f;
    }
    __device__ __forceinline__ void add(const Operands& x, const uint4& w, const Table& table) {
        u32 a[STEPS16][4];
        left_operands<false>(w, a);
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++) {
            float part[HALVES][4];
#pragma unroll
            for (int half = 0; half < HALVES; half++) {
                const int group = half * CHUNK_GROUPS / HALVES;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    // With one row, the second column of every lane is never looked at.
                    const float2& sums = x.sums[half][n][ONE_COLUMN ? 0 : i & 1];
                    part[half][i] = -sums.x;
                    if (ZEROS)
                        part[half][i] = fmaf(MIDDLE - table.zero(group, i >> 1), sums.y, -sums.x);
                }
                multiply_half(part[half], a, half, x.b[half][n]);
            }
#pragma unroll
            for (int group = 0; group < CHUNK_GROUPS; group++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (ONE_COLUMN && (i & 1)) continue;
                    float value = part[group][i];
                    if (HALVES > CHUNK_GROUPS) value += part[HALVES - 1][i];
                    sum[n][i] = fmaf(table.scale(group, i >> 1), value, sum[n][i]);
                }
        }
    }
    __device__ __forceinline__ float value(int n, int i) const { return sum[n][i]; }
#else
struct Operands {
    uint4 b[1][COLUMN_TILES];
};

struct Accumulator {
    float first[COLUMN_TILES][4];  // of the first 16 inputs of chunks
    float second[COLUMN_TILES][4];
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) first[n][i] = second[n][i] = 0.0f;
    }
    __device__ __forceinline__ void add(const Operands& x, const uint4& w) {
        // Out of the compiler's sight, so that it stays in a register and the selector does not.
        u32 exponents;
        asm("mov.b32 %0, 0x64646464;" : "=r"(exponents));
        const u32 even[4] = {even_halves(w.x), even_halves(w.y), even_halves(w.z),
                             even_halves(w.w)};
        const u32 odd[4] = {odd_halves(w.x, exponents), odd_halves(w.y, exponents),
                            odd_halves(w.z, exponents), odd_halves(w.w, exponents)};
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++) {
            const uint4& b = x.b[0][n];
            multiply(first[n], even[0], even[1], odd[0], odd[1], b.x, b.y);
            multiply(second[n], even[2], even[3], odd[2], odd[3], b.z, b.w);
        }
    }
    __device__ __forceinline__ float value(int n, int i) const { return first[n][i] + second[n][i]; }
#endif
    // partial: (16, rows) of this warp
    __device__ __forceinline__ void store(float* partial, int rows) const {
        const int g = (threadIdx.x & 31) >> 2, c = threadIdx.x & 3;
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int column = 8 * n + 2 * c + (i & 1);
                if (column < rows) partial[(g + 8 * (i >> 1)) * rows + column] = value(n, i);
            }
    }
};

// Where this thread finds its operands of one chunk after the other, WARPS chunks apart. Columns
// beyond the rows repeat the last row: their sums are not stored.
struct Inputs {
    const u8* from[COLUMN_TILES];
    int half_bytes, step_bytes;
#if GROUP
    const float2* sums;
    int num_rows;
#endif
    __device__ __forceinline__ Inputs(u8* staged, int rows, int chunks) {
        const int g = (threadIdx.x & 31) >> 2, c = threadIdx.x & 3;
        const int chunk = (threadIdx.x >> 5) * HALVES;
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++)
            from[n] = staged + ((chunk * rows + min(8 * n + g, rows - 1)) * 4 + c) * 16;
#if GROUP
        sums = group_sums(staged, chunks, rows) + chunk * rows;
        num_rows = rows;
#endif
        half_bytes = rows * 64;
        step_bytes = WARPS * HALVES * half_bytes;
    }
    __device__ __forceinline__ void load(int step, Operands& x) const {
#pragma unroll
        for (int half = 0; half < HALVES; half++)
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; n++)
                x.b[half][n] = *(const uint4*)(from[n] + step * step_bytes + half * half_bytes);
#if GROUP
#pragma unroll
        for (int half = 0; half < HALVES; half++)
#pragma unroll
            for (int n = 0; n < COLUMN_TILES; n++)
#pragma unroll
                for (int i = 0; i < 2 - ONE_COLUMN; i++) {
                    const int row = min(8 * n + 2 * (int)(threadIdx.x & 3) + i, num_rows - 1);
                    x.sums[half][n][i] =
                        sums[(step * WARPS * HALVES + half) * num_rows + (ONE_COLUMN ? 0 : row)];
                }
#endif
    }
};
#define INPUT_BYTES(chunks, rows) ((chunks) * (rows) * (GROUP ? 72 : 64))
