// Tiles of weights to a plain row-major matrix in float16, bfloat16 or float32.
//
// A warp reads a run of a row tile, 16 bytes a lane and load, and turns it through shared memory, so
// that what it writes is 256 consecutive bytes of a row. The product of integer and scale is taken
// in float32 and rounded once.
//
// Defines: ACTIVATION_TYPE; BITS, GROUP, ZEROS.

#include "weights.cuh"

#if ACTIVATION_TYPE == 2
#define INPUTS 64            // that a warp turns at a time: 256 bytes of a row
#define ROW_BYTES (256 + 64) // what a row takes in shared memory, so that stores meet no conflict
#else
#define INPUTS 128
#define ROW_BYTES (256 + 32)
#endif
#define CHUNKS (INPUTS / CHUNK_INPUTS)
#define WARPS 8
#define PER_STORE (16 / sizeof(act_t))

// 2^23 + u is a float whose lowest bits are u.
#if BITS == 4
// Nibble `index` of a word, less `middle`.
template <int index> __device__ __forceinline__ float integer(u32 word, float middle) {
    return __uint_as_float(((word >> (4 * index)) & 15u) | 0x4b000000u) - 8388608.0f - middle;
}
#else
// Byte `index` of a word, unbiased.
template <int index> __device__ __forceinline__ float integer(u32 word, float) {
    u32 bits;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bits) : "r"(word), "r"(0x4b000000u), "n"(0x7650 + index));
    return __uint_as_float(bits) - 8388736.0f;
}
#endif

#if ACTIVATION_TYPE != 2
__device__ __forceinline__ u32 two(float low, float high) {
#if __CUDA_ARCH__ >= 800
    u32 bits;
#if ACTIVATION_TYPE == 0
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
#endif
    return bits;
#else
    return from_float(low) | (u32)from_float(high) << 16;
#endif
}
#endif

// What integers of a row stand for.
struct Step {
    float scale, middle;
};

// Four neighbouring inputs of a row into shared memory. Those of 4 bits are every second half byte.
__device__ __forceinline__ void put(u8* at, u32 word, const Step& step) {
    constexpr bool nibbles = BITS == 4;
    const float v0 = integer<0>(word, step.middle) * step.scale;
    const float v1 = integer<nibbles ? 4 : 1>(word, step.middle) * step.scale;
    const float v2 = integer<nibbles ? 1 : 2>(word, step.middle) * step.scale;
    const float v3 = integer<nibbles ? 5 : 3>(word, step.middle) * step.scale;
#if ACTIVATION_TYPE == 2
    *(float4*)at = make_float4(v0, v1, v2, v3);
#else
    *(uint2*)at = make_uint2(two(v0, v1), two(v2, v3));
#endif
}

// Up to three weights, or parts of them, one below the other in the matrix.
#define PIECES 3

struct Piece {
    const uint4* tiles; // from the first row tile wanted on
    const float* scale;
    const u8* groups;
    act_t* out; // its first row
    int rows;
    int end_tile; // row tiles of this piece and those before it
};

struct Arguments {
    Piece piece[PIECES];
    int num_tiles;
    int chunks; // of CHUNK_INPUTS, in a row
    int columns;
    int is_aligned; // every row written begins at a multiple of 16 bytes
};

// Grid: enough blocks of 256 threads for a warp per row tile and run of CHUNKS chunks.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
dequantize(const GRID_CONSTANT Arguments a) {
    __shared__ __align__(16) u8 turned[WARPS][16 * ROW_BYTES];
    const int lane = threadIdx.x & 31, g = lane >> 2, c = lane & 3;
    u8* mine = turned[threadIdx.x >> 5];
    const int runs = (a.chunks + CHUNKS - 1) / CHUNKS;
    const int task = blockIdx.x * WARPS + (threadIdx.x >> 5);
    int tile = task / runs;
    const int first = task % runs * CHUNKS;
    if (tile >= a.num_tiles) return;
    int which = 0;
    while (which < PIECES - 1 && tile >= a.piece[which].end_tile) which++;
    if (which) tile -= a.piece[which - 1].end_tile;
    const float* scale = a.piece[which].scale + tile * 16;
    act_t* out = a.piece[which].out;
    const int rows = a.piece[which].rows;

    uint4 words[CHUNKS];
    const uint4* source = a.piece[which].tiles + ((size_t)tile * a.chunks + first) * 32 + lane;
#pragma unroll
    for (int j = 0; j < CHUNKS; j++)
        words[j] = first + j < a.chunks ? load_stream(source + j * 32) : make_uint4(0, 0, 0, 0);
    const float upper = __ldg(scale + g), lower = __ldg(scale + 8 + g);
#if GROUP
    const int units = (a.chunks + UNIT_CHUNKS - 1) / UNIT_CHUNKS;
    const u8* tables = a.piece[which].groups + (size_t)tile * units * UNIT_BYTES + g * TABLE_BYTES;
#endif
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) {
#if GROUP
        // Behind the last chunk the integers are those of zero, but for what is not written.
        const int unit = min(first + j, a.chunks - 1) / UNIT_CHUNKS;
        const Table table = *(const Table*)(tables + (size_t)unit * UNIT_BYTES);
#endif
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            u8* at = mine + g * ROW_BYTES + ((j * HALVES + half) * 32 + c * 4) * (int)sizeof(act_t);
            Step step[2] = {{upper, MIDDLE}, {lower, MIDDLE}};
#if GROUP
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int group = half * CHUNK_GROUPS / HALVES;
                step[h].scale *= table.scale(group, h);
                if (ZEROS) step[h].middle = table.zero(group, h);
            }
#endif
#if BITS == 4
            const u32 one = half ? words[j].z : words[j].x, other = half ? words[j].w : words[j].y;
            put(at, one, step[0]);
            put(at + 8 * ROW_BYTES, other, step[1]);
            put(at + 16 * sizeof(act_t), one >> 8, step[0]);
            put(at + 16 * sizeof(act_t) + 8 * ROW_BYTES, other >> 8, step[1]);
#else
            put(at, words[j].x, step[0]);
            put(at + 8 * ROW_BYTES, words[j].y, step[1]);
            put(at + 16 * sizeof(act_t), words[j].z, step[0]);
            put(at + 16 * sizeof(act_t) + 8 * ROW_BYTES, words[j].w, step[1]);
#endif
        }
    }
    __syncwarp();

    // Half a warp writes a row; the columns behind the last one are padding.
    const int column = first * CHUNK_INPUTS + (lane & 15) * PER_STORE;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int local = 2 * i + (lane >> 4), row = tile * 16 + local;
        if (row >= rows || column >= a.columns) continue;
        const u8* from = mine + local * ROW_BYTES + (lane & 15) * 16;
        act_t* to = out + (size_t)row * a.columns + column;
        if (a.is_aligned && column + (int)PER_STORE <= a.columns) {
            *(uint4*)to = *(const uint4*)from;
        } else {
            for (int e = 0; e < (int)PER_STORE && column + e < a.columns; e++)
                to[e] = ((const act_t*)from)[e];
        }
    }
}
