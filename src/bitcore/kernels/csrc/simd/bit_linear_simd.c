/* Matrix products on prepared weights: activations to int8 levels (or signs), groups of output rows spread over
 * threads, micro kernels of the instruction set, outputs. See bit_simd.h for the layout. */
#include <string.h>

#include "bit_simd.h"

#define TOKENS 256      /* rows of x that are quantized at a time */
#define SMALL_PANEL 256 /* inputs that are unpacked at a time for few rows of x: the panel stays in L1 */
#define PANEL 4096      /* ... and for many: it stays in L2 */

struct product {
    const struct bit_isa *isa;
    const struct bit_prepared *weight;
    struct bit_output out;
    int64_t rows;           /* of x */
    int64_t first_token;    /* the first of those that are in `levels` */
    int64_t tokens, stride; /* how many those are, bytes of a row */
    int64_t parts;
    int8_t *levels;
    int32_t *corrections; /* base * sum of a row */
    float *scales;
    uint8_t *nan; /* or, of integers that should be signs, that some are none */
    /* the input: float, int8 or uint8 */
    const float *floats;
    const uint8_t *bytes;
    int is_unsigned;
    int shifted; /* 128 is subtracted from the levels */
    int range[4];
    const float *x_scale;
    int64_t x_scales;
    float tensor_scale;
};

/* Row `index` of the current tokens: levels, correction, scale. */
static void quantize_row(struct product *p, int64_t index) {
    const int64_t token = p->first_token + index, inputs = p->weight->inputs;
    const struct bit_isa *isa = p->isa;
    int8_t *levels = p->levels + index * p->stride;
    const int signs = p->weight->layout == BIT_LAYOUT_BITS;
    int32_t sum = 0;
    p->nan[index] = 0;
    p->scales[index] = 1.0f;
    if (p->floats != NULL) {
        const float *x = p->floats + token * inputs;
        const float scale = p->x_scales > 1    ? p->x_scale[token]
                            : p->x_scales == 1 ? p->x_scale[0]
                            : p->x_scales == 0 ? bit_dynamic_scale(isa->largest(x, inputs), p->range[1])
                                               : p->tensor_scale;
        p->scales[index] = scale;
        if (signs) {
            isa->signs(x, (uint64_t *)(void *)levels, inputs, scale, p->nan + index);
        } else {
            sum = isa->quantize(x, levels, inputs, scale, p->range, p->nan + index);
        }
    } else if (signs) {
        uint64_t *words = (uint64_t *)(void *)levels;
        memset(words, 0, (size_t)p->weight->units * 8);
        for (int64_t i = 0; i < inputs; i++) {
            const uint8_t byte = p->bytes[token * inputs + i];
            words[i / 64] |= (uint64_t)(byte >> 7) << (i % 64);
            p->nan[index] |= byte != 1 && (p->is_unsigned || byte != 255);
        }
    } else {
        sum = isa->copy(p->bytes + token * inputs, levels, inputs, p->shifted);
    }
    if (signs) {
        p->corrections[index] = (int32_t)inputs;
        return;
    }
    memset(levels + inputs, 0, (size_t)(p->weight->units * BIT_UNIT_INPUTS - inputs));
    /* what is subtracted from both of two tables cancels */
    const int bytes = p->weight->layout == BIT_LAYOUT_8BIT || p->weight->tables == 1;
    const int offset = bytes ? isa->value_offset : 0;
    const uint32_t base = (uint32_t)p->weight->base + (uint32_t)p->weight->step * (uint32_t)offset;
    p->corrections[index] = (int32_t)(base * (uint32_t)sum);
}

static void quantize_part(void *job, int64_t index, void *scratch) {
    struct product *p = job;
    (void)scratch;
    const int64_t end = (index + 1) * 8 < p->tokens ? (index + 1) * 8 : p->tokens;
    for (int64_t i = index * 8; i < end; i++) {
        quantize_row(p, i);
    }
}

/* Tokens that are multiplied one after the other. */
struct tokens {
    int64_t first, count;
};

/* Some tokens against one run of units, by the largest micro kernels that fit. */
static void multiply(const bit_micro *micro, const struct product *p, struct tokens tokens, const uint8_t *units,
                     int64_t first_unit, int64_t count, int32_t *acc, int64_t acc_stride) {
    const int64_t unit_bytes = p->weight->layout == BIT_LAYOUT_BITS ? 8 : BIT_UNIT_INPUTS;
    int most = BIT_MAX_TOKENS;
    while (micro[most] == NULL) {
        most--;
    }
    for (int64_t token = 0; token < tokens.count;) {
        const int64_t left = tokens.count - token;
        /* two even steps at the end are faster than a full and a small one */
        int64_t step = left >= 2 * most || left == most ? most : left > most ? (left + 1) / 2 : left;
        while (micro[step] == NULL) {
            step--;
        }
        micro[step](units, p->levels + (tokens.first + token) * p->stride + first_unit * unit_bytes, p->stride, count,
                    acc + token * acc_stride, acc_stride);
        token += step;
    }
}

/* Some tokens against one group, as the weights are or by way of panels of bytes; `rows` from one token's sums to the
 * next. */
static void multiply_group(const struct product *p, struct tokens tokens, const uint8_t *units, int32_t *acc,
                           int64_t rows, uint8_t *panel) {
    const struct bit_prepared *weight = p->weight;
    const struct bit_isa *isa = p->isa;
    const int layout = weight->layout;
    const int64_t unit_bytes = bit_unit_bytes(layout);
    const int64_t limit = layout == BIT_LAYOUT_TERNARY                             ? isa->direct_ternary_tokens
                          : layout == BIT_LAYOUT_8BIT || layout == BIT_LAYOUT_BITS ? 0
                                                                                   : isa->direct_tokens;
    const bit_micro *direct = isa->product[layout];
    if (direct[1] != NULL && !weight->tables && (limit == 0 || tokens.count <= limit)) {
        for (int64_t u = 0; u < weight->units; u += BIT_MAX_UNITS) {
            const int64_t count = weight->units - u < BIT_MAX_UNITS ? weight->units - u : BIT_MAX_UNITS;
            multiply(direct, p, tokens, units + u * unit_bytes, u, count, acc, rows);
        }
        return;
    }
    const bit_micro *micro = layout == BIT_LAYOUT_TERNARY ? isa->panel_ternary
                             : weight->largest > 15       ? isa->product[BIT_LAYOUT_8BIT]
                             : weight->largest > 3        ? isa->panel_to15
                                                          : isa->panel_to3;
    const int64_t step = (tokens.count <= BIT_MAX_TOKENS ? SMALL_PANEL : PANEL) / BIT_UNIT_INPUTS;
    for (int64_t u = 0; u < weight->units; u += step) {
        const int64_t count = weight->units - u < step ? weight->units - u : step;
        for (int plane = 0; plane < (weight->tables == 2 ? 2 : 1); plane++) {
            for (int half = 0; half < (layout == BIT_LAYOUT_1BIT ? 2 : 1); half++) {
                isa->unpack(weight, units + u * unit_bytes, count, plane, half, panel);
                multiply(micro, p, tokens, panel, u, count, acc + plane * tokens.count * rows + half * 64, rows);
            }
        }
    }
    if (weight->tables == 2) {
        for (int64_t i = 0; i < tokens.count * rows; i++) {
            acc[i] = (int32_t)((uint32_t)acc[i] - (uint32_t)acc[tokens.count * rows + i]);
        }
    }
}

static size_t panel_bytes(const struct product *p) {
    const int64_t step = p->tokens <= BIT_MAX_TOKENS ? SMALL_PANEL : PANEL;
    const int64_t inputs = p->weight->units * BIT_UNIT_INPUTS;
    return (size_t)((inputs < step ? inputs : step) * 80);
}

/* What stays in the first-level cache: of signs, a few tokens and their sums with several groups of 16 rows; of panels,
 * which take long to unpack, all tokens. */
static int64_t tokens_at_once(const struct product *p) {
    return p->weight->layout == BIT_LAYOUT_BITS && p->tokens > BIT_MAX_TOKENS ? BIT_MAX_TOKENS : p->tokens;
}

static int groups_at_once(const struct product *p) {
    return p->weight->layout == BIT_LAYOUT_BITS ? BIT_MAX_ROWS / BIT_LANES : 1;
}

static int64_t rows_at_once(const struct product *p) {
    return groups_at_once(p) * (int64_t)bit_shapes[p->weight->layout].rows;
}

static size_t sums(const struct product *p) {
    return (size_t)((p->weight->tables == 2 ? 2 : 1) * tokens_at_once(p) * rows_at_once(p));
}

/* Some tokens against the groups from `group` on that are finished together. */
static void multiply_tokens(const struct product *p, struct tokens tokens, int64_t group, int32_t *acc,
                            uint8_t *panel) {
    const struct bit_prepared *weight = p->weight;
    const int64_t group_bytes = weight->units * bit_unit_bytes(weight->layout), rows = rows_at_once(p);
    const int64_t first = group / groups_at_once(p) * rows, left = weight->outputs - first;
    memset(acc, 0, sums(p) * sizeof *acc);
    for (int g = 0; g < groups_at_once(p) && group + g < weight->groups; g++) {
        multiply_group(p, tokens, (const uint8_t *)weight + weight->units_at + (group + g) * group_bytes,
                       acc + g * BIT_LANES, rows, panel);
    }
    for (int64_t i = 0; i < tokens.count; i++) {
        const int64_t t = tokens.first + i;
        p->isa->finish(weight, &p->out, p->first_token + t, first, left < rows ? left : rows, acc + i * rows,
                       p->corrections[t], p->shifted, p->scales[t], p->nan[t]);
    }
}

static void multiply_part(void *job, int64_t index, void *scratch) {
    const struct product *p = job;
    const int64_t all = (p->weight->groups + groups_at_once(p) - 1) / groups_at_once(p), most = tokens_at_once(p);
    int32_t *acc = scratch;
    uint8_t *panel = (uint8_t *)scratch + bit_round_up((int64_t)(sums(p) * sizeof *acc), 64);
    for (int64_t i = index * all / p->parts; i < (index + 1) * all / p->parts; i++) {
        for (int64_t t = 0; t < p->tokens; t += most) {
            const struct tokens tokens = {t, p->tokens - t < most ? p->tokens - t : most};
            multiply_tokens(p, tokens, i * groups_at_once(p), acc, panel);
        }
    }
}

static int run(struct product *p, int threads) {
    const struct bit_prepared *weight = p->weight;
    const int64_t row_bytes = weight->layout == BIT_LAYOUT_BITS ? weight->units * 8 : weight->units * BIT_UNIT_INPUTS;
    const int64_t most = p->rows < TOKENS ? p->rows : TOKENS;
    if (p->rows == 0 || weight->outputs == 0) {
        return BIT_OK;
    }
    p->stride = bit_round_up(row_bytes, 64) + 64; /* not a power of two, or rows fight for the same cache sets */
    uint8_t *memory = bit_scratch(0, (size_t)(most * (p->stride + 12)));
    if (memory == NULL) {
        return BIT_NO_MEMORY;
    }
    p->levels = (int8_t *)memory;
    p->corrections = (int32_t *)(void *)(memory + most * p->stride);
    p->scales = (float *)(p->corrections + most);
    p->nan = (uint8_t *)(p->scales + most);
    for (p->first_token = 0; p->first_token < p->rows; p->first_token += TOKENS) {
        p->tokens = p->rows - p->first_token < TOKENS ? p->rows - p->first_token : TOKENS;
        if (bit_parallel(quantize_part, p, (p->tokens + 7) / 8, threads, 64)) {
            return BIT_NO_MEMORY;
        }
        if (p->bytes != NULL && memchr(p->nan, 1, (size_t)p->tokens) != NULL) {
            return BIT_BAD_INPUT;
        }
        const int64_t parts = threads < 2 ? 1 : 8 * (int64_t)threads;
        p->parts = parts < weight->groups ? parts : weight->groups;
        const size_t scratch = sums(p) * 4 + 64 + panel_bytes(p);
        if (bit_parallel(multiply_part, p, p->parts, threads, scratch)) {
            return BIT_NO_MEMORY;
        }
    }
    return BIT_OK;
}

/* The largest magnitude of a weight's levels. */
static int64_t largest_level(const struct bit_prepared *p) {
    int64_t largest = 0;
    for (int i = 0; i < 16; i++) {
        const int value = p->tables ? p->table[0][i] - p->table[1][i] : i % 2 ? p->largest : 0;
        const int64_t level = p->layout == BIT_LAYOUT_BITS ? 1 : p->base + (int64_t)p->step * value;
        largest = level > largest ? level : -level > largest ? -level : largest;
    }
    return largest;
}

#define FEW_INPUTS 33025 /* whose products of bytes, each up to 255 * 255, always add up within int32 */

/* Whether sums of levels times activations up to a magnitude fit int32. */
static int fits(const struct bit_prepared *weight, int64_t magnitude) {
    const int64_t inputs = weight->inputs;
    return inputs <= FEW_INPUTS || (inputs <= INT32_MAX && inputs * largest_level(weight) * magnitude <= INT32_MAX);
}

static int64_t largest_byte(const struct product *p) {
    int largest = 0;
    for (int64_t i = 0; i < p->rows * p->weight->inputs; i++) {
        const int value = p->is_unsigned ? p->bytes[i] : (int8_t)p->bytes[i];
        largest = value > largest ? value : -value > largest ? -value : largest;
    }
    return largest;
}

static int start(struct product *p, int isa, const uint8_t *prepared, int64_t bytes, const void *x, int64_t rows,
                 int64_t outputs, int64_t inputs) {
    memset(p, 0, sizeof *p);
    p->isa = bit_isa_get(isa);
    p->weight = bit_prepared_check(prepared, bytes, outputs, inputs);
    p->rows = rows;
    if (p->isa == NULL || p->weight == NULL) {
        return p->isa == NULL ? BIT_NO_ISA : BIT_BAD_WEIGHT;
    }
    return x == NULL && rows > 0 && inputs > 0 ? BIT_NO_DATA : BIT_OK;
}

int bit_linear_int8_simd(int isa, const uint8_t *prepared, int64_t bytes, const void *x, int is_unsigned, int32_t *y,
                         int64_t rows, int64_t outputs, int64_t inputs, int threads) {
    struct product p;
    const int error = start(&p, isa, prepared, bytes, x, rows, outputs, inputs);
    if (error) {
        return error;
    }
    p.bytes = x;
    p.is_unsigned = is_unsigned;
    p.shifted = is_unsigned && p.weight->layout != BIT_LAYOUT_BITS;
    p.out.integers = y;
    if (!fits(p.weight, is_unsigned ? 255 : 128) && !fits(p.weight, largest_byte(&p))) {
        return BIT_TOO_LARGE;
    }
    return run(&p, threads);
}

int bit_linear_float_simd(const struct bit_linear_layer *layer, const float *x, float *y, int64_t rows, int threads,
                          const float *x_scale, int64_t x_scales) {
    struct product p;
    const int error = start(&p, layer->isa, layer->prepared, layer->bytes, x, rows, layer->outputs, layer->inputs);
    if (error) {
        return error;
    }
    if (p.weight->layout == BIT_LAYOUT_BITS && (layer->low != -1 || layer->high != 1 || layer->step != 2)) {
        return BIT_BAD_INPUT;
    }
    if (!fits(p.weight, layer->high > -layer->low ? layer->high : -layer->low)) {
        return BIT_TOO_LARGE;
    }
    p.floats = x;
    p.shifted = layer->high > 127 && p.weight->layout != BIT_LAYOUT_BITS;
    p.range[0] = layer->low;
    p.range[1] = layer->high;
    p.range[2] = layer->step;
    p.range[3] = p.shifted ? 128 : 0;
    p.x_scale = x_scale;
    p.x_scales = layer->inputs == 0 && x_scales == 0 ? -1 : x_scales;
    if (p.x_scales < 0) {
        p.tensor_scale = bit_dynamic_scale(p.isa->largest(x, rows * layer->inputs), layer->high);
    }
    p.out = (struct bit_output){NULL, y, layer->weight_scale, layer->bias, layer->weight_scales, layer->bias_on_grid};
    return run(&p, threads);
}
