// Keys and values as a cache holds them: activations as they are, or int8 with a scale for each
// vector of a head, which then multiplies the score, or the weight of the value.
#pragma once
#include "common.cuh"

#ifndef CACHE_INT8
#define CACHE_INT8 0
#endif

#if CACHE_INT8

typedef signed char cache_t;

// Eight consecutive components of a vector, and the bfloat16 of its scale.
struct CacheVector {
    uint2 words;
    u16 scale_bits;
    __device__ __forceinline__ void load(const cache_t* components, const u16* scale) {
        words = *(const uint2*)components;
        scale_bits = *scale;
    }
    __device__ __forceinline__ float scale() const {
        return __uint_as_float((u32)scale_bits << 16);
    }
};

// Exact: under the bytes of 2^23, 128 + q is the mantissa of 2^23 + 128 + q.
__device__ __forceinline__ void unpack8(const CacheVector& from, float (&to)[8]) {
    const u32 words[2] = {from.words.x ^ 0x80808080u, from.words.y ^ 0x80808080u};
#pragma unroll
    for (int i = 0; i < 8; i++)
        to[i] = __uint_as_float(__byte_perm(words[i / 4], 0x4b000000u, 0x7440u | (i % 4))) -
                8388736.0f;
}

// Eight components of a vector that `lanes` neighbouring lanes hold together, all of which must
// come here; the definition is that of Python's quantize_vectors. A component that is not finite
// makes a scale that is not: hence bits are compared, of which a NaN has the largest.
template <int lanes>
__device__ __forceinline__ CacheVector quantise8(const float (&v)[8]) {
    u32 largest = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) largest = max(largest, __float_as_uint(v[i]) & 0x7fffffffu);
#pragma unroll
    for (int distance = lanes / 2; distance; distance >>= 1)
        largest = max(largest, __shfl_xor_sync(lanes_together<lanes>(), largest, distance));
    const u32 bits = __float_as_uint(__uint_as_float(largest) * (1.0f / 127.0f));
    CacheVector to;
    to.scale_bits = bits > 0x7f800000u ? 0x7fc0u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const float step = fmaxf(to.scale(), 1.17549435e-38f);
    u32 words[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int q = min(max(__float2int_rn(v[i] / step), -127), 127);
        words[i / 4] |= (u32)(q & 0xff) << (i % 4 * 8);
    }
    to.words = uint2{words[0], words[1]};
    return to;
}

#else

typedef act_t cache_t;

struct CacheVector {
    Vector8 components;
    __device__ __forceinline__ void load(const cache_t* from, const u16*) {
        components = *(const Vector8*)from;
    }
    __device__ __forceinline__ float scale() const { return 1.0f; }
};

__device__ __forceinline__ void unpack8(const CacheVector& from, float (&to)[8]) {
    unpack8(from.components, to);
}

#endif
