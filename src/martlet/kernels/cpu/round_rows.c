/* Rows of floats as int8 with one scale a row: the largest magnitude of a row becomes 127.
 *
 * scale = largest / 127, data = x / scale rounded to nearest, halves to even, all in float32, so
 * that every bit is what the same steps give elsewhere. A row is read from memory once: its second
 * reading finds it in the processor's cache. A row that holds an infinite number or none at all
 * gets a scale that is not finite.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__F16C__)
#include <immintrin.h>
#endif

enum { FLOAT32, BFLOAT16, FLOAT16, CHUNK = 512 };

/* The fields are those of Rows in round_rows.py. */
typedef struct {
    const void *x;  /* (rows, columns), neighbours of a row one after the other */
    int8_t *data;   /* (rows, columns) */
    float *scale;   /* (rows,) */
    int64_t stride; /* numbers from one row of x to the next */
    int64_t rows, columns, type;
} Rows;

typedef struct {
    Rows of;
    int64_t next, step;
} Job;

static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    /* 2**112 takes the exponent from one bias to the other, and makes normal what was not. */
    return from_bits(sign | rest << 13) * 0x1p112f;
}

/* Up to CHUNK numbers of a row as float32. */
static void load(const Rows *of, int64_t row, int64_t start, int64_t count, float *restrict out) {
    int64_t first = row * of->stride + start;
    if (of->type == FLOAT32) {
        memcpy(out, (const float *)of->x + first, count * sizeof *out);
        return;
    }
    const uint16_t *in = (const uint16_t *)of->x + first;
    if (of->type == BFLOAT16) {
        for (int64_t i = 0; i < count; i++) out[i] = from_bits((uint32_t)in[i] << 16);
        return;
    }
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= count; i += 8) {
        __m128i halves = _mm_loadu_si128((const __m128i *)(in + i));
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(halves));
    }
#endif
    for (; i < count; i++) out[i] = half_to_float(in[i]);
}

/* Magnitudes are in the order of their bits, and what is no finite number comes last. */
static float largest_of(const Rows *of, int64_t row) {
    int64_t first = row * of->stride;
    if (of->type == FLOAT32) {
        const uint32_t *in = (const uint32_t *)of->x + first;
        uint32_t most = 0;
        for (int64_t i = 0; i < of->columns; i++) {
            uint32_t bits = in[i] & 0x7fffffff;
            most = bits > most ? bits : most;
        }
        return from_bits(most);
    }
    const uint16_t *in = (const uint16_t *)of->x + first;
    uint16_t most = 0;
    for (int64_t i = 0; i < of->columns; i++) {
        uint16_t bits = in[i] & 0x7fff;
        most = bits > most ? bits : most;
    }
    return of->type == BFLOAT16 ? from_bits((uint32_t)most << 16) : half_to_float(most);
}

static void round_row(const Rows *of, int64_t row) {
    float values[CHUNK], scale = largest_of(of, row) / 127.0f;
    scale = scale == 0.0f ? 1.0f : scale;
    of->scale[row] = scale;
    if (!isfinite(scale)) return;
    int8_t *data = of->data + row * of->columns;
    for (int64_t start = 0; start < of->columns; start += CHUNK) {
        int64_t left = of->columns - start, count = left < CHUNK ? left : CHUNK;
        load(of, row, start, count, values);
        for (int64_t i = 0; i < count; i++) {
            float step = rintf(values[i] / scale);
            step = step < -127.0f ? -127.0f : step;
            step = step > 127.0f ? 127.0f : step;
            data[start + i] = (int8_t)(int32_t)step;
        }
    }
}

static void work(void *given) {
    Job *job = given;
    for (;;) {
        int64_t row = __atomic_fetch_add(&job->next, job->step, __ATOMIC_RELAXED);
        if (row >= job->of.rows) return;
        int64_t stop = row + job->step < job->of.rows ? row + job->step : job->of.rows;
        for (; row < stop; row++) round_row(&job->of, row);
    }
}

/* `parallel` is the function that starts work on all threads, as grouped_linear.c has it. */
void martlet_round_rows(const Rows *rows,
                        void (*parallel)(void (*)(void *), void *, unsigned, unsigned),
                        unsigned threads) {
    Job job = {*rows, 0, 1};
    /* Pieces small enough that threads end together. */
    job.step = 1 + rows->rows / (threads * 16);
    if (parallel && threads > 1)
        parallel(work, &job, threads, 0);
    else
        work(&job);
}
