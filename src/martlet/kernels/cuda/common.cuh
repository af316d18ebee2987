// Number types, loads and launch control that all kernels share. No header of the CUDA toolkit is
// used, so that the run-time compiler's own package is enough to compile.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

// The type of activations: 0 = float16, 1 = bfloat16, 2 = float32.
#ifndef ACTIVATION_TYPE
#define ACTIVATION_TYPE 0
#endif

#if ACTIVATION_TYPE == 2
typedef float act_t;
#else
typedef u16 act_t;
#endif

__device__ __forceinline__ float half_to_float(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ u16 float_to_half(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ float to_float(act_t value) {
#if ACTIVATION_TYPE == 0
    return half_to_float(value);
#elif ACTIVATION_TYPE == 1
    return __uint_as_float((u32)value << 16);
#else
    return value;
#endif
}

__device__ __forceinline__ act_t from_float(float value) {
#if ACTIVATION_TYPE == 0
    return float_to_half(value);
#elif ACTIVATION_TYPE == 1
    // Round to nearest, ties to even, on the integer; a NaN keeps its sign and becomes quiet.
    u32 bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)((bits >> 16) | 0x40u);
    return (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#else
    return value;
#endif
}

// Eight consecutive activations as they lie; their address is aligned to their size.
struct Vector8 {
    uint4 words[sizeof(act_t) / 2];
};

__device__ __forceinline__ void unpack8(const Vector8& from, float (&to)[8]) {
#if ACTIVATION_TYPE == 2
    const float* values = (const float*)from.words;
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] = values[i];
#else
    const u32 words[4] = {from.words[0].x, from.words[0].y, from.words[0].z, from.words[0].w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = to_float((u16)(words[i] & 0xffffu));
        to[2 * i + 1] = to_float((u16)(words[i] >> 16));
    }
#endif
}

__device__ __forceinline__ void load8(const act_t* from, float (&to)[8]) {
    unpack8(*(const Vector8*)from, to);
}

// 16 bytes that are read once: past the first-level cache.
__device__ __forceinline__ uint4 load_stream(const uint4* from) {
    uint4 value;
#if __CUDA_ARCH__ >= 700
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from));
#else
    asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from));
#endif
    return value;
}

// Bring a line into the first-level cache without waiting for it.
__device__ __forceinline__ void touch(const void* address) {
    u32 unused;
    asm volatile("ld.global.ca.u32 %0, [%1];" : "=r"(unused) : "l"((u64)address & ~3ull));
}

// Arguments read where they lie, also by a computed index.
#if __CUDA_ARCH__ >= 700
#define GRID_CONSTANT __grid_constant__
#else
#define GRID_CONSTANT
#endif

// Programmatic dependent launch: what stands before wait_for_inputs() runs while the kernel before
// still computes, so it may only touch what no kernel writes: weights. Without the launch attribute,
// and on cards that lack it, both do nothing.
__device__ __forceinline__ void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Those of a warp's lanes that stand together in groups of `lanes`, this lane among them.
template <int lanes>
__device__ __forceinline__ u32 lanes_together() {
    return (0xffffffffu >> (32 - lanes)) << (threadIdx.x & 31 & ~(lanes - 1));
}

// A sum over them, all of which must come here.
template <int lanes>
__device__ __forceinline__ float sum_of_lanes(float value) {
#pragma unroll
    for (int distance = lanes / 2; distance; distance >>= 1)
        value += __shfl_xor_sync(lanes_together<lanes>(), value, distance);
    return value;
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = 16; distance; distance >>= 1)
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int distance = 16; distance; distance >>= 1)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
    return value;
}
