// Products of many tokens with tiled int8 weights, y = x @ W.T, on the matrix units of Hopper.
//
// As gemm.cu, with warpgroup products (wgmma): their left operand may come from registers, in the
// very layout of mma, so a warp of the group turns the row tile that is its own; the right one is
// read by the unit from shared memory. A group of 4 warps computes 64 rows x TOKENS tokens, and the
// groups of a block wait and multiply in turn. The first warp also starts the bulk copies, 64 inputs
// at a time, into a ring of STAGES: either operand consists of consecutive bytes in memory already.
// (A warp for that alone would leave the others too few registers for four groups.)
//
// Defines: ACTIVATION_TYPE, TOKENS (64 or 128), GROUPS (2 to 4), STAGES, GATED.

#include "gemm_output.cuh"

#ifndef GROUPS
#define GROUPS 4
#endif
#ifndef STAGES
#define STAGES 6
#endif
#define ROWS (GROUPS * 64)
#define THREADS (GROUPS * 128)
#define LEAD (STAGES - 2) // stages that copies run ahead
#define WEIGHT_BYTES (ROWS * 64)       // of a stage: 64 inputs
#define CHUNK_BYTES (TOKENS * 64)      // of x: 32 inputs
#define STAGE_BYTES (WEIGHT_BYTES + 2 * CHUNK_BYTES)
#define RING_OFFSET 256                // barriers come first
#define PASS_TOKENS 32

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
__device__ __forceinline__ void wait(u32 barrier, u32 parity) {
    asm volatile("{\n.reg .pred done;\nagain:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n}" ::"r"(barrier), "r"(parity)
                 : "memory");
}

__device__ __forceinline__ void copy(u32 to, const void* from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(to), "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}

// 8 x 8 numbers are 128 consecutive bytes; the other half of the 16 slots follows 128 bytes behind,
// the next 8 tokens 512.
__device__ __forceinline__ u64 descriptor(u32 address) {
    return (u64)((address & 0x3ffff) >> 4) | (u64)(128 >> 4) << 16 | (u64)(512 >> 4) << 32;
}

#define SUMS8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), \
                 "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SUMS32(i) SUMS8(i), SUMS8(i + 8), SUMS8(i + 16), SUMS8(i + 24)

__device__ __forceinline__ void multiply(float (&d)[TOKENS / 2], const u32* a, u64 b) {
#if TOKENS == 128
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
                 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
                 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
                 "{%64,%65,%66,%67}, %68, 1, 1, 1, 0;"
                 : SUMS32(0), SUMS32(32)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#else
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
                 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
                 "{%32,%33,%34,%35}, %36, 1, 1, 1, 0;"
                 : SUMS32(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

// A warp copies the operands of a step: lanes share the row tiles and the two chunks of x.
__device__ __forceinline__ void produce(const Product& p, u32 full, u32 empty, u32 ring, int first, int step) {
    const int lane = threadIdx.x & 31, stage = step % STAGES, chunk = (first + step) * 2;
    const u32 slot = ring + stage * STAGE_BYTES, barrier = full + stage * 8;
    if (step >= STAGES) wait(empty + stage * 8, (step / STAGES - 1) & 1);
    const int inputs = chunk % p.x_chunks;
    // Behind an odd last chunk stays what the slot held: any byte is a finite weight, and x is zero.
    const u32 bytes = min(2, p.chunks - inputs) * 512;
    if (lane == 0)
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                     "r"(ROWS / 16 * bytes + 2 * CHUNK_BYTES)
                     : "memory");
    __syncwarp();
    if (lane < ROWS / 16) {
        int local = lane, side = 0;
        if (GATED && local >= ROWS / 32) local -= ROWS / 32, side = 1;
        const int tile = min((int)blockIdx.y * (GATED ? ROWS / 32 : ROWS / 16) + local, p.num_tiles - 1);
        const uint4* tiles = side ? p.tiles[1] : p.tiles[0];
        copy(slot + lane * 1024, tiles + ((size_t)tile * p.chunks + inputs) * 32, bytes, barrier);
    } else if (lane < ROWS / 16 + 2) {
        const int which = lane - ROWS / 16;
        const size_t at = (size_t)(chunk + which) * (p.padded_tokens / 8) + blockIdx.x * (TOKENS / 8);
        copy(slot + WEIGHT_BYTES + which * CHUNK_BYTES, p.x + at * 32, CHUNK_BYTES, barrier);
    }
    __syncwarp();
}

__device__ __forceinline__ void accumulate(const Product& p, float (&sums)[TOKENS / 2], u32 full, u32 empty,
                                           u8* shared, int first, int count) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const u32 ring = full + RING_OFFSET;
    const u8* mine = shared + RING_OFFSET + warp * 1024 + lane * 16;
    if (warp == 0)
        for (int step = 0; step < min(LEAD, count); step++) produce(p, full, empty, ring, first, step);
    wait(full, 0);
    uint4 words[2] = {((const uint4*)mine)[0], ((const uint4*)mine)[32]};
    for (int step = 0; step < count; step++) {
        const int stage = step % STAGES;
        if (warp == 0 && step + LEAD < count) produce(p, full, empty, ring, first, step + LEAD);
        u32 a[2][STEPS16][4];
        left_operands<true>(words[0], a[0]);
        left_operands<true>(words[1], a[1]);
        const u32 x = ring + stage * STAGE_BYTES + WEIGHT_BYTES;
        // The registers are to be written before the fence, not merely before their use.
#pragma unroll
        for (int i = 0; i < 8; i++)
            asm volatile("" : "+r"(a[0][i / 4][i % 4]), "+r"(a[1][i / 4][i % 4])::"memory");
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        multiply(sums, a[0][0], descriptor(x));
        multiply(sums, a[0][1], descriptor(x + 256));
        multiply(sums, a[1][0], descriptor(x + CHUNK_BYTES));
        multiply(sums, a[1][1], descriptor(x + CHUNK_BYTES + 256));
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        if (step + 1 < count) {
            const int next = (step + 1) % STAGES;
            wait(full + next * 8, (step + 1) / STAGES & 1);
            words[0] = *(const uint4*)(mine + next * STAGE_BYTES);
            words[1] = *(const uint4*)(mine + next * STAGE_BYTES + 512);
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        if (lane == 0)
            asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(empty + stage * 8) : "memory");
    }
}
#endif

// Grid: (token blocks, row blocks, splits of the inputs). Dynamic shared memory: RING_OFFSET and
// STAGES stages, which is more than the staged sums of PASS_TOKENS tokens.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
gemm_hopper(const GRID_CONSTANT Product p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) u8 shared[];
    const u32 full = (u32)__cvta_generic_to_shared(shared), empty = full + 8 * STAGES;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(full + stage * 8) : "memory");
            asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(empty + stage * 8),
                         "r"(GROUPS * 4)
                         : "memory");
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    const int total = p.x_chunks / 2 * p.parts;
    const int first = (int)((long long)total * blockIdx.z / gridDim.z);
    const int count = (int)((long long)total * (blockIdx.z + 1) / gridDim.z) - first;
    float sums[TOKENS / 2];
#pragma unroll
    for (int i = 0; i < TOKENS / 2; i++) sums[i] = 0.0f;
    accumulate(p, sums, full, empty, shared, first, count);

    const int lane = threadIdx.x & 31;
    float* staged = (float*)(shared + RING_OFFSET);
    const int row = (threadIdx.x >> 5) * 16 + (lane >> 2);
#pragma unroll
    for (int pass = 0; pass < TOKENS / PASS_TOKENS; pass++) {
        __syncthreads();
#pragma unroll
        for (int n = 0; n < PASS_TOKENS / 8; n++) {
            const float* d = sums + (pass * (PASS_TOKENS / 8) + n) * 4;
            float* at = staged + (n * 8 + 2 * (lane & 3)) * (ROWS + 4) + row;
            at[0] = d[0], at[ROWS + 4] = d[1], at[8] = d[2], at[ROWS + 4 + 8] = d[3];
        }
        __syncthreads();
        store_staged<ROWS, THREADS>(p, staged, PASS_TOKENS, blockIdx.x * TOKENS + pass * PASS_TOKENS,
                                      PASS_TOKENS, 0, blockIdx.y * (GATED ? ROWS / 2 : ROWS));
    }
#endif
}

extern "C" __global__ void __launch_bounds__(256)
gemm_finish(const GRID_CONSTANT Product p, int splits) {
    finish(p, splits);
}
