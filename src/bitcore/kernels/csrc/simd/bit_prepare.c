/* The machine layout of weights (see bit_simd.h): packed rows to it, and back. */
#include <stdlib.h>
#include <string.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "bit_simd.h"

#define MAGIC 0x4c544942U /* "BITL" */

const struct bit_shape bit_shapes[BIT_LAYOUTS] = {
    [BIT_LAYOUT_8BIT] = {64, 4, 1, 8},  [BIT_LAYOUT_4BIT] = {64, 2, 2, 4},    [BIT_LAYOUT_2BIT] = {64, 1, 4, 2},
    [BIT_LAYOUT_1BIT] = {128, 1, 8, 1}, [BIT_LAYOUT_TERNARY] = {80, 1, 5, 0}, [BIT_LAYOUT_BITS] = {16, 1, 1, 1},
};

#define MOST ((int64_t)1 << 56) /* outputs, and inputs: what is rounded up stays within int64 */

/* Whether there is such a weight: a layout of that number, and sizes whose bytes int64 counts. */
static int describe(struct bit_prepared *p, int layout, int64_t outputs, int64_t inputs) {
    if (layout < 0 || layout >= BIT_LAYOUTS || outputs < 0 || outputs > MOST || inputs < 0 || inputs > MOST) {
        return 0;
    }
    const int rows = bit_shapes[layout].rows;
    const int64_t padding = layout == BIT_LAYOUT_BITS ? 64 : BIT_INPUT_PADDING;
    memset(p, 0, sizeof *p);
    p->magic = MAGIC;
    p->layout = layout;
    p->outputs = outputs;
    p->inputs = inputs;
    p->groups = (outputs + rows - 1) / rows;
    p->units = bit_round_up(inputs, padding) / (layout == BIT_LAYOUT_BITS ? 64 : BIT_UNIT_INPUTS);
    p->units_at = bit_round_up((int64_t)sizeof *p, 64);
    int64_t units, sums;
    return !__builtin_mul_overflow(p->groups, p->units * bit_unit_bytes(layout), &units) &&
           !__builtin_add_overflow(p->units_at, units, &p->rows_at) &&
           !__builtin_mul_overflow(p->groups, (int64_t)4 * rows, &sums) &&
           !__builtin_add_overflow(p->rows_at, sums, &p->bytes);
}

int64_t bit_prepared_bytes(int layout, int64_t outputs, int64_t inputs) {
    struct bit_prepared p;
    return describe(&p, layout, outputs, inputs) ? p.bytes : -1;
}

static int codes_of(int layout) { return layout == BIT_LAYOUT_TERNARY ? 3 : 1 << bit_shapes[layout].bits; }

const struct bit_prepared *bit_prepared_check(const uint8_t *prepared, int64_t bytes, int64_t outputs, int64_t inputs) {
    const struct bit_prepared *p = (const struct bit_prepared *)(const void *)prepared;
    struct bit_prepared expected;
    if (p == NULL || bytes < (int64_t)sizeof *p || !describe(&expected, p->layout, outputs, inputs) ||
        expected.bytes != bytes || memcmp(p, &expected, offsetof(struct bit_prepared, base)) != 0) {
        return NULL;
    }
    const int most = p->layout == BIT_LAYOUT_BITS ? 0 : p->tables ? 255 : codes_of(p->layout) - 1;
    const int tables = p->layout == BIT_LAYOUT_4BIT ? 2 : 0;
    return p->tables < 0 || p->tables > tables || p->largest < 0 || p->largest > most ? NULL : p;
}

/* Level = base + step * value, where value is the code or comes from tables. */
static int set_values(struct bit_prepared *p, const struct bit_format *format) {
    if (format->count > codes_of(p->layout) || (format->step == 0 && p->layout != BIT_LAYOUT_4BIT) ||
        (p->layout == BIT_LAYOUT_BITS && (format->levels[0] != -1 || format->levels[1] != 1))) {
        return BIT_BAD_FORMAT;
    }
    if (p->layout == BIT_LAYOUT_BITS) { /* inputs - 2 * (how many signs differ) */
        p->base = 1;
        p->step = -2;
        return BIT_OK;
    }
    if (format->step != 0) {
        p->base = format->levels[0];
        p->step = format->step;
        p->largest = format->count - 1;
        return BIT_OK;
    }
    int low = 0, high = 0;
    for (int i = 0; i < format->count; i++) {
        low = format->levels[i] < low ? format->levels[i] : low;
        high = format->levels[i] > high ? format->levels[i] : high;
    }
    if (format->count > 16 || high > 255 || low < -255) {
        return BIT_BAD_FORMAT;
    }
    p->step = 1;
    p->tables = high - low <= 255 ? 1 : 2; /* one table of level - low, or one of positive and one of negative levels */
    p->base = p->tables == 1 ? low : 0;
    for (int i = 0; i < 16 && i < format->count; i++) {
        const int value = format->levels[i] - p->base;
        p->table[0][i] = (uint8_t)(value > 0 ? value : 0);
        p->table[1][i] = (uint8_t)(value < 0 ? -value : 0);
    }
    p->largest = 255;
    return BIT_OK;
}

/* Whether a weight's levels are those of a format. */
static int has_levels(const struct bit_prepared *p, const struct bit_format *format) {
    struct bit_prepared expected = {.layout = p->layout};
    const size_t from = offsetof(struct bit_prepared, base);
    return set_values(&expected, format) == BIT_OK &&
           memcmp((const char *)p + from, (const char *)&expected + from, sizeof *p - from) == 0;
}

const struct bit_prepared *bit_prepared_of(const struct bit_format *format, const uint8_t *prepared, int64_t bytes,
                                           int64_t outputs, int64_t inputs) {
    const struct bit_prepared *p = bit_prepared_check(prepared, bytes, outputs, inputs);
    return p != NULL && has_levels(p, format) ? p : NULL;
}

/* One packed row to codes; returns whether all of them have a level. */
static int unpack_row(const struct bit_format *format, const uint8_t *packed, int64_t inputs, uint8_t *codes) {
    const uint64_t radix = (uint64_t)format->radix;
    int largest = 0;
    for (int64_t k = 0; k < inputs; packed += format->word) {
        uint64_t word = 0;
        for (int i = format->word; i-- != 0;) {
            word = word << 8 | packed[i];
        }
        for (int i = 0; i < format->codes && k < inputs; i++, k++, word /= radix) {
            codes[k] = (uint8_t)(word % radix);
            largest = codes[k] > largest ? codes[k] : largest;
        }
        if (k < inputs && word != 0) { /* more than `codes` codes */
            return 0;
        }
    }
    return largest < format->count;
}

static void pack_row(const struct bit_format *format, const uint8_t *codes, int64_t inputs, uint8_t *packed) {
    for (int64_t k = 0; k < inputs; k += format->codes, packed += format->word) {
        uint64_t word = 0;
        for (int64_t i = k + format->codes; i-- != k;) {
            word = word * (uint64_t)format->radix + (i < inputs ? codes[i] : 0);
        }
        for (int i = 0; i < format->word; i++, word >>= 8) {
            packed[i] = (uint8_t)word;
        }
    }
}

/* Codes [rows of a group][stride] of a unit's byte: a field each, or the digits of v / 243, rounded up to b / 256 so
 * that the digits come back by multiplying with 3: d = (3 b) >> 8, b = (3 b) & 255, and so on. */
static uint8_t join(int layout, const uint8_t *code, int64_t stride) {
    const struct bit_shape *shape = &bit_shapes[layout];
    int value = 0;
    if (layout == BIT_LAYOUT_TERNARY) {
        for (int i = 0; i < 5; i++) {
            value = 3 * value + code[i * stride];
        }
        return (uint8_t)((value * 256 + 242) / 243);
    }
    for (int i = 0; i < shape->fields; i++) {
        value |= code[i * stride] << (i * shape->bits);
    }
    return (uint8_t)value;
}

static void split(int layout, unsigned byte, uint8_t *code, int64_t stride) {
    const struct bit_shape *shape = &bit_shapes[layout];
    for (int i = 0; i < shape->fields; i++) {
        if (layout == BIT_LAYOUT_TERNARY) {
            byte *= 3;
            code[i * stride] = (uint8_t)(byte >> 8);
            byte &= 255;
        } else {
            code[i * stride] = (uint8_t)(byte & ((1U << shape->bits) - 1U));
            byte >>= shape->bits;
        }
    }
}

static void relayout(int layout, uint8_t *codes, uint8_t *units, int64_t count, int inward) {
    const struct bit_shape *shape = &bit_shapes[layout];
    const int64_t stride = count * BIT_UNIT_INPUTS, block = BIT_LANES * stride;
    for (int64_t unit = 0; unit < count; unit++) {
        for (int v = 0; v < shape->vectors; v++, units += 64) {
            uint8_t *first = codes + v * shape->fields * block + unit * BIT_UNIT_INPUTS;
            for (int i = 0; i < 64; i++) {
                uint8_t *code = first + (i / BIT_UNIT_INPUTS) * stride + i % BIT_UNIT_INPUTS;
                if (inward) {
                    units[i] = join(layout, code, block);
                } else {
                    split(layout, units[i], code, block);
                }
            }
        }
    }
}

static void relayout_bits(uint8_t *codes, uint8_t *units, int64_t count, int64_t inputs, int inward) {
    uint64_t *words = (uint64_t *)(void *)units;
    for (int64_t unit = 0; unit < count; unit++) {
        for (int row = 0; row < BIT_LANES; row++, words++) {
            uint8_t *code = codes + row * count * 64 + unit * 64;
            *words = inward ? 0 : *words;
            for (int i = 0; i < 64 && unit * 64 + i < inputs; i++) {
                if (inward) {
                    *words |= (uint64_t)(code[i] == 0) << i;
                } else {
                    code[i] = !(*words >> i & 1U);
                }
            }
        }
    }
}

/* From DRAM, huge pages make reading 15 to 20 percent faster. */
static void ask_for_huge_pages(uint8_t *start, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t huge = (uintptr_t)2 << 20, from = ((uintptr_t)start + huge - 1) & ~(huge - 1);
    const uintptr_t to = ((uintptr_t)start + (uintptr_t)bytes) & ~(huge - 1);
    if (to > from) {
        (void)madvise((void *)from, to - from, MADV_HUGEPAGE);
    }
#else
    (void)start, (void)bytes;
#endif
}

int bit_prepare(const struct bit_format *format, int layout, const uint8_t *packed, int64_t row_stride, int64_t outputs,
                int64_t inputs, uint8_t *prepared) {
    struct bit_prepared *p = (struct bit_prepared *)(void *)prepared;
    const int64_t bytes = bit_prepared_bytes(layout, outputs, inputs);
    if (bytes < 0) {
        return BIT_BAD_WEIGHT;
    }
    const int rows = bit_shapes[layout].rows;
    ask_for_huge_pages(prepared, bytes);
    describe(p, layout, outputs, inputs);
    const int error = set_values(p, format);
    if (error) {
        return error;
    }
    const int64_t padded = layout == BIT_LAYOUT_BITS ? p->units * 64 : p->units * BIT_UNIT_INPUTS;
    uint8_t *codes = malloc((size_t)(rows * padded) + 1);
    if (codes == NULL) {
        return BIT_NO_MEMORY;
    }
    int32_t *sums = (int32_t *)(void *)(prepared + p->rows_at);
    int good = 1;
    for (int64_t group = 0; group < p->groups; group++) {
        memset(codes, 0, (size_t)(rows * padded));
        for (int r = 0; r < rows; r++) {
            const int64_t row = group * rows + r;
            int32_t sum = 0;
            if (row < outputs) {
                good &= unpack_row(format, packed + row * row_stride, inputs, codes + r * padded);
                for (int64_t k = 0; k < inputs; k++) {
                    sum += format->levels[codes[r * padded + k]];
                }
            }
            sums[row] = sum;
        }
        uint8_t *units = prepared + p->units_at + group * p->units * bit_unit_bytes(layout);
        if (layout == BIT_LAYOUT_BITS) {
            relayout_bits(codes, units, p->units, inputs, 1);
        } else {
            relayout(layout, codes, units, p->units, 1);
        }
    }
    free(codes);
    return good ? BIT_OK : BIT_BAD_CODE;
}

/* To packed rows, or (where `packed` is NULL) to levels. */
static int undo(const struct bit_format *format, const struct bit_prepared *p, uint8_t *packed, int64_t row_stride,
                float *levels) {
    const uint8_t *prepared = (const uint8_t *)p;
    const int64_t outputs = p->outputs, inputs = p->inputs;
    const int rows = bit_shapes[p->layout].rows;
    const int64_t padded = p->layout == BIT_LAYOUT_BITS ? p->units * 64 : p->units * BIT_UNIT_INPUTS;
    uint8_t *codes = malloc((size_t)(rows * padded) + 1);
    if (codes == NULL) {
        return BIT_NO_MEMORY;
    }
    for (int64_t group = 0; group < p->groups; group++) {
        uint8_t *units = (uint8_t *)(uintptr_t)(prepared + p->units_at + group * p->units * bit_unit_bytes(p->layout));
        if (p->layout == BIT_LAYOUT_BITS) {
            relayout_bits(codes, units, p->units, inputs, 0);
        } else {
            relayout(p->layout, codes, units, p->units, 0);
        }
        for (int r = 0; r < rows && group * rows + r < outputs; r++) {
            const int64_t row = group * rows + r;
            const uint8_t *code = codes + r * padded;
            if (packed != NULL) {
                pack_row(format, code, inputs, packed + row * row_stride);
                continue;
            }
            for (int64_t k = 0; k < inputs; k++) {
                levels[row * inputs + k] = (float)format->levels[code[k]];
            }
        }
    }
    free(codes);
    return BIT_OK;
}

int bit_unprepare(const struct bit_format *format, const uint8_t *prepared, int64_t bytes, int64_t outputs,
                  int64_t inputs, uint8_t *packed, int64_t row_stride) {
    const struct bit_prepared *p = bit_prepared_of(format, prepared, bytes, outputs, inputs);
    return p == NULL ? BIT_BAD_WEIGHT : undo(format, p, packed, row_stride, NULL);
}

#define RUN 64 /* units whose codes are taken at a time: they stay in the first level of cache */

/* Levels of `inputs` inputs of one row, whose bytes begin at `from` and lie `stride` apart: field `f` of `bits` bits.
 */
static void row_levels(const struct bit_format *format, const uint8_t *from, int64_t stride, int bits, int f,
                       int64_t inputs, float *levels) {
    const uint32_t mask = 0x01010101U * ((1U << bits) - 1U);
    uint32_t words[RUN];
    for (int64_t i = 0; 4 * i < inputs; i++, from += stride) {
        memcpy(words + i, from, 4); /* a shift brings bits of other bytes, which the mask takes away */
        words[i] = words[i] >> bits * f & mask;
    }
    const uint8_t *codes = (const uint8_t *)words;
    if (format->step != 0) {
        for (int64_t k = 0; k < inputs; k++) {
            levels[k] = (float)(format->levels[0] + format->step * codes[k]);
        }
        return;
    }
    for (int64_t k = 0; k < inputs; k++) {
        levels[k] = (float)format->levels[codes[k]];
    }
}

int bit_levels(const struct bit_format *format, const uint8_t *prepared, int64_t bytes, int64_t outputs, int64_t inputs,
               float *levels) {
    const struct bit_prepared *p = bit_prepared_of(format, prepared, bytes, outputs, inputs);
    if (p == NULL) {
        return BIT_BAD_WEIGHT;
    }
    if (p->layout == BIT_LAYOUT_TERNARY || p->layout == BIT_LAYOUT_BITS) {
        return undo(format, p, NULL, 0, levels);
    }
    const struct bit_shape *shape = &bit_shapes[p->layout];
    const int64_t unit_bytes = bit_unit_bytes(p->layout), many = RUN * BIT_UNIT_INPUTS;
    for (int64_t first = 0; first < outputs; first += shape->rows) {
        const uint8_t *units = prepared + p->units_at + first / shape->rows * p->units * unit_bytes;
        for (int64_t k = 0; k < inputs; k += many, units += RUN * unit_bytes) {
            for (int r = 0; r < shape->rows && first + r < outputs; r++) {
                const int block = r / BIT_LANES;
                row_levels(format, units + 64 * (block / shape->fields) + BIT_UNIT_INPUTS * (r % BIT_LANES), unit_bytes,
                           shape->bits, block % shape->fields, inputs - k < many ? inputs - k : many,
                           levels + (first + r) * inputs + k);
            }
        }
    }
    return BIT_OK;
}
