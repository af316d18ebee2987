// The sums of linear.cu on matrix units: what a lane holds, and where it finds its inputs.
#pragma once
#include "linear_groups.cuh"

#if GROUP
struct Operands {
    uint4 b[HALVES][COLUMN_TILES];
    Totals totals;
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
        add_groups(sum, x.b, x.totals, w, table);
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
    __device__ __forceinline__ Inputs(const u8* staged, int rows, int) {
        const int g = (threadIdx.x & 31) >> 2, c = threadIdx.x & 3;
        const int chunk = (threadIdx.x >> 5) * HALVES;
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++)
            from[n] = staged + ((chunk * rows + min(8 * n + g, rows - 1)) * 4 + c) * 16;
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
        x.totals.take(x.b);
#endif
    }
};
#define INPUT_BYTES(chunks, rows) ((chunks) * (rows) * 64)
