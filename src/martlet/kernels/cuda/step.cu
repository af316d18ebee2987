// What follows the blocks in a decode step: the choice of the next token.
#include "choice.cuh"

#define THREADS 1024

// The most probable token of each row that is not suppressed, and its log-probability among all.
// Grid: one block a row; each has its own row of `suppressed`, `suppressed_stride` apart (0: all have
// the same). `status`: bit 0 = a logit was not finite.
extern "C" __global__ void __launch_bounds__(THREADS)
    most_probable(const float* logits, const u8* suppressed, int suppressed_stride, int vocab_size,
                  long long* token_ids, float* logprobs, int* status) {
    __shared__ Best bests[32];
    __shared__ LogSum log_sums[32];
    __shared__ int is_bad;
    allow_next_kernel();
    wait_for_inputs();
    const float* row = logits + (size_t)blockIdx.x * vocab_size;
    if (suppressed) suppressed += (size_t)blockIdx.x * suppressed_stride;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    if (threadIdx.x == 0) is_bad = 0;
    __syncthreads();
    Best best = {-INFINITY, 0x7fffffff};
    LogSum log_sum = {-INFINITY, 0.0f};
    bool bad = false;
    for (int i = threadIdx.x; i < vocab_size; i += THREADS) {
        const float value = row[i];
        bad |= !(fabsf(value) < INFINITY);
        if (!suppressed || !suppressed[i]) best = better(best, Best{value, i});
        log_sum.add(value);
    }
    if (bad) is_bad = 1;
    best = warp_best(best);
    log_sum = warp_log_sum(log_sum);
    if (lane == 0) bests[warp] = best, log_sums[warp] = log_sum;
    __syncthreads();
    if (warp) return;
    best = warp_best(bests[lane]);
    log_sum = warp_log_sum(log_sums[lane]);
    if (lane) return;
    const bool is_any = best.index < vocab_size;
    token_ids[blockIdx.x] = is_any ? best.index : 0;
    float logprob = is_any ? row[best.index] - log_sum.top - logf(log_sum.sum) : -INFINITY;
    if (is_bad) logprob = __int_as_float(0x7fffffff);  // not a number, as -inf among logits is none
    logprobs[blockIdx.x] = logprob;
    if (is_bad || !is_any) atomicOr(status, 1);
}

// The end of a step, one thread a slot: notes the token, counts it, and tells whether the text ends.
// A slot that is done reads its last token again and again without moving on.
extern "C" __global__ void finish_step(long long* token_ids, const float* logprobs, int* lengths,
                                       int* num_output, long long* output_ids,
                                       float* output_logprobs, int output_capacity, int* is_done,
                                       const int* ending_ids, int num_ending, int num_slots) {
    allow_next_kernel();
    wait_for_inputs();
    const int slot = blockIdx.x * blockDim.x + threadIdx.x;
    if (slot >= num_slots || is_done[slot]) return;
    const int token_id = (int)token_ids[slot], place = num_output[slot];
    if (place >= output_capacity) return;
    output_ids[(size_t)slot * output_capacity + place] = token_id;
    output_logprobs[(size_t)slot * output_capacity + place] = logprobs[slot];
    num_output[slot] = place + 1;
    lengths[slot] += 1;
    for (int i = 0; i < num_ending; i++)
        if (ending_ids[i] == token_id) is_done[slot] = 1;
}
