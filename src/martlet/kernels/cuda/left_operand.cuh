// A lane's 16 bytes of a tile as the left operand of matrix units.
#pragma once
#include "weights.cuh"

#define STEPS16 (CHUNK_INPUTS / 16)  // products of 16 inputs, of a chunk

// (word & mask) | bits in one instruction: the compiler takes two where both are constants.
template <u32 MASK>
__device__ __forceinline__ u32 masked(u32 word, u32 bits) {
    u32 value;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(value) : "r"(word), "n"(MASK), "r"(bits));
    return value;
}

// Two weights of 4 bits in the lowest bits of the halves of a word, or four bits higher: 0x64 above n
// is 1024 + n, 0x54 above 16 n is 64 + n. EXACT: less 1032 and 72, the weights themselves.
template <bool EXACT>
struct Nibbles {
    u32 low_exponents, high_exponents;
    __device__ __forceinline__ Nibbles() {
        // Out of the compiler's sight, so that they stay in registers.
        asm("mov.b32 %0, 0x64006400;" : "=r"(low_exponents));
        asm("mov.b32 %0, 0x54005400;" : "=r"(high_exponents));
    }
    __device__ __forceinline__ u32 low(u32 word) const {
        u32 value = masked<0x000f000fu>(word, low_exponents);
        if (EXACT) asm("sub.f16x2 %0, %0, %1;" : "+r"(value) : "r"(0x64086408u));
        return value;
    }
    __device__ __forceinline__ u32 high(u32 word) const {
        u32 value = masked<0x00f000f0u>(word, high_exponents);
        if (EXACT) asm("sub.f16x2 %0, %0, %1;" : "+r"(value) : "r"(0x54805480u));
        return value;
    }
};

// Two neighbouring bytes of a word: 0x64 above a byte u is 1024 + u, and a weight w is stored as
// w + 128.
template <int SELECTOR, bool EXACT>
__device__ __forceinline__ u32 integers(u32 word) {
    u32 value;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(value) : "r"(word), "r"(0x64646464u), "n"(SELECTOR));
    if (EXACT) asm("sub.f16x2 %0, %0, %1;" : "+r"(value) : "r"(0x64806480u));
    return value;
}

// Rows g and g + 8 under the slots 2c, 2c + 1, then under 2c + 8, 2c + 9, for every 16 inputs. Those
// that are not EXACT are greater by a number that depends on the input alone (excess_of).
template <bool EXACT>
__device__ __forceinline__ void left_operands(const uint4& w, u32 (&a)[STEPS16][4]) {
    const u32 words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
        const u32 upper = words[2 * pair], lower = words[2 * pair + 1];
#if BITS == 4
        const Nibbles<EXACT> nibbles;
        u32(&first)[4] = a[2 * pair], (&second)[4] = a[2 * pair + 1];
        first[0] = nibbles.low(upper), first[1] = nibbles.low(lower);
        first[2] = nibbles.high(upper), first[3] = nibbles.high(lower);
        second[0] = nibbles.low(upper >> 8), second[1] = nibbles.low(lower >> 8);
        second[2] = nibbles.high(upper >> 8), second[3] = nibbles.high(lower >> 8);
#else
        constexpr int front = 0x4140, back = 0x4342;
        a[pair][0] = integers<front, EXACT>(upper), a[pair][1] = integers<front, EXACT>(lower);
        a[pair][2] = integers<back, EXACT>(upper), a[pair][3] = integers<back, EXACT>(lower);
#endif
    }
}
