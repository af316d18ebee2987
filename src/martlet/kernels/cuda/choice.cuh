// What every choice of a next token shares: the best of a row, and the sum of all its exponentials.
#pragma once
#include "common.cuh"

struct Best {
    float score;
    int index;
};

__device__ __forceinline__ Best better(Best a, Best b) {
    // The lower index among equals, as everywhere.
    return b.score > a.score || (b.score == a.score && b.index < a.index) ? b : a;
}

__device__ __forceinline__ Best warp_best(Best best) {
#pragma unroll
    for (int distance = 16; distance; distance >>= 1) {
        Best other;
        other.score = __shfl_xor_sync(0xffffffffu, best.score, distance);
        other.index = __shfl_xor_sync(0xffffffffu, best.index, distance);
        best = better(best, other);
    }
    return best;
}

// The sum of exp(value - top) over values that come one by one: brought to a new top when one comes.
struct LogSum {
    float top, sum;
    __device__ __forceinline__ void add(float value) {
        if (value > top) sum = sum * expf(top - value) + 1.0f, top = value;
        else sum += expf(value - top);
    }
};

__device__ __forceinline__ LogSum warp_log_sum(LogSum part) {
    const float top = warp_max(part.top);
    return {top, warp_sum(top > -INFINITY ? part.sum * expf(part.top - top) : 0.0f)};
}
