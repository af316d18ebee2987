// The products of linear.cu with dp4a, for cards without matrix units: int8 activations.
#pragma once
#include "linear_inputs.cuh"

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

// The inputs of a chunk, row by row.
struct Operands {
    Operand of[HALVES][MAX_ROWS];
};

// Two words of four weights for the 8 inputs of a lane, in the order of these.
#if BITS == 4
__device__ __forceinline__ uint2 weights_of(const u32 (&w)[4], int half, int h) {
    const u32 word = w[2 * half + h];
    return make_uint2(word & 0x0f0f0f0fu, (word >> 4) & 0x0f0f0f0fu);
}
#else
// The bias of 128 turned back: the sign bit.
__device__ __forceinline__ uint2 weights_of(const u32 (&w)[4], int, int h) {
    return make_uint2(w[h] ^ 0x80808080u, w[2 + h] ^ 0x80808080u);
}
#endif

struct Accumulator {
    float sum[MAX_ROWS][2];
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int r = 0; r < MAX_ROWS; r++) sum[r][0] = sum[r][1] = 0.0f;
    }
#if GROUP
    __device__ __forceinline__ void add(const Operands& x, const uint4& words, const Table& table) {
#else
    __device__ __forceinline__ void add(const Operands& x, const uint4& words) {
#endif
        const u32 w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int half = 0; half < HALVES; half++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const uint2 s = weights_of(w, half, h);
#pragma unroll
                for (int r = 0; r < MAX_ROWS; r++) {
                    const Operand& b = x.of[half][r];
                    float value = (float)dot4(s.y, b.word.y, dot4(s.x, b.word.x, 0));
#if GROUP
                    const int group = half * CHUNK_GROUPS / HALVES;
                    const float zero = ZEROS ? table.zero(group, h) : MIDDLE;
                    // Nothing to take off from integers that have a sign.
                    if (BITS == 4) {
                        const int total = dot4(0x01010101u, b.word.y, dot4(0x01010101u, b.word.x, 0));
                        value = fmaf(-zero, (float)total, value);
                    }
                    value *= table.scale(group, h);
#endif
                    sum[r][h] = fmaf(value, b.scale, sum[r][h]);
                }
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

// Where this thread finds its operands of one chunk after the other, WARPS chunks apart. Rows beyond
// the last repeat it: their sums are not stored.
struct Inputs {
    const u8* words;
    const float* scales;
    int rows;
    __device__ __forceinline__ Inputs(const u8* staged, int num_rows, int chunks) {
        const int chunk = (threadIdx.x >> 5) * HALVES;
        words = staged + chunk * num_rows * 32 + (threadIdx.x & 3) * 8;
        scales = (const float*)(staged + chunks * num_rows * 32) + chunk * num_rows;
        rows = num_rows;
    }
    __device__ __forceinline__ void load(int step, Operands& x) const {
#pragma unroll
        for (int half = 0; half < HALVES; half++)
#pragma unroll
            for (int r = 0; r < MAX_ROWS; r++) {
                const int row = (step * WARPS * HALVES + half) * rows + min(r, rows - 1);
                uint2 word = *(const uint2*)(words + row * 32);
#if BITS == 4
                // From (q, e) to (e, q): a word of nibbles gives e = 0, 1 and 2, 3 of both q.
                word = make_uint2(__byte_perm(word.x, word.y, 0x5140),
                                  __byte_perm(word.x, word.y, 0x7362));
#endif
                x.of[half][r].word = word;
                x.of[half][r].scale = scales[row];
            }
    }
};
#define INPUT_BYTES(chunks, rows) ((chunks) * (rows) * 36)
