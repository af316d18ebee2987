/* Rows of the blocks of GGUF files as integers in groups of 32, with scales, and zeros where the
 * type has a lowest number. martlet/conversion/gguf_blocks.py says what becomes of what, and does
 * the same by torch's operations; every number here is what it is there, since both do the same
 * steps in float32 (a zero may have the other sign).
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__F16C__)
#include <immintrin.h>
#endif

enum { GROUP = 32, MOST_GROUPS = 8 }; /* numbers of a group, groups of a block */

/* The fields are those of Rows in block_rows.py. */
typedef struct {
    const uint8_t *blocks; /* (rows, bytes of a row) */
    void *data;            /* (rows, columns) int8, or (rows, columns / 2) uint8 */
    uint16_t *scale;       /* (rows, groups) float16 */
    uint16_t *zero;        /* the same, or NULL */
    float *row_scale;      /* (rows,) */
    float *scratch;        /* (threads, 3, groups) */
    int64_t row_bytes, rows, columns, type;
} Rows;

typedef struct {
    Rows of;
    int64_t next, step, threads, bad;
} Job;

static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float half_to_float(uint16_t half) {
#if defined(__F16C__)
    return _cvtsh_ss(half);
#else
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    return from_bits(sign | to_bits(from_bits(rest << 13) * 0x1p112f));
#endif
}

/* To nearest, halves to even. */
static uint16_t float_to_half(float value) {
#if defined(__F16C__)
    return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#else
    uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return sign | 0x7e00;
    if (rest >= 0x47800000) return sign | 0x7c00;
    /* Below 2**-14 the last bit is worth 2**-24, as that of 0.5 in float32 is. */
    if (rest < 0x38800000) return sign | (to_bits(from_bits(rest) + 0.5f) - 0x3f000000);
    return sign | (rest + 0xfff + (rest >> 13 & 1) - 0x38000000) >> 13;
#endif
}

static float half_at(const uint8_t *bytes) {
    uint16_t half;
    memcpy(&half, bytes, sizeof half);
    return half_to_float(half);
}

/* Steps and lowest numbers of the eight groups of Q4_K and Q5_K. */
static void eight_factors(const uint8_t *block, float *restrict step, float *restrict lowest) {
    float factor = half_at(block), minimum = half_at(block + 2);
    const uint8_t *packed = block + 4;
    for (int i = 0; i < 4; i++) {
        int scale = packed[8 + i] & 15, least = packed[8 + i] >> 4;
        step[i] = factor * (packed[i] & 63);
        step[4 + i] = factor * (scale | packed[i] >> 6 << 4);
        lowest[i] = -(minimum * (packed[4 + i] & 63));
        lowest[4 + i] = -(minimum * (least | packed[4 + i] >> 6 << 4));
    }
}

/* Types whose integers stay ----------------------------------------------------------------- */

/* `size` bytes with the first half of their numbers in the lower halves, as neighbours. */
static void neighbours(const uint8_t *restrict packed, int size, uint8_t *restrict out) {
    for (int i = 0; i < size / 2; i++) {
        uint8_t even = packed[2 * i], odd = packed[2 * i + 1];
        out[i] = (even & 15) | (uint8_t)(odd << 4);
        out[size / 2 + i] = even >> 4 | (odd & 0xf0);
    }
}

static void move_q4_0(const uint8_t *block, uint8_t *data, float *step, float *lowest) {
    (void)lowest;
    *step = half_at(block);
    neighbours(block + 2, 16, data);
}

static void move_q4_1(const uint8_t *block, uint8_t *data, float *step, float *lowest) {
    *step = half_at(block);
    *lowest = half_at(block + 2);
    neighbours(block + 4, 16, data);
}

static void move_q4_k(const uint8_t *block, uint8_t *data, float *step, float *lowest) {
    eight_factors(block, step, lowest);
    for (int i = 0; i < 4; i++) neighbours(block + 16 + 32 * i, 32, data + 32 * i);
}

static void move_q8_0(const uint8_t *block, uint8_t *data, float *step, float *lowest) {
    (void)lowest;
    *step = half_at(block);
    memcpy(data, block + 2, GROUP);
}

/* 32 numbers of five bits, their upper bits in four bytes. */
static void five_bits(const uint8_t *restrict upper, const uint8_t *restrict lower,
                      uint8_t *restrict out) {
    uint32_t bits;
    memcpy(&bits, upper, sizeof bits);
    for (int i = 0; i < 16; i++) {
        out[i] = (lower[i] & 15) | (bits >> i & 1) << 4;
        out[16 + i] = lower[i] >> 4 | (bits >> (16 + i) & 1) << 4;
    }
}

static void move_q5_0(const uint8_t *block, uint8_t *data, float *step, float *lowest) {
    (void)lowest;
    *step = half_at(block);
    five_bits(block + 2, block + 6, data);
    for (int i = 0; i < GROUP; i++) data[i] -= 16;
}

/* Types whose numbers are rounded ----------------------------------------------------------- */

static void values_q5_1(const uint8_t *block, float *out) {
    uint8_t integers[GROUP];
    float step = half_at(block), lowest = half_at(block + 2);
    five_bits(block + 4, block + 8, integers);
    for (int i = 0; i < GROUP; i++) out[i] = integers[i] * step + lowest;
}

static void values_q5_k(const uint8_t *block, float *out) {
    float step[8], lowest[8];
    eight_factors(block, step, lowest);
    for (int group = 0; group < 8; group++) {
        const uint8_t *low = block + 48 + group / 2 * 32, *high = block + 16;
        int shift = group % 2 * 4;
        for (int i = 0; i < GROUP; i++) {
            int integer = (low[i] >> shift & 15) | (high[i] >> group & 1) << 4;
            out[32 * group + i] = integer * step[group] + lowest[group];
        }
    }
}

/* `scales` are 16, each for 16 numbers in a row. */
static void values_of_16(const int8_t *restrict integers, const int8_t *restrict scales,
                         float factor, float *restrict out) {
    for (int part = 0; part < 16; part++) {
        float step = factor * scales[part];
        for (int i = 0; i < 16; i++) out[16 * part + i] = integers[16 * part + i] * step;
    }
}

static void values_q6_k(const uint8_t *block, float *out) {
    int8_t integers[256], scales[16];
    for (int half = 0; half < 2; half++)
        for (int quarter = 0; quarter < 4; quarter++) {
            const uint8_t *low = block + 64 * half + quarter % 2 * 32;
            const uint8_t *high = block + 128 + 32 * half;
            int8_t *to = integers + 128 * half + 32 * quarter;
            int shift = quarter / 2 * 4;
            for (int i = 0; i < 32; i++)
                to[i] = (int8_t)((low[i] >> shift & 15) | (high[i] >> 2 * quarter & 3) << 4) - 32;
        }
    memcpy(scales, block + 192, sizeof scales);
    values_of_16(integers, scales, half_at(block + 208), out);
}

static void values_q2_k(const uint8_t *block, float *out) {
    float factor = half_at(block + 80), minimum = half_at(block + 82);
    for (int part = 0; part < 16; part++) {
        const uint8_t *low = block + 16 + part / 8 * 32 + part % 2 * 16;
        float step = factor * (block[part] & 15), lowest = -(minimum * (block[part] >> 4));
        int shift = part / 2 % 4 * 2;
        for (int i = 0; i < 16; i++) out[16 * part + i] = (low[i] >> shift & 3) * step + lowest;
    }
}

static void values_q3_k(const uint8_t *block, float *out) {
    int8_t integers[256], scales[16];
    for (int group = 0; group < 8; group++) {
        const uint8_t *low = block + 32 + group / 4 * 32;
        int shift = group % 4 * 2;
        for (int i = 0; i < 32; i++)
            integers[32 * group + i] =
                (int8_t)((low[i] >> shift & 3) | (block[i] >> group & 1) << 2) - 4;
    }
    for (int part = 0; part < 16; part++) {
        int low = part < 8 ? block[96 + part] & 15 : block[88 + part] >> 4;
        scales[part] = (int8_t)(low | (block[104 + part % 4] >> part / 4 * 2 & 3) << 4) - 32;
    }
    values_of_16(integers, scales, half_at(block + 108), out);
}

/* The types, in the order of TYPES in block_rows.py. */
typedef struct {
    int elements, nbytes;
    int is_int4;
    void (*move)(const uint8_t *block, uint8_t *data, float *step, float *lowest);
    void (*values)(const uint8_t *block, float *out);
} Type;

static const Type TYPES[] = {
    {32, 18, 1, move_q4_0, 0},    {32, 20, 1, move_q4_1, 0},    {32, 22, 0, move_q5_0, 0},
    {32, 24, 0, 0, values_q5_1},  {32, 34, 0, move_q8_0, 0},    {256, 84, 0, 0, values_q2_k},
    {256, 110, 0, 0, values_q3_k}, {256, 144, 1, move_q4_k, 0}, {256, 176, 0, 0, values_q5_k},
    {256, 210, 0, 0, values_q6_k},
};

/* Numbers to the nearest integers; the largest of 32 becomes 127. */
static float round_group(const float *restrict values, int8_t *restrict data) {
    uint32_t most = 0; /* magnitudes are in the order of their bits, no finite number comes last */
    for (int i = 0; i < GROUP; i++) {
        uint32_t bits = to_bits(values[i]) & 0x7fffffff;
        most = bits > most ? bits : most;
    }
    if (most >= 0x7f800000) return INFINITY;
    float step = from_bits((to_bits(from_bits(most) / 127.0f) + 0x1000) & ~(uint32_t)0x1fff);
    float divisor = step > 0.0f ? step : INFINITY;
    for (int i = 0; i < GROUP; i++) {
        float integer = rintf(values[i] / divisor);
        integer = integer < -127.0f ? -127.0f : integer;
        integer = integer > 127.0f ? 127.0f : integer;
        data[i] = (int8_t)(int32_t)integer;
    }
    return step;
}

/* The integers of a row, with the step and the lowest number of each group. */
static void read_row(const Rows *of, int64_t row, float *step, float *lowest) {
    const Type *type = &TYPES[of->type];
    const uint8_t *block = of->blocks + row * of->row_bytes;
    int groups = type->elements / GROUP, group_bytes = type->is_int4 ? GROUP / 2 : GROUP;
    int64_t count = of->columns / type->elements, row_groups = of->columns / GROUP;
    uint8_t *data = (uint8_t *)of->data + row * row_groups * group_bytes;
    float values[GROUP * MOST_GROUPS];
    for (int64_t i = 0; i < count; i++, block += type->nbytes, step += groups, lowest += groups) {
        if (type->move) {
            type->move(block, data, step, lowest);
        } else {
            type->values(block, values);
            for (int group = 0; group < groups; group++)
                step[group] = round_group(values + GROUP * group, (int8_t *)data + GROUP * group);
        }
        data += groups * group_bytes;
    }
}

/* A power of two that brings the largest of a row to 0.5 to 1, or 1 where that costs bits. */
static float row_scale_of(const float *restrict steps, int64_t count) {
    float largest = 0.0f;
    for (int64_t i = 0; i < count; i++) {
        float step = fabsf(steps[i]);
        largest = step > largest ? step : largest;
    }
    int exponent = 0;
    if (largest > 0.0f && frexpf(largest, &exponent) == 0.5f) exponent--;
    exponent = exponent < -120 ? -120 : exponent > 120 ? 120 : exponent;
    float scale = from_bits((uint32_t)(exponent + 127) << 23);
    if (largest > 65504.0f) return scale;
    for (int64_t i = 0; i < count; i++) {
        float moved = half_to_float(float_to_half(steps[i] / scale)) * scale;
        float stayed = half_to_float(float_to_half(steps[i]));
        if (fabsf(moved - steps[i]) > fabsf(stayed - steps[i])) return 1.0f;
    }
    return scale;
}

/* `largest` is for what each group's scale has to hold. */
static void store_with_zeros(const Rows *of, int64_t row, const float *step, const float *lowest,
                             float *largest) {
    int64_t count = of->columns / GROUP;
    uint16_t *scale = of->scale + row * count, *zero = of->zero + row * count;
    uint8_t *data = (uint8_t *)of->data + row * count * (GROUP / 2);
    /* A group that is nearly one number all over has no use for its integers: it is flat. */
    for (int64_t i = 0; i < count; i++)
        largest[i] = fabsf(lowest[i]) >= 60000.0f * fabsf(step[i]) ? lowest[i] : step[i];
    float row_scale = of->row_scale[row] = row_scale_of(largest, count);
    for (int64_t i = 0; i < count; i++) {
        scale[i] = float_to_half(step[i] / row_scale);
        float kept = half_to_float(scale[i]) * row_scale;
        if (fabsf(lowest[i]) >= 60000.0f * fabsf(step[i]) || half_to_float(scale[i]) == 0.0f) {
            /* (0 - -1) * scale is what it is everywhere. */
            scale[i] = float_to_half(lowest[i] / row_scale);
            zero[i] = float_to_half(-1.0f);
            memset(data + i * (GROUP / 2), 0, GROUP / 2);
        } else {
            zero[i] = float_to_half(-lowest[i] / kept);
        }
    }
}

static void store(const Rows *of, int64_t row, const float *step) {
    int64_t count = of->columns / GROUP;
    float row_scale = of->row_scale[row] = row_scale_of(step, count);
    for (int64_t i = 0; i < count; i++)
        of->scale[row * count + i] = float_to_half(step[i] / row_scale);
}

static int all_finite(const float *numbers, int64_t count) {
    int bad = 0;
    for (int64_t i = 0; i < count; i++) bad |= !isfinite(numbers[i]);
    return !bad;
}

static void work(void *given) {
    Job *job = given;
    const Rows *of = &job->of;
    int64_t groups = of->columns / GROUP;
    float *step = of->scratch + 3 * groups * __atomic_fetch_add(&job->threads, 1, __ATOMIC_RELAXED);
    float *lowest = step + groups;
    for (;;) {
        int64_t row = __atomic_fetch_add(&job->next, job->step, __ATOMIC_RELAXED);
        if (row >= of->rows) return;
        int64_t stop = row + job->step < of->rows ? row + job->step : of->rows;
        for (; row < stop; row++) {
            read_row(of, row, step, lowest);
            if (!all_finite(step, groups) || (of->zero && !all_finite(lowest, groups))) {
                int64_t first = __atomic_load_n(&job->bad, __ATOMIC_RELAXED);
                while (row < first && !__atomic_compare_exchange_n(&job->bad, &first, row, 1,
                                                                   __ATOMIC_RELAXED,
                                                                   __ATOMIC_RELAXED)) {
                }
                continue;
            }
            if (of->zero)
                store_with_zeros(of, row, step, lowest, lowest + groups);
            else
                store(of, row, step);
        }
    }
}

/* The first row with a step or a lowest number that is not finite, or the number of rows.
 * `parallel` is the function that starts work on all threads, as grouped_linear.c has it. */
int64_t martlet_block_rows(const Rows *rows,
                           void (*parallel)(void (*)(void *), void *, unsigned, unsigned),
                           unsigned threads) {
    Job job = {*rows, 0, 1, 0, rows->rows};
    /* Pieces small enough that threads end together. */
    job.step = 1 + rows->rows / (threads * 16);
    if (parallel && threads > 1)
        parallel(work, &job, threads, 0);
    else
        work(&job);
    return job.bad;
}
