// What tiled weights are (packing.py): their format, and the tables of scales of groups.
#pragma once
#include "common.cuh"

// What the weights are: BITS 8 or 4; GROUP inputs share a scale, 0: all of a row do; ZEROS: groups
// have a zero as well.
#ifndef BITS
#define BITS 8
#endif
#ifndef GROUP
#define GROUP 0
#endif
#ifndef ZEROS
#define ZEROS 0
#endif

#define CHUNK_INPUTS (256 / BITS)      // of a tile, 512 bytes for 16 outputs
#define HALVES (CHUNK_INPUTS / 32)     // inputs are staged 32 at a time
#define MIDDLE (BITS == 4 ? 8.0f : 0.0f) // the integer that is zero without ZEROS

#if GROUP
// Scales, and zeros, of a chunk lie together for each pair of rows g and g + 8: group, row, kind. A
// group that is longer than a chunk serves UNIT_CHUNKS of them.
#define CHUNK_GROUPS (GROUP < CHUNK_INPUTS ? CHUNK_INPUTS / GROUP : 1)
#define UNIT_CHUNKS (GROUP > CHUNK_INPUTS ? GROUP / CHUNK_INPUTS : 1)
#define TABLE_BYTES (CHUNK_GROUPS * 2 * (1 + ZEROS) * 2)
#define UNIT_BYTES (8 * TABLE_BYTES)

// Those that a lane needs for its 16 bytes of weights.
struct __align__(TABLE_BYTES) Table {
    u16 of[TABLE_BYTES / 2];
    __device__ __forceinline__ float scale(int group, int h) const {
        return half_to_float(of[(group * 2 + h) * (1 + ZEROS)]);
    }
    __device__ __forceinline__ float zero(int group, int h) const {
        return half_to_float(of[(group * 2 + h) * (1 + ZEROS) + 1]);
    }
};

#if __CUDA_ARCH__ >= 800
// A table into shared memory, or zeros where `bytes` is 0. Four lanes share one; the first copies.
__device__ __forceinline__ void copy_table(u32 to, const u8* from, int bytes) {
    if (threadIdx.x & 3) return;
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from),
                 "n"(TABLE_BYTES), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void load_table(Table& to, u32 from) {
    u32* w = (u32*)to.of;
#if TABLE_BYTES == 16
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                 : "r"(from)
                 : "memory");
#elif TABLE_BYTES == 8
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(w[0]), "=r"(w[1]) : "r"(from) : "memory");
#else
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(w[0]) : "r"(from) : "memory");
#endif
}
#endif
#else
#define TABLE_BYTES 0
#endif
