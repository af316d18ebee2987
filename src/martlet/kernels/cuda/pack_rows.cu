// Activations to the operand that gemm.cu multiplies: float16, in the order of the matrix units.
//
// Eight tokens x 32 inputs are 512 consecutive bytes, [chunk][token / 8][q][half][n][slot] with
// token = 8 tile + n and input = 32 chunk + 16 q + 4 (slot / 2) + 2 half + slot % 2: the k slots are
// permuted as they are in the tiles of the weights, and every 128 bytes are 8 x 8 numbers with one
// token's slots together, which is what ldmatrix and the descriptors of wgmma call a core matrix.
//
// float16 has neither the range of bfloat16 nor the precision of float32. So a token of those types
// is multiplied by a power of two, which puts its largest number between 2^14 and 2^15, and the
// product is divided by it. With two parts, the second one is what the first one's rounding left:
// 22 bits of precision for twice the arithmetic.
//
// Defines: ACTIVATION_TYPE.

#include "common.cuh"

#define THREADS 256

// The power of two that the numbers of a row are divided by; the warp looks at its row together.
__device__ __forceinline__ float row_exponent(const act_t* row, int columns, int lane) {
    float largest = 0.0f;
    const uint4* words = (const uint4*)row;
    const int count = columns * (int)sizeof(act_t) / 16;
#pragma unroll 4
    for (int i = lane; i < count; i += 32) {
        const uint4 word = __ldg(words + i);
        const act_t* values = (const act_t*)&word;
#pragma unroll
        for (int e = 0; e < 16 / (int)sizeof(act_t); e++)
            largest = fmaxf(largest, fabsf(to_float(values[e])));
    }
    largest = warp_max(largest);
    const int exponent = (int)(__float_as_uint(largest) >> 23) - 127;
    // Rows of nothing but zeros or of infinities stay within what a float can be multiplied by.
    const int clamped = min(max(exponent, -100), 127) - 14;
    return __uint_as_float((u32)(clamped + 127) << 23);
}

// Grid: (token tiles, ranges of chunks). `columns` is a multiple of 32 and rows begin at multiples
// of 16 bytes. Tokens behind `rows` and chunks behind `columns` become zeros. `chunks` counts those
// of one part; `token_scale` is what the product is to be multiplied by.
extern "C" __global__ void __launch_bounds__(THREADS)
pack_rows(const act_t* __restrict__ x, uint4* __restrict__ packed,
          float* __restrict__ token_scale, int rows, int columns, int stride, int chunks, int parts) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, tile = blockIdx.x;
#if ACTIVATION_TYPE == 0
    const float divisor = 1.0f;
    if (blockIdx.y == 0 && threadIdx.x < 8) token_scale[tile * 8 + threadIdx.x] = 1.0f;
#else
    __shared__ float scales[8];
    {
        const int row = tile * 8 + warp;
        float scale = 1.0f;
        if (row < rows) scale = row_exponent(x + (size_t)row * stride, columns, lane);
        if (lane == 0) {
            scales[warp] = scale;
            if (blockIdx.y == 0) token_scale[row] = scale;
        }
    }
    __syncthreads();
    const float divisor = scales[lane & 7];
#endif
    const int row = tile * 8 + (lane & 7), q = lane >> 4, half = lane >> 3 & 1;
    const float factor = 1.0f / divisor;
    const int per_range = (chunks + gridDim.y - 1) / gridDim.y;
    const int last = min(chunks, (int)(blockIdx.y + 1) * per_range);
    for (int chunk = blockIdx.y * per_range + warp; chunk < last; chunk += THREADS / 32) {
        const int input = chunk * 32 + q * 16 + half * 2;
        const bool is_inside = row < rows && chunk * 32 < columns;
        u32 first[4], second[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float a = 0.0f, b = 0.0f;
            if (is_inside) {
                const act_t* pair = x + (size_t)row * stride + input + 4 * i;
#if ACTIVATION_TYPE == 2
                const float2 both = __ldg((const float2*)pair);
                a = both.x * factor, b = both.y * factor;
#else
                const u32 both = __ldg((const u32*)pair);
                a = to_float((act_t)both) * factor, b = to_float((act_t)(both >> 16)) * factor;
#endif
            }
            const u16 low = float_to_half(a), high = float_to_half(b);
            first[i] = low | (u32)high << 16;
            const u16 rest = float_to_half(a - half_to_float(low));
            second[i] = rest | (u32)float_to_half(b - half_to_float(high)) << 16;
        }
        const size_t at = ((size_t)chunk * gridDim.x + tile) * 32 + lane;
        packed[at] = make_uint4(first[0], first[1], first[2], first[3]);
        if (parts == 2)
            packed[at + (size_t)chunks * gridDim.x * 32] =
                make_uint4(second[0], second[1], second[2], second[3]);
    }
}
