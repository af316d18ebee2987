// Rows as linear_several.cu multiplies them: normalised, in float16, under a power of two for each row
// where the activations have other exponents.
//
// Once for all blocks of the product that follows. Defines: ACTIVATION_TYPE, NORM.
#include "linear_walk.cuh"

// Grid: a block of THREADS a row. y: (rows, in_features); row_scale: (rows,), what products with y are
// to be multiplied by.
extern "C" __global__ void __launch_bounds__(THREADS)
round_rows(const GRID_CONSTANT Arguments a, uint4* y, float* row_scale) {
    __shared__ float scratch[2 * WARPS];
    allow_next_kernel();
    touch_norm(a);
    wait_for_inputs();
    const act_t* row = a.x + (size_t)blockIdx.x * a.in_features;
    Team team(1, scratch);
    float mean, rstd, inverse, v[8];
    statistics(a, row, team, mean, rstd);
    const float factor = scale_row(a, row, team, mean, rstd, inverse);
    if (threadIdx.x == 0) row_scale[blockIdx.x] = inverse;
    uint4* to = y + (size_t)blockIdx.x * (a.in_features / 8);
#pragma unroll 2
    for (int at = threadIdx.x * 8; at < a.in_features; at += THREADS * 8) {
        load_input(a, row, at, mean, rstd, v);
        u32 pair[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            pair[i] = float_to_half(v[2 * i] * factor) |
                      ((u32)float_to_half(v[2 * i + 1] * factor) << 16);
        to[at / 8] = make_uint4(pair[0], pair[1], pair[2], pair[3]);
    }
}
