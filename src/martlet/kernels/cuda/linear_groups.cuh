// A lane's 16 bytes of a tile as operands of matrix units, and sums under the scales of groups.
//
// The integers are exact in float16. The products of a group are summed for themselves, in float32,
// and come into the sum of their output with the scale of the group: one multiplication for each
// lane's outputs and group. A zero other than the middle of the integers is taken off with the sum of
// the group's inputs, which the units give for a row of ones.
#pragma once
#include "linear_matrix_units.cuh"

#define STEPS16 (CHUNK_INPUTS / 16)  // products of 16 inputs, of a chunk

// Two weights of 4 bits in the lowest bits of the halves of a word, less 8. 0x64 above n is 1024 + n.
__device__ __forceinline__ u32 low_nibbles(u32 word) {
    u32 value = (word & 0x000f000fu) | 0x64006400u;
    asm("sub.f16x2 %0, %0, %1;" : "+r"(value) : "r"(0x64086408u));
    return value;
}

// The same one place higher: 1024 + 16 n, over 16, less 72.
__device__ __forceinline__ u32 high_nibbles(u32 word) {
    u32 value = (word & 0x00f000f0u) | 0x64006400u;
    asm("fma.rn.f16x2 %0, %0, %1, %2;" : "+r"(value) : "r"(0x2c002c00u), "r"(0xd480d480u));
    return value;
}

// Two neighbouring bytes of a word as exact integers: 0x64 above a byte u is 1024 + u, and a weight w
// is stored as w + 128.
template <int SELECTOR>
__device__ __forceinline__ u32 integers(u32 word) {
    u32 value;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(value) : "r"(word), "r"(0x64646464u), "n"(SELECTOR));
    asm("sub.f16x2 %0, %0, %1;" : "+r"(value) : "r"(0x64806480u));
    return value;
}

// Rows g and g + 8 under the slots 2c, 2c + 1, then under 2c + 8, 2c + 9, for every 16 inputs.
__device__ __forceinline__ void left_operands(const uint4& w, u32 (&a)[STEPS16][4]) {
    const u32 words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
        const u32 upper = words[2 * pair], lower = words[2 * pair + 1];
#if BITS == 4
        a[2 * pair][0] = low_nibbles(upper), a[2 * pair][1] = low_nibbles(lower);
        a[2 * pair][2] = high_nibbles(upper), a[2 * pair][3] = high_nibbles(lower);
        a[2 * pair + 1][0] = low_nibbles(upper >> 8), a[2 * pair + 1][1] = low_nibbles(lower >> 8);
        a[2 * pair + 1][2] = high_nibbles(upper >> 8), a[2 * pair + 1][3] = high_nibbles(lower >> 8);
#else
        constexpr int first = 0x4140, second = 0x4342;
        a[pair][0] = integers<first>(upper), a[pair][1] = integers<first>(lower);
        a[pair][2] = integers<second>(upper), a[pair][3] = integers<second>(lower);
#endif
    }
}

#if GROUP
// Sums of the inputs of each group, for the two columns whose products a lane holds.
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

// What the weights of a chunk stand for: the table of its groups for the rows g and g + 8.
__device__ __forceinline__ void add_groups(float (&sum)[COLUMN_TILES][4],
                                           const uint4 (&b)[HALVES][COLUMN_TILES],
                                           const Totals& totals, const uint4& w, const Table& t) {
    u32 a[STEPS16][4];
    left_operands(w, a);
#pragma unroll
    for (int group = 0; group < CHUNK_GROUPS; group++)
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++) {
            float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (int half = group * HALVES / CHUNK_GROUPS;
                 half < (group + 1) * HALVES / CHUNK_GROUPS; half++) {
                const u32 (&x)[4] = a[2 * half], (&y)[4] = a[2 * half + 1];
                multiply(part, x[0], x[1], x[2], x[3], b[half][n].x, b[half][n].y);
                multiply(part, y[0], y[1], y[2], y[3], b[half][n].z, b[half][n].w);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                // With one row, the second column of every lane is never looked at.
                if (ONE_COLUMN && (i & 1)) continue;
                float value = part[i];
#if ZEROS
                value = fmaf(MIDDLE - t.zero(group, i >> 1), totals.of[group][n][i & 1], value);
#endif
                sum[n][i] = fmaf(t.scale(group, i >> 1), value, sum[n][i]);
            }
        }
}
#endif
