// The next token by chance: penalties, temperature, top-k, top-p, min-p and one draw, nothing sorted.
//
// Tokens stand in an order by falling score, equal ones by rising id. Every cut, and the draw, asks
// where a running sum along that order passes a target. It is answered by histograms: first over
// stretches of the score, then over ten bits of the rank at a time, each inside the bin that the sum
// passes in, until that bin holds a single token. Probabilities are integers, so that sums do not
// depend on the order in which threads add them: equal draws are equal on every card.
#include "choice.cuh"

#define THREADS 1024
#define WARPS 32
#define BINS 1024  // one a thread
#define DIGIT_BITS 10
#define ID_BITS 28
#define RANK_BITS (32 + ID_BITS)  // a whole number of digits
// The weight of the best token, 2^43: a million of them fit into 63 bits, and a token with less than
// 2^-44 of it is never drawn.
#define UNIT 8796093022208.0

struct Settings {
    double temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
};

// The scores of a row and their weights; a token whose weight is 0 is in no cut.
struct Row {
    const float* scores;
    const u64* weights;
    int vocab_size;
    float best, bins_per_score;
};

// The tokens still in the game: those up to a rank, of at least a weight.
struct Cut {
    u64 last_rank, least_weight;
    u64 mass;  // of all of them
};

struct Sum {
    u64 mass;
    u32 count;
};

struct Shared {
    u32 mass_low[BINS], mass_high[BINS], count[BINS];
    Sum warps[WARPS];
    Sum before, within;  // the bin that the running sum passes in
    int digit;
    u64 rank;
    Best bests[WARPS];
    LogSum log_sums[WARPS];
    float lowest[WARPS];
    int is_bad;
};

__device__ __forceinline__ u64 rank_of(float score, int id) {
    const u32 bits = __float_as_uint(score + 0.0f);  // one zero, not two
    const u32 falling = bits & 0x80000000u ? bits : ~(bits | 0x80000000u);
    return ((u64)falling << ID_BITS) | (u32)id;
}

__device__ __forceinline__ int bin_of(const Row& row, float score) {
    // Rounding keeps the order; a conversion beyond the range of int ends at its limit.
    return min(BINS - 1, (int)((row.best - score) * row.bins_per_score));
}

__device__ __forceinline__ Sum warp_running_sum(Sum mine) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int distance = 1; distance < 32; distance <<= 1) {
        const u64 mass = __shfl_up_sync(0xffffffffu, mine.mass, distance);
        const u32 count = __shfl_up_sync(0xffffffffu, mine.count, distance);
        if (lane >= distance) mine.mass += mass, mine.count += count;
    }
    return mine;
}

// The sum over all threads up to this one, itself included; `total` over all.
__device__ Sum running_sum(Sum mine, Shared& shared, Sum& total) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    mine = warp_running_sum(mine);
    __syncthreads();
    if (lane == 31) shared.warps[warp] = mine;
    __syncthreads();
    const Sum warps = warp_running_sum(shared.warps[lane]);
    const int last = max(warp - 1, 0);
    const u64 mass = __shfl_sync(0xffffffffu, warps.mass, last);
    const u32 count = __shfl_sync(0xffffffffu, warps.count, last);
    total.mass = __shfl_sync(0xffffffffu, warps.mass, 31);
    total.count = __shfl_sync(0xffffffffu, warps.count, 31);
    if (warp) mine.mass += mass, mine.count += count;
    return mine;
}

__device__ __forceinline__ void add_to_bin(Shared& shared, int bin, u64 weight) {
    // Shared memory adds 32 bits at a time; the carry goes with the upper half.
    const u32 low = (u32)weight, old = atomicAdd(&shared.mass_low[bin], low);
    const u32 high = (u32)(weight >> 32) + (old + low < old);
    if (high) atomicAdd(&shared.mass_high[bin], high);
    atomicAdd(&shared.count[bin], 1u);
}

// The cut behind the token where the running sum, of weights or of tokens, first exceeds `target`,
// which is less than the sum of all.
__device__ Cut cut_where(const Row& row, Cut cut, u64 target, bool counts_tokens, Shared& shared) {
    Sum before = {0, 0};
    // In question: the tokens of this bin of scores whose rank begins with `prefix`.
    int bin = -1, shift = RANK_BITS;
    u64 prefix = 0;
    const auto in_question = [&](int id, u64& rank, int& score_bin, u64& weight) {
        weight = row.weights[id];
        if (weight < cut.least_weight) return false;
        const float score = row.scores[id];
        rank = rank_of(score, id);
        score_bin = bin_of(row, score);
        return rank <= cut.last_rank && (bin < 0 || (score_bin == bin && rank >> shift == prefix));
    };
    do {
        shared.mass_low[threadIdx.x] = shared.mass_high[threadIdx.x] = 0;
        shared.count[threadIdx.x] = 0;
        __syncthreads();
        for (int id = threadIdx.x; id < row.vocab_size; id += THREADS) {
            u64 rank, weight;
            int score_bin;
            if (!in_question(id, rank, score_bin, weight)) continue;
            const int digit = (int)(rank >> (shift - DIGIT_BITS)) & (BINS - 1);
            add_to_bin(shared, bin < 0 ? score_bin : digit, weight);
        }
        __syncthreads();
        const u64 mass =
            ((u64)shared.mass_high[threadIdx.x] << 32) + shared.mass_low[threadIdx.x];
        const Sum mine = {mass, shared.count[threadIdx.x]};
        Sum all, up_to = running_sum(mine, shared, all);
        const Sum from = {before.mass + up_to.mass - mine.mass,
                          before.count + up_to.count - mine.count};
        const u64 start = counts_tokens ? from.count : from.mass;
        const u64 length = counts_tokens ? mine.count : mine.mass;
        if (start <= target && target - start < length)
            shared.digit = threadIdx.x, shared.before = from, shared.within = mine;
        __syncthreads();
        before = shared.before;
        if (bin < 0) bin = shared.digit;
        else prefix = (prefix << DIGIT_BITS) | (u64)shared.digit, shift -= DIGIT_BITS;
    } while (shared.within.count > 1 && shift > 0);
    cut.mass = before.mass + shared.within.mass;
    if (shift > 0) {
        for (int id = threadIdx.x; id < row.vocab_size; id += THREADS) {
            u64 rank, weight;
            int score_bin;
            if (in_question(id, rank, score_bin, weight)) shared.rank = rank;
        }
        __syncthreads();
        prefix = shared.rank;
    }
    cut.last_rank = prefix;
    return cut;
}

// Drops the tokens of less than a weight.
__device__ Cut cut_below(const Row& row, Cut cut, u64 least_weight, Shared& shared) {
    cut.least_weight = max(cut.least_weight, least_weight);
    Sum mine = {0, 0}, all;
    for (int id = threadIdx.x; id < row.vocab_size; id += THREADS) {
        const u64 weight = row.weights[id];
        if (weight >= cut.least_weight && rank_of(row.scores[id], id) <= cut.last_rank)
            mine.mass += weight;
    }
    running_sum(mine, shared, all);
    cut.mass = all.mass;
    return cut;
}

// The token where the running sum along the ids first exceeds `target`; no cut has been made but by
// weight.
__device__ int draw_by_id(const Row& row, const Cut& cut, u64 target, Shared& shared) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int stretch = (row.vocab_size + THREADS - 1) / THREADS * 32;  // ids of a warp, in a row
    const int start = warp * stretch, end = min(start + stretch, row.vocab_size);
    const auto weight_of = [&](int id) -> u64 {
        const u64 weight = id < end ? row.weights[id] : 0;
        return weight >= cut.least_weight ? weight : 0;
    };
    Sum mine = {0, 0}, all;
    for (int id = start + lane; id < end; id += 32) mine.mass += weight_of(id);
    const Sum up_to = running_sum(mine, shared, all);
    // What stands before this warp's ids, and what stands up to their end.
    u64 before = __shfl_sync(0xffffffffu, up_to.mass - mine.mass, 0);
    const u64 after = __shfl_sync(0xffffffffu, up_to.mass, 31);
    if (before <= target && target < after) {
        for (int first = start; first < end; first += 32) {
            const Sum sum = warp_running_sum({weight_of(first + lane), 0});
            const u32 beyond = __ballot_sync(0xffffffffu, before + sum.mass > target);
            if (beyond) {
                if (lane == 0) shared.rank = (u64)(first + __ffs((int)beyond) - 1);
                break;
            }
            before += __shfl_sync(0xffffffffu, sum.mass, 31);
        }
    }
    __syncthreads();
    return (int)shared.rank;
}

// The token of a row with weights, by one uniform number.
__device__ int draw(const Row& row, const Settings& settings, double uniform, Sum all, int best_id,
                    Shared& shared) {
    Cut cut = {~0ull, 1, all.mass};
    const bool has_top_k = settings.top_k > 0.0 && settings.top_k < (double)row.vocab_size;
    const bool has_top_p = settings.top_p < 1.0;
    if (has_top_k && settings.top_k < (double)all.count)
        cut = cut_where(row, cut, (u64)settings.top_k - 1, true, shared);
    if (has_top_p) {
        // The last token before which the sum is less than top_p of the whole.
        const u64 target = (u64)ceil(settings.top_p * (double)cut.mass) - 1;
        cut = cut_where(row, cut, min(target, cut.mass - 1), false, shared);
    }
    if (settings.min_p > 0.0) cut = cut_below(row, cut, (u64)ceil(settings.min_p * UNIT), shared);
    const u64 target = (u64)(uniform * (double)cut.mass);
    if (target >= cut.mass) return best_id;  // the product was rounded up to the sum
    if (!has_top_k && !has_top_p) return draw_by_id(row, cut, target, shared);
    return (int)(cut_where(row, cut, target, false, shared).last_rank & ((1 << ID_BITS) - 1));
}

struct Penalties {
    float repetition, presence, frequency;
    const int* counts;  // of each token in the output
    const u8* seen;     // 1 in prompt or output

    // Each step rounded by itself, as where the steps are operations of their own.
    __device__ __forceinline__ float apply(float logit, int id) const {
        if (repetition != 1.0f && seen[id])
            logit = logit > 0.0f ? __fdiv_rn(logit, repetition) : __fmul_rn(logit, repetition);
        if (presence != 0.0f || frequency != 0.0f) {
            const int count = counts[id];
            logit = __fsub_rn(logit, count > 0 ? presence : 0.0f);
            logit = __fsub_rn(logit, __fmul_rn(frequency, (float)count));
        }
        return logit;
    }
};

// What the first pass over a row finds out.
struct Survey {
    Best best;
    float lowest;  // score that may be chosen
    LogSum log_sum;
    bool is_bad;
};

__device__ Survey survey(const float* logits, const u8* suppressed, int vocab_size,
                         const Penalties& penalties, float* scores, Shared& shared) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    Best best = {-INFINITY, 0x7fffffff};
    LogSum log_sum = {-INFINITY, 0.0f};
    float lowest = INFINITY;
    bool is_bad = false;
    if (threadIdx.x == 0) shared.is_bad = 0;
    __syncthreads();
    for (int id = threadIdx.x; id < vocab_size; id += THREADS) {
        const float logit = logits[id];
        is_bad |= !(fabsf(logit) < INFINITY);
        log_sum.add(logit);
        float score = -INFINITY;
        if (!suppressed || !suppressed[id]) {
            score = penalties.apply(logit, id);
            best = better(best, Best{score, id});
            lowest = fminf(lowest, score);
        }
        scores[id] = score;
    }
    if (is_bad) shared.is_bad = 1;
    best = warp_best(best);
    log_sum = warp_log_sum(log_sum);
    lowest = -warp_max(-lowest);
    if (lane == 0)
        shared.bests[warp] = best, shared.log_sums[warp] = log_sum, shared.lowest[warp] = lowest;
    __syncthreads();
    return {warp_best(shared.bests[lane]), -warp_max(-shared.lowest[lane]),
            warp_log_sum(shared.log_sums[lane]), shared.is_bad != 0};
}

// Fixed-point probabilities, where the best token has UNIT; their sum.
__device__ Sum weigh(const float* scores, u64* weights, int vocab_size, float best,
                     double temperature, Shared& shared) {
    Sum mine = {0, 0}, all;
    for (int id = threadIdx.x; id < vocab_size; id += THREADS) {
        const double x = ((double)scores[id] - (double)best) / temperature;
        const u64 weight = x > -40.0 ? __double2ull_rn(exp(x) * UNIT) : 0;
        weights[id] = weight;
        mine.mass += weight;
        mine.count += weight > 0;
    }
    running_sum(mine, shared, all);
    return all;
}

// Grid: one block a row; each has its own row of `suppressed`, `suppressed_stride` apart (0: all have
// the same). `status`: bit 0 = a logit was not finite, or no token may be chosen.
extern "C" __global__ void __launch_bounds__(THREADS)
    sample(const float* all_logits, const u8* suppressed, int suppressed_stride, int vocab_size,
           const Settings* all_settings, int* all_counts, u8* all_seen, const double* uniforms,
           int uniforms_capacity, int* num_drawn, const int* is_done, float* all_scores,
           u64* all_weights, long long* token_ids, float* logprobs, int* status) {
    __shared__ Shared shared;
    allow_next_kernel();
    wait_for_inputs();
    const int slot = blockIdx.x;
    const size_t first = (size_t)slot * vocab_size;
    if (suppressed) suppressed += (size_t)slot * suppressed_stride;
    const Settings settings = all_settings[slot];
    const Penalties penalties = {(float)settings.repetition_penalty,
                                 (float)settings.presence_penalty,
                                 (float)settings.frequency_penalty, all_counts + first,
                                 all_seen + first};
    float* scores = all_scores + first;
    const Survey found =
        survey(all_logits + first, suppressed, vocab_size, penalties, scores, shared);
    const bool is_usable = !found.is_bad && found.best.index < vocab_size;
    int chosen = is_usable ? found.best.index : 0;
    const bool draws = is_usable && settings.temperature > 0.0;
    if (draws) {
        // Beyond 32 temperatures nothing has a weight.
        const float spread = fminf(found.best.score - found.lowest, 32.0f * settings.temperature);
        const float bins_per_score = fminf(spread > 0.0f ? (float)BINS / spread : 0.0f, 1e30f);
        const Row row = {scores, all_weights + first, vocab_size, found.best.score, bins_per_score};
        const Sum all = weigh(scores, all_weights + first, vocab_size, found.best.score,
                              settings.temperature, shared);
        const int place = min(num_drawn[slot], uniforms_capacity - 1);
        const double uniform = uniforms[(size_t)slot * uniforms_capacity + place];
        chosen = draw(row, settings, uniform, all, found.best.index, shared);
    }
    __syncthreads();
    if (threadIdx.x) return;
    token_ids[slot] = chosen;
    const float quiet_nan = __int_as_float(0x7fffffff);
    if (is_usable)
        logprobs[slot] =
            all_logits[first + chosen] - found.log_sum.top - logf(found.log_sum.sum);
    else
        logprobs[slot] = found.is_bad ? quiet_nan : -INFINITY, atomicOr(status, 1);
    if (is_done[slot]) return;
    all_counts[first + chosen] += 1;
    all_seen[first + chosen] = 1;
    if (draws) num_drawn[slot] += 1;
}
