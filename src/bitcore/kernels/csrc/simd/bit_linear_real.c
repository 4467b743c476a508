/* Matrix products with float activations, in the order of bit_reals.h: of prepared weights, and of plain levels. */
#include "bit_reals.h"

struct product {
    void (*real)(const struct bit_real_weight *, const uint8_t *, const float *, ptrdiff_t, int, float *);
    struct bit_real_weight weight;
    const struct bit_prepared *prepared;
    const float *levels; /* or plain ones, [outputs][inputs] */
    const float *x;
    float *y;
    int64_t rows, outputs, inputs, stride; /* stride: of x */
};

static int describe(struct bit_real_weight *w, const struct bit_prepared *p) {
    if (p->layout == BIT_LAYOUT_TERNARY || p->layout == BIT_LAYOUT_BITS) {
        return BIT_BAD_FORMAT;
    }
    w->units = p->units;
    w->bits = bit_shapes[p->layout].bits;
    w->affine = p->tables == 0;
    w->step = (float)p->step;
    w->base = (float)p->base;
    for (int i = 0; i < 16; i++) {
        const int code = i & ((1 << w->bits) - 1);
        const int value = w->affine ? code : p->table[0][code] - (p->tables == 2 ? p->table[1][code] : 0);
        w->table[i] = (float)(p->base + p->step * value);
    }
    return BIT_OK;
}

static void multiply_group(void *job, int64_t group, void *scratch) {
    const struct product *p = job;
    const struct bit_prepared *w = p->prepared;
    const int rows = bit_shapes[w->layout].rows;
    const uint8_t *units = (const uint8_t *)w + w->units_at + group * w->units * bit_unit_bytes(w->layout);
    const int64_t first = group * rows, left = w->outputs - first, count = left < rows ? left : rows;
    float *sums = scratch;
    for (int64_t row = 0; row < p->rows;) {
        const int tokens = p->rows - row >= 4 ? 4 : p->rows - row >= 2 ? 2 : 1;
        p->real(&p->weight, units, p->x + row * p->stride, p->stride, tokens, sums);
        for (int t = 0; t < tokens; t++, row++) {
            memcpy(p->y + row * w->outputs + first, sums + (ptrdiff_t)t * rows, (size_t)count * sizeof *sums);
        }
    }
}

/* The same order, with the four sums side by side. */
static void multiply_levels(void *job, int64_t part, void *scratch) {
    const struct product *p = job;
    const int64_t end = (part + 1) * BIT_LANES < p->outputs ? (part + 1) * BIT_LANES : p->outputs;
    const int64_t whole = p->inputs / 4 * 4;
    const size_t rest = (size_t)(p->inputs - whole) * sizeof(float);
    (void)scratch;
    for (int64_t output = part * BIT_LANES; output < end; output += 4) {
        for (int64_t row = 0; row < p->rows; row++) {
            const float *x = p->x + row * p->stride, *w[4];
            bit_reals sum[4], a, b;
            for (int i = 0; i < 4; i++) { /* the last ones maybe several times */
                w[i] = p->levels + (output + i < end ? output + i : end - 1) * p->inputs;
                sum[i] = (bit_reals){0};
            }
            for (int64_t k = 0; k < whole; k += 4) {
                memcpy(&b, x + k, sizeof b);
                BIT_REAL_UNROLL for (int i = 0; i < 4; i++) {
                    memcpy(&a, w[i] + k, sizeof a);
                    sum[i] += a * b;
                }
            }
            for (int i = 0; i < 4 && output + i < end; i++) {
                a = b = (bit_reals){0};
                memcpy(&a, w[i] + whole, rest);
                memcpy(&b, x + whole, rest);
                sum[i] += a * b;
                p->y[row * p->outputs + output + i] = (sum[i][0] + sum[i][1]) + (sum[i][2] + sum[i][3]);
            }
        }
    }
}

int bit_linear_real(int isa, const struct bit_format *format, const uint8_t *prepared, int64_t bytes, const float *x,
                    float *y, int64_t rows, int64_t outputs, int64_t inputs, int threads) {
    const struct bit_isa *set = bit_isa_get(isa);
    struct product p = {.real = set ? set->real : bit_real,
                        .prepared = bit_prepared_of(format, prepared, bytes, outputs, inputs)};
    if (p.prepared == NULL) {
        return BIT_BAD_WEIGHT;
    }
    const int error = describe(&p.weight, p.prepared);
    if (error || rows == 0 || outputs == 0) {
        return error;
    }
    if (x == NULL && inputs > 0) {
        return BIT_NO_DATA;
    }
    p.stride = p.prepared->units * BIT_UNIT_INPUTS;
    float *padded = bit_scratch(0, (size_t)(rows * p.stride + 1) * sizeof *padded);
    if (padded == NULL) {
        return BIT_NO_MEMORY;
    }
    for (int64_t row = 0; row < rows; row++) {
        memcpy(padded + row * p.stride, x + row * inputs, (size_t)inputs * sizeof *x);
        memset(padded + row * p.stride + inputs, 0, (size_t)(p.stride - inputs) * sizeof *x);
    }
    p.x = padded;
    p.y = y;
    p.rows = rows;
    return bit_parallel(multiply_group, &p, p.prepared->groups, threads, 4 * BIT_MAX_ROWS * sizeof *y) ? BIT_NO_MEMORY
                                                                                                       : BIT_OK;
}

int bit_linear_levels(const float *levels, const float *x, float *y, int64_t rows, int64_t outputs, int64_t inputs,
                      int threads) {
    struct product p = {.levels = levels, .x = x, .y = y, .rows = rows, .outputs = outputs, .inputs = inputs};
    p.stride = inputs;
    if ((x == NULL && rows > 0 && inputs > 0) || (levels == NULL && outputs > 0 && inputs > 0)) {
        return BIT_NO_DATA;
    }
    return bit_parallel(multiply_levels, &p, bit_round_up(outputs, BIT_LANES) / BIT_LANES, threads, 64) ? BIT_NO_MEMORY
                                                                                                        : BIT_OK;
}
