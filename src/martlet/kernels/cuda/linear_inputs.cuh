// What linear.cu is launched with, and its inputs on their way: statistics of a norm, and rows as the
// products want them.
#pragma once
#include "weights.cuh"

#ifndef WARPS
#define WARPS 8
#endif
#ifndef STAGES
#define STAGES 8
#endif
#ifndef GATED
#define GATED 0
#endif
#ifndef MATRIX_UNITS
#define MATRIX_UNITS 1
#endif
// Rows of x: MAX_ROWS at most, a multiple of 8 for the matrix units.
#ifndef MAX_ROWS
#define MAX_ROWS 8
#endif
// Steps that are waited for and computed together; a tile is a whole number of them.
#ifndef BATCH
#define BATCH 2
#endif
// Whether a tile's inputs are no whole number of BATCH steps of all warps.
#ifndef RAGGED
#define RAGGED 1
#endif
// Loads in flight without asynchronous copies: they cost registers, tables of groups too.
#define AHEAD (GATED && GROUP ? 2 : 4)
#ifdef ROWS
#define ONE_COLUMN (ROWS == 1)
#else
#define ONE_COLUMN 0
#endif

#define THREADS (WARPS * 32)
#define COLUMN_TILES (MAX_ROWS / 8)

enum Normalisation { NO_NORM = 0, RMS_NORM = 1, LAYER_NORM = 2 };
enum ActivationKind { IDENTITY = 0, GELU_TANH = 1, GELU = 2, RELU = 3, SILU = 4 };

struct Segment {
    const u8* tiles;
    const float* scale;
    const act_t* bias;
    const u8* groups;
    int num_tiles;
    int num_rows;
};

struct Arguments {
    Segment segment[3];
    const act_t* x;          // (rows, in_features)
    const act_t* norm_weight;
    const act_t* norm_bias;
    const act_t* residual;   // (rows, out_features), may be y
    void* y;                 // (rows, out_features)
    int num_segments;
    int rows;
    int in_features;         // a multiple of 8
    int num_chunks;          // of CHUNK_INPUTS, the last one padded
    int out_features;
    int norm;
    int activation;
    int is_y_float;
    float eps;
    float norm_offset;  // added to the weight of a norm
};

// What the host knows of a launch may be compiled in: less code is sooner there.
__device__ __forceinline__ int rows_of(const Arguments& a) {
#ifdef ROWS
    return ROWS;
#else
    return a.rows;
#endif
}

__device__ __forceinline__ int norm_of(const Arguments& a) {
#ifdef NORM
    return NORM;
#else
    return a.norm;
#endif
}

__device__ __forceinline__ int activation_of(const Arguments& a) {
#ifdef ACTIVATION
    return ACTIVATION;
#else
    return a.activation;
#endif
}

__device__ __forceinline__ float activate(float x, int activation) {
    switch (activation) {
        case GELU_TANH: {
            const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
            return 0.5f * x * (1.0f + tanhf(inner));
        }
        case GELU:
            return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
        case RELU:
            return fmaxf(x, 0.0f);
        case SILU:
            return x / (1.0f + expf(-x));
        default:
            return x;
    }
}

// Who works together on a row of inputs: as many warps each as there are for so many rows. All
// threads of the block take part in every exchange, also those that have no row left.
struct Team {
    float* scratch;  // 2 * WARPS floats
    int num_warps, uses;
    __device__ __forceinline__ Team(int rows, float* memory)
        : scratch(memory), num_warps(WARPS), uses(0) {
        while (num_warps > 1 && num_warps * rows > WARPS) num_warps >>= 1;
    }
    __device__ __forceinline__ int count() const { return WARPS / num_warps; }
    __device__ __forceinline__ int index() const { return (threadIdx.x >> 5) / num_warps; }
    __device__ __forceinline__ int size() const { return 32 * num_warps; }
    __device__ __forceinline__ int rank() const { return threadIdx.x % size(); }
    // The values of all warps of the team; two places in turn, so that one barrier is enough.
    __device__ __forceinline__ const float* exchange(float value) {
        float* place = scratch + (uses++ & 1) * WARPS;
        if ((threadIdx.x & 31) == 0) place[threadIdx.x >> 5] = value;
        __syncthreads();
        return place + index() * num_warps;
    }
    __device__ __forceinline__ float sum(float value) {
        const float* values = exchange(warp_sum(value));
        value = 0.0f;
        for (int w = 0; w < num_warps; w++) value += values[w];
        return value;
    }
    __device__ __forceinline__ float max(float value) {
        const float* values = exchange(warp_max(value));
        for (int w = 0; w < num_warps; w++) value = fmaxf(value, values[w]);
        return value;
    }
};

__device__ __forceinline__ void load_or_zero(const act_t* from, int at, int end, float (&v)[8]) {
    if (at < end) {
        load8(from + at, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = 0.0f;
}

__device__ __forceinline__ void statistics(const Arguments& a, const act_t* row, Team& team,
                                           float& mean, float& rstd) {
    mean = 0.0f, rstd = 1.0f;
    if (norm_of(a) == NO_NORM) return;
    const int step = team.size() * 8;
    float v[8];
    if (norm_of(a) == LAYER_NORM) {
        float sum = 0.0f;
        for (int at = team.rank() * 8; at < a.in_features; at += step) {
            load8(row + at, v);
#pragma unroll
            for (int i = 0; i < 8; i++) sum += v[i];
        }
        mean = team.sum(sum) / a.in_features;
    }
    float square = 0.0f;
#pragma unroll 4
    for (int at = team.rank() * 8; at < a.in_features; at += step) {
        load8(row + at, v);
#pragma unroll
        for (int i = 0; i < 8; i++) square = fmaf(v[i] - mean, v[i] - mean, square);
    }
    rstd = rsqrtf(team.sum(square) / a.in_features + a.eps);
}

// Eight normalised inputs of a row; zeros behind its end. The row is in the first-level cache when
// its statistics have been taken.
__device__ __forceinline__ void load_input(const Arguments& a, const act_t* row, int at, float mean,
                                           float rstd, float (&v)[8]) {
    load_or_zero(row, at, a.in_features, v);
    if (norm_of(a) == NO_NORM || at >= a.in_features) return;
    float weight[8], bias[8];
    load8(a.norm_weight + at, weight);
    if (norm_of(a) == LAYER_NORM) load8(a.norm_bias + at, bias);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        v[i] = (v[i] - mean) * rstd * (a.norm_offset + weight[i]);
        if (norm_of(a) == LAYER_NORM) v[i] += bias[i];
    }
}

// The power of two that brings a largest number to 2^13 .. 2^14, and its inverse.
__device__ __forceinline__ float power_of_two_scale(float largest, float& inverse) {
    int exponent = (int)(__float_as_uint(largest) >> 23) - 127;
    exponent = min(max(exponent, -100), 110);
    inverse = __uint_as_float((u32)(127 - 13 + exponent) << 23);
    return __uint_as_float((u32)(127 + 13 - exponent) << 23);
}

// float16 has fewer exponents than other activations: the power of two that brings the largest input
// of a row to 2^13 .. 2^14, and its inverse. float16 itself stays as it is.
__device__ __forceinline__ float scale_row(const Arguments& a, const act_t* row, Team& team,
                                           float mean, float rstd, float& inverse) {
    inverse = 1.0f;
#if ACTIVATION_TYPE != 0
    float largest = 0.0f, v[8];
    for (int at = team.rank() * 8; at < a.in_features; at += team.size() * 8) {
        load_input(a, row, at, mean, rstd, v);
#pragma unroll
        for (int i = 0; i < 8; i++) largest = fmaxf(largest, fabsf(v[i]));
    }
    return power_of_two_scale(team.max(largest), inverse);
#else
    return 1.0f;
#endif
}
