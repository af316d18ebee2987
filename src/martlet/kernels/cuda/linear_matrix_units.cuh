// The products of linear.cu on matrix units: mma with float16 operands and float32 sums.
#pragma once
#include "linear_inputs.cuh"

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

// Whether operands hold neighbouring inputs, as left_operands takes them, or those of even_halves and
// odd_halves.
#ifndef NEIGHBOURS
#define NEIGHBOURS (GROUP > 0)
#endif

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

#if GROUP
// What is taken off the products of eight neighbouring inputs because operands are greater than the
// integers of weights (left_operands), the middle of the integers included (x); and their sum (y).
__device__ __forceinline__ float2 sums_of(const float (&v)[8]) {
    const float front = v[0] + v[1] + v[4] + v[5], back = v[2] + v[3] + v[6] + v[7];
    if (BITS == 8) return make_float2(1152.0f * (front + back), front + back);
    return make_float2(fmaf(1032.0f, front, 72.0f * back), front + back);
}

// Those of 32 inputs, [chunk][row], behind the operands.
__device__ __forceinline__ float2* group_sums(u8* staged, int chunks, int rows) {
    return (float2*)(staged + chunks * rows * 64);
}
#endif

// The inputs as operands: [chunk][row][c] of 16 bytes, float16 of inputs 32 chunk + 16 q + 4 c + e in
// the order (q, e = 0 2 1 3), or (q, e) of NEIGHBOURS; zeros up to a whole step of the block.
// Also OFFSET times their sums, or sums of groups.
__device__ void stage_inputs(const Arguments& a, int chunks, u8* staged, float* row_scale,
                             float* row_offset, float* scratch) {
    Team team(rows_of(a), scratch);
    for (int first = 0; first < rows_of(a); first += team.count()) {
        const int r = min(first + team.index(), rows_of(a) - 1);  // some do the last row once more
        const act_t* row = a.x + (size_t)r * a.in_features;
        float mean, rstd, v[8];
        statistics(a, row, team, mean, rstd);
        float inverse;
        const float factor = scale_row(a, row, team, mean, rstd, inverse);
        if (team.rank() == 0) row_scale[r] = inverse;
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
                // Neighbours, or as even_halves and odd_halves take bytes out of a word.
                const int one = NEIGHBOURS ? 2 * i : 4 * (i >> 1) + (i & 1);
                pair[i] = half[one] | (half[one + (NEIGHBOURS ? 1 : 2)] << 16);
            }
            u8* place = staged + ((chunk * rows_of(a) + r) * 4 + c) * 16 + q * 8;
            *(uint2*)place = make_uint2(pair[0], pair[1]);
            *(uint2*)(place + 16) = make_uint2(pair[2], pair[3]);
#if GROUP
            float number[8];
#pragma unroll
            for (int i = 0; i < 8; i++) number[i] = half_to_float((u16)half[i]);
            float2 sums = sums_of(number);
            // Four neighbouring threads hold a chunk; a warp's are whole ones.
#pragma unroll
            for (int distance = 1; distance < 4; distance <<= 1) {
                sums.x += __shfl_xor_sync(0xffffffffu, sums.x, distance);
                sums.y += __shfl_xor_sync(0xffffffffu, sums.y, distance);
            }
            if ((at & 31) == 0) group_sums(staged, chunks, rows_of(a))[chunk * rows_of(a) + r] = sums;
#endif
        }
        sum = team.sum(sum);
        if (team.rank() == 0) row_offset[r] = GROUP ? 0.0f : OFFSET * sum;
    }
}
