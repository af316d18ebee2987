// A token's embedding: rows of a tiled table as activations.
//
// Defines: ACTIVATION_TYPE; BITS, GROUP, ZEROS (the table's format).
#include "weights.cuh"

// Weights 4 x of a row from `at` on, a multiple of 4.
__device__ __forceinline__ void integers_of(const u8* tile, int row, int at, int (&to)[4]) {
    const int h = (row >> 3) & 1, lane = 4 * (row & 7) + ((at >> 2) & 3), q = (at >> 4) & 1;
    tile += (size_t)(at / CHUNK_INPUTS) * 512 + lane * 16;
#if BITS == 4
    // Bits of a word: (q, e) = 00 02 10 12 01 03 11 13, four each.
    const u32 word = *(const u32*)(tile + ((at >> 5) & 1) * 8 + h * 4) >> (8 * q);
#pragma unroll
    for (int e = 0; e < 4; e++) to[e] = (int)((word >> (16 * (e & 1) + 4 * (e >> 1))) & 15u);
#else
    const u32 word = *(const u32*)(tile + q * 8 + h * 4);
#pragma unroll
    for (int e = 0; e < 4; e++) to[e] = (int)((word >> (8 * e)) & 255u) - 128;
#endif
}

// Rows of a table, plus a row of a position table where there is one. Grid: a block a row of `y`.
extern "C" __global__ void __launch_bounds__(256)
    embed(const long long* token_ids, const u8* tiles, const u8* groups, const float* scale,
          const act_t* positions, const int* lengths, int num_positions, act_t* y, int hidden_size) {
    allow_next_kernel();
    wait_for_inputs();
    const int row = (int)token_ids[blockIdx.x];
    const int chunks = (hidden_size + CHUNK_INPUTS - 1) / CHUNK_INPUTS;
    const u8* tile = tiles + (size_t)(row >> 4) * chunks * 512;
    const float row_factor = scale[row];
#if GROUP
    const int units = (chunks + UNIT_CHUNKS - 1) / UNIT_CHUNKS;
    groups += (size_t)(row >> 4) * units * UNIT_BYTES + (row & 7) * TABLE_BYTES;
#endif
    const int position = positions ? max(0, min(lengths[blockIdx.x], num_positions - 1)) : 0;
    for (int at = threadIdx.x * 4; at < hidden_size; at += blockDim.x * 4) {
        int integer[4];
        integers_of(tile, row, at, integer);
        float factor = row_factor, zero = 0.0f;
#if GROUP
        constexpr int unit = UNIT_CHUNKS * CHUNK_INPUTS;
        const Table& table = *(const Table*)(groups + (size_t)(at / unit) * UNIT_BYTES);
        const int group = at % unit / GROUP, h = (row >> 3) & 1;
        factor *= table.scale(group, h);
        zero = ZEROS ? table.zero(group, h) : MIDDLE;
#endif
#pragma unroll
        for (int e = 0; e < 4; e++) {
            if (at + e >= hidden_size) break;
            // Rounded as a table look-up rounds, before the position comes in.
            act_t value = from_float(__fmul_rn((float)integer[e] - zero, factor));
            if (positions)
                value = from_float(to_float(value) +
                                   to_float(positions[(size_t)position * hidden_size + at + e]));
            y[(size_t)blockIdx.x * hidden_size + at + e] = value;
        }
    }
}
