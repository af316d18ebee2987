// Which tiles a block of linear.cu or linear_several.cu is at, and how their outputs are written.
#pragma once
#include "linear_inputs.cuh"

// Two tiles of one matrix at a time. The second of the last pair of an odd number is the first one
// once more, and is not written.
#ifndef PAIRED
#define PAIRED 0
#endif
#define MATRICES (GATED || PAIRED ? 2 : 1)

// Which tile, or pair of tiles, a block is at. Those of all segments lie behind each other in the
// output.
struct Walk {
    int unit;  // tile or pair, inside the segment
    int segment;
    __device__ __forceinline__ Walk(const Arguments& a) : unit(blockIdx.x), segment(0) {
        settle(a);
    }
    static __device__ __forceinline__ int units(const Segment& segment) {
        return PAIRED ? (segment.num_tiles + 1) >> 1 : segment.num_tiles;
    }
    __device__ __forceinline__ void settle(const Arguments& a) {
        if (GATED) {
            if (unit >= units(a.segment[0])) segment = a.num_segments;
            return;
        }
        while (segment < a.num_segments && unit >= units(a.segment[segment]))
            unit -= units(a.segment[segment++]);
    }
    __device__ __forceinline__ void next(const Arguments& a) {
        unit += gridDim.x;
        settle(a);
    }
    __device__ __forceinline__ bool done(const Arguments& a) const {
        return segment >= a.num_segments;
    }
    // The first output of a tile, inside its segment.
    __device__ __forceinline__ int feature(int matrix) const {
        return (PAIRED ? 2 * unit + matrix : unit) * 16;
    }
    // The first output of the segment.
    __device__ __forceinline__ int before(const Arguments& a) const {
        int count = 0;
        for (int s = 0; s < segment; s++) count += a.segment[s].num_rows;
        return count;
    }
    // This thread's 16 bytes of a chunk.
    __device__ __forceinline__ const u8* weights(const Arguments& a, int matrix, int chunk) const {
        const Segment& of = a.segment[GATED ? matrix : segment];
        const int tile = PAIRED ? min(2 * unit + matrix, of.num_tiles - 1) : unit;
        return of.tiles + ((size_t)tile * a.num_chunks + chunk) * 512 + (threadIdx.x & 31) * 16;
    }
#if GROUP
    // The table of those, or of row g of a tile and row g + 8.
    __device__ __forceinline__ const u8* tables(const Arguments& a, int matrix, int chunk) const {
        return tables(a, matrix, chunk, (threadIdx.x & 31) >> 2);
    }
    __device__ __forceinline__ const u8* tables(const Arguments& a, int matrix, int chunk,
                                                int g) const {
        const Segment& of = a.segment[GATED ? matrix : segment];
        const int tile = PAIRED ? min(2 * unit + matrix, of.num_tiles - 1) : unit;
        const int units = (a.num_chunks + UNIT_CHUNKS - 1) / UNIT_CHUNKS;
        const size_t at = (size_t)tile * units + chunk / UNIT_CHUNKS;
        return of.groups + at * UNIT_BYTES + g * TABLE_BYTES;
    }
#endif
};

// What the end of a tile reads beside the sums, brought near by a warp while the tile is computed.
__device__ __forceinline__ void touch_tile(const Arguments& a, const Walk& walk) {
    const Segment& segment = a.segment[GATED ? 0 : walk.segment];
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int tile = 0; tile < PAIRED + 1; tile++) {
        const int first = walk.feature(tile);
        if (tile && first >= segment.num_rows) break;
        if (lane == 0) touch(segment.scale + first);
        if (GATED && lane == 1) touch(a.segment[1].scale + first);
        if (lane == 2 && segment.bias) touch(segment.bias + first);
        if (lane >= 16 && lane - 16 < rows_of(a) && a.residual)
            touch(a.residual + (size_t)(lane - 16) * a.out_features + walk.before(a) + first);
    }
}

__device__ __forceinline__ void touch_norm(const Arguments& a) {
    if (norm_of(a) == NO_NORM) return;
    constexpr int line = 128 / sizeof(act_t);
    for (int at = threadIdx.x * line; at < a.in_features; at += THREADS * line) {
        touch(a.norm_weight + at);
        if (norm_of(a) == LAYER_NORM) touch(a.norm_bias + at);
    }
}

// What turns the sums of one output into its value. All that comes from memory is asked for before
// the first of it is used.
struct Finish {
    size_t at;
    float scale, other_scale;
    act_t bias, residual;
    __device__ __forceinline__ Finish(const Arguments& a, const Walk& walk, int feature, int row) {
        const Segment& segment = a.segment[GATED ? 0 : walk.segment];
        at = (size_t)row * a.out_features + walk.before(a) + feature;
        scale = segment.scale[feature];
        other_scale = GATED ? a.segment[1].scale[feature] : 0.0f;
        bias = segment.bias ? segment.bias[feature] : from_float(0.0f);
        residual = a.residual ? a.residual[at] : from_float(0.0f);
    }
    __device__ __forceinline__ void write(const Arguments& a, float value, float other) const {
        value = activate(value * scale + to_float(bias), activation_of(a));
        if (GATED) value *= other * other_scale;
        value += to_float(residual);
        if (a.is_y_float)
            ((float*)a.y)[at] = value;
        else
            ((act_t*)a.y)[at] = from_float(value);
    }
};
