/* Products with weights of 4 or 8 bits in groups, from the plain rows as a file holds them.
 *
 * y[r][o] = row_scale[o] * sum over k of x[r][k] * (q[o][k] - zero[o][g]) * scale[o][g],
 * g = k / group_size. Decoding is bound by reading q, so q is read once for up to four rows of x
 * and multiplied as integers: x becomes int16 under one float32 scale for every block of 32 inputs,
 * which is off by at most 2**-16 of the block's largest value. Sums of a block are exact; the zeros
 * come in through the sums of x over the groups. What is computed of a row depends on that row
 * alone, in an order that neither the number of rows nor that of threads changes.
 *
 * A chunk is two blocks. Its 64 values stand in four vectors of 16, the first block's in the lower
 * halves, in the order in which masks and shifts bring up the weights:
 *   4 bits: input 4 j + m of a block is value j of vector m;
 *   8 bits: input 16 p + 2 j + m of a block is value j of vector 2 p + m.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define HAS_VECTORS 1
#else
#define HAS_VECTORS 0
#endif

enum {
    BLOCK = 32,
    CHUNK = 64,
    GROUPS_AT_ONCE = 8,
    LARGEST_GROUP = 128,
    ROWS_AT_ONCE = 4,
    LARGEST = 32767,
    PREFETCH_BYTES = 4096 /* measured: 10 to 30 % faster than what the processor does by itself */
};
#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* The fields are those of Product in grouped_linear.py. */
typedef struct {
    const float *x;         /* (rows, in_features) */
    float *y;               /* (rows, out_features) */
    const uint8_t *data;    /* (out_features, bytes of a row): low nibble first, or int8 */
    const uint16_t *scale;  /* (out_features, groups) float16 */
    const uint16_t *zero;   /* the same, or NULL: 8 for 4 bits; of 8 bits there are none */
    const float *row_scale; /* (out_features,) */
    int64_t rows, in_features, out_features, bits, group_size;
} Product;

/* A chunk of one row of x: the integers, and the scale of each block four times. */
typedef struct {
    int16_t values[4][16];
    float scale[8];
} Chunk;

/* Rows that are computed together, four or the last ones, lie together chunk by chunk. All is
 * padded with zeros, to whole chunks and whole steps of groups. */
typedef struct {
    Product of;
    Chunk *inputs; /* [row / 4][chunk][row % 4] */
    float *sums;   /* [row][group]: sum of the row's values over a group */
    int64_t chunks, groups, padded_groups, next, step;
    int group_shift;
} Job;

/* Where an input of a chunk stands among its 64 values. */
static int place_of(int input, int64_t bits) {
    const int block = input / BLOCK, i = input % BLOCK;
    const int vector = bits == 4 ? i % 4 : 2 * (i / 16) + i % 2;
    return 16 * vector + 8 * block + (bits == 4 ? i / 4 : i % 16 / 2);
}

/* One block as integers; returns their sum times the scale. A value that is not finite makes the
 * scale, and so the whole row of the product, not a number. */
static float round_block(const float *x, int16_t *integers, float *scale) {
    uint32_t largest_bits = 0; /* compared as integers, which compilers can do side by side */
    for (int i = 0; i < BLOCK; i++) {
        uint32_t word;
        memcpy(&word, x + i, 4);
        word &= 0x7fffffffu;
        largest_bits = word > largest_bits ? word : largest_bits;
    }
    float largest;
    memcpy(&largest, &largest_bits, 4);
    const int is_finite = largest_bits < 0x7f800000u;
    memset(integers, 0, BLOCK * sizeof *integers);
    *scale = is_finite ? 0.0f : NAN;
    /* Smaller values have no float32 inverse, and are nothing beside any other. */
    if (!is_finite || largest < 1e-30f) return *scale;
    const float inverse = (float)LARGEST / largest;
    int32_t sum = 0;
    for (int i = 0; i < BLOCK; i++) {
        const int32_t value = (int32_t)rintf(x[i] * inverse);
        integers[i] = (int16_t)value;
        sum += value;
    }
    *scale = largest / (float)LARGEST;
    return *scale * (float)sum;
}

static void round_row(const Job *job, int64_t row) {
    const Product *p = &job->of;
    const int64_t first = row / ROWS_AT_ONCE * ROWS_AT_ONCE;
    const int64_t beside = p->rows - first < ROWS_AT_ONCE ? p->rows - first : ROWS_AT_ONCE;
    Chunk *chunk = job->inputs + first * job->chunks + row - first;
    float *sums = job->sums + row * job->padded_groups;
    int places[CHUNK];
    for (int i = 0; i < CHUNK; i++) places[i] = place_of(i, p->bits);
    memset(sums, 0, (size_t)job->padded_groups * sizeof *sums);
    for (int64_t block = 0; block < job->chunks * 2; block++) {
        const int64_t at = block * BLOCK, left = p->in_features - at;
        const int half = block % 2;
        float padded[BLOCK] = {0}, scale;
        int16_t integers[BLOCK];
        const float *x = padded;
        if (left >= BLOCK)
            x = p->x + row * p->in_features + at;
        else if (left > 0)
            memcpy(padded, p->x + row * p->in_features + at, (size_t)left * sizeof *x);
        const float sum = round_block(x, integers, &scale);
        for (int i = 0; i < BLOCK; i++) {
            const int place = places[half * BLOCK + i];
            chunk->values[place / 16][place % 16] = integers[i];
        }
        for (int i = 0; i < 4; i++) chunk->scale[4 * half + i] = scale;
        if (left > 0) sums[at >> job->group_shift] += sum;
        if (half) chunk += beside;
    }
}

#if HAS_VECTORS
typedef __m256 Sum;
#define NO_SUM _mm256_setzero_ps()

/* The integers of a chunk, zeros not yet off, in the order of the inputs. */
ALWAYS_INLINE void load_weights(const uint8_t *data, int bits, __m256i w[4]) {
    if (bits == 4) {
        const __m256i words = _mm256_loadu_si256((const __m256i *)data);
        const __m256i mask = _mm256_set1_epi16(15);
        w[0] = _mm256_and_si256(words, mask);
        w[1] = _mm256_and_si256(_mm256_srli_epi16(words, 4), mask);
        w[2] = _mm256_and_si256(_mm256_srli_epi16(words, 8), mask);
        w[3] = _mm256_srli_epi16(words, 12);
        return;
    }
    for (int p = 0; p < 2; p++) {
        const __m128i *block = (const __m128i *)(data + 16 * p);
        const __m256i words = _mm256_loadu2_m128i(block + 2, block);
        w[2 * p] = _mm256_srai_epi16(_mm256_slli_epi16(words, 8), 8);
        w[2 * p + 1] = _mm256_srai_epi16(words, 8);
    }
}

ALWAYS_INLINE __m256i add_products(__m256i sum, __m256i a, __m256i b) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpwssd_epi32(sum, a, b);
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
#endif
}

/* Adds to the sum of each row what a chunk gives under the scales of its two blocks. */
ALWAYS_INLINE void add_chunk(const uint8_t *data, int bits, const float scale[2], int rows,
                             const Chunk *x, Sum *sum) {
    __m256i w[4];
    load_weights(data, bits, w);
    const __m256 weight_scale = _mm256_set_m128(_mm_set1_ps(scale[1]), _mm_set1_ps(scale[0]));
    for (int r = 0; r < rows; r++) {
        const __m256i *v = (const __m256i *)x[r].values;
        __m256i dot = _mm256_madd_epi16(w[0], v[0]);
        for (int m = 1; m < 4; m++) dot = add_products(dot, w[m], v[m]);
        const __m256 factor = _mm256_mul_ps(weight_scale, _mm256_load_ps(x[r].scale));
        sum[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), factor, sum[r]);
    }
}

/* Takes off what the zeros of eight groups stand for. */
ALWAYS_INLINE void take_zeros(const float scale[8], const float zero[8], int rows,
                              const float *sums, int64_t stride, Sum *sum) {
    const __m256 weight_zero = _mm256_mul_ps(_mm256_loadu_ps(scale), _mm256_loadu_ps(zero));
    for (int r = 0; r < rows; r++)
        sum[r] = _mm256_fnmadd_ps(weight_zero, _mm256_load_ps(sums + r * stride), sum[r]);
}

static float total(Sum sum) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}

static void eight_floats(const uint16_t *halves, float *floats) {
    _mm256_storeu_ps(floats, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)halves)));
}
#else
typedef struct {
    float lane[8];
} Sum;
#define NO_SUM ((Sum){{0}})

static int32_t block_dot(const uint8_t *data, int bits, const Chunk *x, int block) {
    int32_t dot = 0;
    for (int j = 0; j < 8; j++)
        for (int m = 0; m < 4; m++) {
            const int weight = bits == 4 ? data[2 * j + m / 2] >> 4 * (m % 2) & 15
                                         : (int8_t)data[16 * (m / 2) + 2 * j + m % 2];
            dot += weight * x->values[m][8 * block + j];
        }
    return dot;
}

ALWAYS_INLINE void add_chunk(const uint8_t *data, int bits, const float scale[2], int rows,
                             const Chunk *x, Sum *sum) {
    for (int r = 0; r < rows; r++)
        for (int b = 0; b < 2; b++) {
            const int32_t dot = block_dot(data + b * 4 * bits, bits, x + r, b);
            sum[r].lane[b] += (float)dot * (scale[b] * x[r].scale[4 * b]);
        }
}

ALWAYS_INLINE void take_zeros(const float scale[8], const float zero[8], int rows,
                              const float *sums, int64_t stride, Sum *sum) {
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 8; i++) sum[r].lane[i] -= scale[i] * zero[i] * sums[r * stride + i];
}

static float total(Sum sum) {
    float all = 0.0f;
    for (int i = 0; i < 8; i++) all += sum.lane[i];
    return all;
}

static float float_of_half(uint16_t half) {
    /* Without its sign, a half is the upper part of a float whose exponent is 112 too low. */
    uint32_t word = (uint32_t)(half & 0x7fffu) << 13;
    float value;
    memcpy(&value, &word, 4);
    value *= 0x1p112f;
    if ((half & 0x7c00u) == 0x7c00u) value = half & 0x3ffu ? NAN : INFINITY;
    return half & 0x8000u ? -value : value;
}

static void eight_floats(const uint16_t *halves, float *floats) {
    for (int i = 0; i < 8; i++) floats[i] = float_of_half(halves[i]);
}
#endif

/* What eight groups of one output are stored as. */
typedef struct {
    const uint8_t *data;
    const uint16_t *scale, *zero;
} Stored;

/* The last groups of an output, where they are fewer than eight. The file may end behind them, so
 * they are read from this copy, which ends in zeros. */
typedef struct {
    uint8_t data[GROUPS_AT_ONCE * LARGEST_GROUP];
    uint16_t scale[GROUPS_AT_ONCE], zero[GROUPS_AT_ONCE];
} Tail;

ALWAYS_INLINE Stored stored_at(const Product *p, int64_t data, int64_t group) {
    return (Stored){p->data + data, p->scale + group, p->zero ? p->zero + group : NULL};
}

static Stored copy_tail(Stored from, int64_t data_bytes, int64_t groups, Tail *tail) {
    memset(tail, 0, sizeof *tail);
    memcpy(tail->data, from.data, (size_t)data_bytes);
    memcpy(tail->scale, from.scale, (size_t)groups * sizeof *from.scale);
    if (from.zero) memcpy(tail->zero, from.zero, (size_t)groups * sizeof *from.zero);
    return (Stored){tail->data, tail->scale, from.zero ? tail->zero : NULL};
}

/* One output of up to four rows. */
ALWAYS_INLINE void multiply(const Job *job, int64_t out, int64_t first, int rows, int bits) {
    const Product *p = &job->of;
    const int chunk_bytes = CHUNK * bits / 8, shift = job->group_shift, to_group = shift - 5;
    const int64_t row_bytes = (p->in_features * bits + 7) / 8;
    const int64_t step = (GROUPS_AT_ONCE << shift) / CHUNK; /* chunks of eight groups */
    const int64_t whole = job->groups / GROUPS_AT_ONCE, rest = job->groups % GROUPS_AT_ONCE;
    const Chunk *x = job->inputs + first * job->chunks;
    const float *sums = job->sums + first * job->padded_groups;
    const int is_ragged = rest != 0 || p->in_features % CHUNK != 0;
    const int64_t last = rest ? whole : whole - 1; /* the last eight groups, or what there is */
    Stored tail_stored = {0};
    Tail tail;
    if (is_ragged) {
        const int64_t bytes = last * step * chunk_bytes, groups = last * GROUPS_AT_ONCE;
        tail_stored = copy_tail(stored_at(p, out * row_bytes + bytes, out * job->groups + groups),
                                row_bytes - bytes, job->groups - groups, &tail);
    }
    Sum sum[ROWS_AT_ONCE];
    for (int r = 0; r < rows; r++) sum[r] = NO_SUM;
    for (int64_t at = 0; at <= last; at++) {
        Stored stored = stored_at(p, out * row_bytes + at * step * chunk_bytes,
                                  out * job->groups + at * GROUPS_AT_ONCE);
        if (is_ragged && at == last) stored = tail_stored;
        float scale[GROUPS_AT_ONCE], zero[GROUPS_AT_ONCE] = {8, 8, 8, 8, 8, 8, 8, 8};
        eight_floats(stored.scale, scale);
        if (stored.zero) eight_floats(stored.zero, zero);
        if (bits == 4)
            take_zeros(scale, zero, rows, sums + at * GROUPS_AT_ONCE, job->padded_groups, sum);
        const int64_t left = job->chunks - at * step;
        const int blocks = 2 * (int)(left < step ? left : step);
        for (int block = 0; block < blocks; block += 2) {
            const float pair[2] = {scale[block >> to_group], scale[(block + 1) >> to_group]};
            __builtin_prefetch((const void *)((uintptr_t)stored.data + PREFETCH_BYTES));
            add_chunk(stored.data, bits, pair, rows, x, sum);
            stored.data += chunk_bytes, x += rows;
        }
    }
    for (int r = 0; r < rows; r++)
        p->y[(first + r) * p->out_features + out] = total(sum[r]) * p->row_scale[out];
}

ALWAYS_INLINE void multiply_rows(const Job *job, int64_t out, int bits) {
    int64_t row = 0;
    for (; row + 4 <= job->of.rows; row += 4) multiply(job, out, row, 4, bits);
    switch (job->of.rows - row) {
        case 3: multiply(job, out, row, 3, bits); break;
        case 2: multiply(job, out, row, 2, bits); break;
        case 1: multiply(job, out, row, 1, bits); break;
    }
}

static void work(void *argument) {
    Job *job = argument;
    for (;;) {
        const int64_t from = __atomic_fetch_add(&job->next, job->step, __ATOMIC_RELAXED);
        for (int64_t out = from; out < from + job->step; out++) {
            if (out >= job->of.out_features) return;
            if (job->of.bits == 4)
                multiply_rows(job, out, 4);
            else
                multiply_rows(job, out, 8);
        }
    }
}

/* Computes the product; 0, or -1 where there is no memory. ``parallel`` is GOMP_parallel of the
 * OpenMP that the process has already, so that its threads do the work and none of ours compete
 * with them; NULL is one thread. */
int martlet_grouped_linear(const Product *product,
                           void (*parallel)(void (*)(void *), void *, unsigned, unsigned),
                           unsigned threads) {
    Job job = {.of = *product};
    const int64_t rows = product->rows;
    while (1 << job.group_shift < product->group_size) job.group_shift++;
    job.chunks = (product->in_features + CHUNK - 1) / CHUNK;
    job.groups = (product->in_features + product->group_size - 1) / product->group_size;
    job.padded_groups = (job.groups + GROUPS_AT_ONCE - 1) / GROUPS_AT_ONCE * GROUPS_AT_ONCE;
    /* Both parts are whole numbers of 32 bytes, so the second is aligned like the first. */
    const size_t inputs = (size_t)(rows * job.chunks) * sizeof(Chunk);
    const size_t sums = (size_t)(rows * job.padded_groups) * sizeof(float);
    char *memory = aligned_alloc(64, (inputs + sums + 63) / 64 * 64);
    if (!memory) return -1;
    job.inputs = (Chunk *)memory;
    job.sums = (float *)(memory + inputs);
    for (int64_t row = 0; row < rows; row++) round_row(&job, row);
    /* Pieces small enough that threads end together, and long enough to be read in one run. */
    job.step = (product->out_features + threads * 8 - 1) / (threads * 8);
    if (parallel && threads > 1)
        parallel(work, &job, threads, 0);
    else
        work(&job);
    free(memory);
    return 0;
}
