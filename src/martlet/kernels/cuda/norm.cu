// Rows normalised: layer norm, or root mean square norm, and what is added to them. A block takes a
// row; statistics are float32.
//
// Defines: ACTIVATION_TYPE.

#include "activations.cuh"

#define THREADS 256

// The sum over the block, in every thread. `shared` holds a float a warp.
__device__ __forceinline__ float block_sum(float value, float* shared) {
    value = warp_sum(value);
    __syncthreads(); // what stood there has been read
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < THREADS / 32; w++) sum += shared[w];
    return sum;
}

// Eight inputs from `at` on; zeros behind the end.
__device__ __forceinline__ void load_row(const act_t* row, int at, int columns, int is_aligned,
                                         float (&v)[8]) {
    if (is_aligned) {
        load8(row + at, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = at + i < columns ? to_float(row[at + i]) : 0.0f;
}

struct Arguments {
    const act_t* x;
    const act_t* weight;
    const act_t* bias; // of a layer norm, else null
    const act_t* residual; // rows without gaps, added to what is normalised; or null
    act_t* y;          // rows without gaps
    int columns;
    int x_stride;
    int is_aligned; // columns is a multiple of 8, and so is where every row begins
    float eps;
    float offset; // added to the weight
};

// Grid: a block of THREADS a row.
extern "C" __global__ void __launch_bounds__(THREADS)
norm_rows(const GRID_CONSTANT Arguments a) {
    __shared__ float shared[THREADS / 32];
    const act_t* x = a.x + (size_t)blockIdx.x * a.x_stride;
    const size_t row = (size_t)blockIdx.x * a.columns;
    act_t* y = a.y + row;
    allow_next_kernel();
    wait_for_inputs();
    const int start = threadIdx.x * 8;
    float v[8], mean = 0.0f, squares = 0.0f;
    if (a.bias) {
        float sum = 0.0f;
        for (int at = start; at < a.columns; at += THREADS * 8) {
            load_row(x, at, a.columns, a.is_aligned, v);
#pragma unroll
            for (int i = 0; i < 8; i++) sum += v[i];
        }
        mean = block_sum(sum, shared) / a.columns;
    }
    for (int at = start; at < a.columns; at += THREADS * 8) {
        load_row(x, at, a.columns, a.is_aligned, v);
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (a.is_aligned || at + i < a.columns) squares += (v[i] - mean) * (v[i] - mean);
    }
    const float rstd = rsqrtf(block_sum(squares, shared) / a.columns + a.eps);
    for (int at = start; at < a.columns; at += THREADS * 8) {
        float weight[8], bias[8];
        load_row(x, at, a.columns, a.is_aligned, v);
        load_row(a.weight, at, a.columns, a.is_aligned, weight);
        if (a.bias) load_row(a.bias, at, a.columns, a.is_aligned, bias);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[i] = (v[i] - mean) * rstd;
            // The models were trained with a quotient that is rounded before its weight comes in.
            if (!a.bias && a.offset == 0.0f) v[i] = to_float(from_float(v[i]));
            v[i] *= a.offset + weight[i];
            if (a.bias) v[i] += bias[i];
        }
        if (a.residual) {
            float other[8];
            load_row(a.residual + row, at, a.columns, a.is_aligned, other);
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] = other[i] + to_float(from_float(v[i]));
        }
        if (a.is_aligned) {
            store8(y + at, v);
        } else {
            for (int i = 0; i < 8 && at + i < a.columns; i++) y[at + i] = from_float(v[i]);
        }
    }
}
