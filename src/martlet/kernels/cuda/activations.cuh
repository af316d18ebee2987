// What kernels for many rows do with activations.
#pragma once

#include "common.cuh"

// The opposite of load8: each is rounded once.
__device__ __forceinline__ void store8(act_t* to, const float (&v)[8]) {
#if ACTIVATION_TYPE == 2
    ((float4*)to)[0] = make_float4(v[0], v[1], v[2], v[3]);
    ((float4*)to)[1] = make_float4(v[4], v[5], v[6], v[7]);
#else
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        words[i] = from_float(v[2 * i]) | (u32)from_float(v[2 * i + 1]) << 16;
    *(uint4*)to = make_uint4(words[0], words[1], words[2], words[3]);
#endif
}

// By number: 0 none, 1 gelu by tanh, 2 gelu, 3 relu, 4 silu.
__device__ __forceinline__ float activate(float x, int activation) {
    switch (activation) {
    case 1:
        return x / (1.0f + __expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
    case 2:
        return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
    case 3:
        return x < 0.0f ? 0.0f : x; // keeps a NaN
    case 4:
        return x / (1.0f + __expf(-x));
    default:
        return x;
    }
}
