// Sums under the scales of groups, on matrix units.
//
// The products of a group are summed for themselves, in float32, and come into the sum of their output
// with the scale of the group: one multiplication for each lane's outputs and group.
#pragma once
#include "left_operand.cuh"
#include "linear_matrix_units.cuh"

// The products of 32 inputs with the rows of a chunk.
__device__ __forceinline__ void multiply_half(float (&sum)[4], const u32 (&a)[STEPS16][4], int half,
                                              const uint4& b) {
    const u32 (&x)[4] = a[2 * half], (&y)[4] = a[2 * half + 1];
    multiply(sum, x[0], x[1], x[2], x[3], b.x, b.y);
    multiply(sum, y[0], y[1], y[2], y[3], b.z, b.w);
}
