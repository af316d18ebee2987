// What follows a product of the float library: bias, activation, gate and residual, in one pass.
//
// Defines: ACTIVATION_TYPE.

#include "activations.cuh"

struct Arguments {
    const act_t* x;        // what the product is, or both products of a gate side by side
    const act_t* bias;     // or null
    const act_t* residual; // or null
    void* y;               // may be x
    int rows;
    int columns; // of y
    int x_stride;
    int residual_stride;
    int y_stride;
    int activation;
    int is_gated;
    int is_y_float;
    int is_aligned; // columns is a multiple of 8, and eight neighbours lie at a multiple of their size
};

// y = act(x + bias) + residual, or act(x) * (the same place of the second half of x).
// Grid: a thread for eight neighbours.
extern "C" __global__ void __launch_bounds__(256) finish(const GRID_CONSTANT Arguments a) {
    const int groups = (a.columns + 7) / 8;
    const int task = blockIdx.x * 256 + threadIdx.x;
    const int row = task / groups, column = task % groups * 8;
    if (row >= a.rows) return;
    const act_t* x = a.x + (size_t)row * a.x_stride + column;
    const act_t* residual = a.residual + (size_t)row * a.residual_stride + column;
    const size_t at = (size_t)row * a.y_stride + column;
    const int count = min(8, a.columns - column);
    float v[8], up[8], added[8], bias[8];
    if (a.is_aligned) {
        load8(x, v);
        if (a.is_gated) load8(x + a.columns, up);
        if (a.bias) load8(a.bias + column, bias);
        if (a.residual) load8(residual, added);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (i >= count) break;
            v[i] = to_float(x[i]);
            if (a.is_gated) up[i] = to_float(x[a.columns + i]);
            if (a.bias) bias[i] = to_float(a.bias[column + i]);
            if (a.residual) added[i] = to_float(residual[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (a.bias) v[i] += bias[i];
        v[i] = activate(v[i], a.activation);
        if (a.is_gated) v[i] *= up[i];
        if (a.residual) v[i] += added[i];
    }
    if (ACTIVATION_TYPE == 2 || a.is_y_float) {
        float* y = (float*)a.y + at;
        if (a.is_aligned) {
            ((float4*)y)[0] = make_float4(v[0], v[1], v[2], v[3]);
            ((float4*)y)[1] = make_float4(v[4], v[5], v[6], v[7]);
            return;
        }
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (i < count) y[i] = v[i];
        return;
    }
    act_t* y = (act_t*)a.y + at;
    if (a.is_aligned) {
        store8(y, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (i < count) y[i] = from_float(v[i]);
}
