/* 3x3 convolutions of stride 1 that keep the map's size, a row of the input at a time: a table of what weights add for
 * two neighbouring pixels serves the three results above each other that see these. */
#include "bit_store.h"
#include "bit_table.h"

/* The sums of an output at two neighbouring pixels, the second one's in the upper half: in the row above the one that
 * is read, in that row, in the one below, and, where rows are pooled, in the one before all these. */
enum { BIT_ABOVE, BIT_AT, BIT_BELOW, BIT_BEFORE };

enum { BIT_TABLE = 32 }; /* words */

/* What a table, or two, add to a sum. */
BIT_INLINE uint32_t entries(const uint32_t *table, const uint8_t *code, const uint8_t *other, int two) {
    const uint32_t entry = bit_entry(table, BIT_FLASH8(code));
    return two ? entry + bit_entry(table + BIT_TABLE, BIT_FLASH8(other)) : entry;
}

/* Adds one table, or two, to `rows` of the sums of all outputs, of which `slots` lie side by side. */
BIT_INLINE void add(const uint8_t *codes, const uint8_t *others, uint32_t *sum, const uint32_t *end, uint32_t slots,
                    const uint32_t *table, unsigned rows, int two) {
    do {
        sum[0] += entries(table, codes, others, two);
        sum[1] += entries(table, codes + 1, others + 1, two);
        if (rows == 3) {
            sum[2] += entries(table, codes + 2, others + 2, two);
        }
        codes += 3;
        others += 3;
        sum += slots;
    } while (sum < end);
}

#define BIT_ADD(name, rows, two)                                                                                       \
    BIT_OUTLINE static void name(const uint8_t *codes, const uint8_t *others, uint32_t *sum, const uint32_t *end,      \
                                 uint32_t slots, const uint32_t *table) {                                              \
        add(codes, others, sum, end, slots, table, rows, two);                                                         \
    }
BIT_ADD(add_to_2, 2, 0)
BIT_ADD(add_to_3, 3, 0)
BIT_ADD(add_two_to_2, 2, 1)
BIT_ADD(add_two_to_3, 3, 1)

/* Adds two pixels of all channels to the sums of the outputs that see them. `step` is from one row of codes to the
 * next. */
static void read_pair(const BitRows *layer, const uint8_t *codes, uint32_t step, const uint8_t *x, uint32_t column,
                      uint32_t row, uint32_t *table, uint32_t *sum, const uint32_t *end) {
    const uint32_t pixel = layer->channels;
    const uint32_t right = layer->width - column; /* pixels from the first one on */
    const uint32_t slots = BIT_BEFORE + layer->pooled;
    const uint32_t flip = layer->flip;
    const int inner = row != 0 && row != layer->height - 1U;
    const uint8_t *waiting = 0; /* the codes of a table that has been filled and not added */
    if (row == 0) {
        codes += BIT_AT;
        sum += BIT_AT;
    }
    const uint8_t *const last = x + pixel;
    uint32_t x0 = 0;
    uint32_t x1 = 0;
    uint32_t x2 = 0;
    for (unsigned left = 0; left != 0 || x != last; left--, codes += step, x0 = x1, x1 = x2) {
        if (left == 0) { /* the next channel */
            left = layer->tables;
            x1 = (*x ^ flip) - flip;
            x0 = x1 << 16;
            x2 = 0;
            if (column != 0) {
                x0 += (*(x - pixel) ^ flip) - flip;
            }
            if (right > 1) {
                x2 = (x[pixel] ^ flip) - flip;
                x1 += x2 << 16;
                if (right > 2) {
                    x2 += ((x[2 * pixel] ^ flip) - flip) << 16;
                }
            }
            x++;
        }
        if ((layer->levels ? x0 : x0 | x1 | x2) == 0) {
            continue;
        }
        uint32_t *const free = waiting ? table + BIT_TABLE : table;
        if (layer->levels) {
            bit_fill(free, x0, layer->low, layer->level_step, layer->levels);
        } else {
            bit_fill_ternary(free, x0, x1, x2);
        }
        if (waiting) {
            (inner ? add_two_to_3 : add_two_to_2)(waiting, codes, sum, end, slots, table);
            waiting = 0;
        } else {
            waiting = codes;
        }
    }
    if (waiting) {
        (inner ? add_to_3 : add_to_2)(waiting, waiting, sum, end, slots, table);
    }
}

BIT_INLINE int32_t upper_half(uint32_t word) {
    return bit_shift_right((int32_t)(word - (uint32_t)bit_low_half(word)), 16);
}

/* The larger one of both halves. */
BIT_INLINE int32_t larger_half(uint32_t word) {
    const int32_t lower = bit_low_half(word);
    const int32_t upper = upper_half(word);
    return lower > upper ? lower : upper;
}

/* A result from 0 to `high`. Half a step is in the bias: what it rounds up from a tie to an odd number is one less. */
BIT_INLINE uint8_t finish(int32_t value, unsigned shift, int32_t high) {
    if (value <= 0) {
        return 0;
    }
    int32_t result = value >> shift;
    if (result << shift == value && shift != 0) {
        result &= -2;
    }
    return (uint8_t)(result > high ? high : result);
}

/* Moves the sums of an output up by a row and returns what was above. */
BIT_INLINE uint32_t move_up(uint32_t *sum) {
    const uint32_t above = sum[BIT_ABOVE];
    sum[BIT_ABOVE] = sum[BIT_AT];
    sum[BIT_AT] = sum[BIT_BELOW];
    sum[BIT_BELOW] = 0;
    return above;
}

/* Goes to the next row where none is written. */
static void pass_pair(const BitRows *layer, uint32_t *sum, const uint32_t *end) {
    if (layer->pooled) {
        for (; sum != end; sum += BIT_BEFORE + 1) {
            sum[BIT_BEFORE] = move_up(sum);
        }
    } else {
        for (; sum != end; sum += BIT_BEFORE) {
            move_up(sum);
        }
    }
}

/* Writes the results of the row above two pixels, or those of its pooling with the row before. */
BIT_OUTLINE static void finish_pair(const BitRows *layer, uint32_t channel, uint8_t *y, int both, uint32_t *sum,
                                    const uint32_t *end) {
    const int16_t *bias = layer->bias + channel;
    const uint8_t *shifts = layer->shift + channel;
    do {
        const int32_t offset = (int16_t)BIT_FLASH16(bias++);
        const unsigned shift = BIT_FLASH8(shifts++);
        const uint32_t above = move_up(sum);
        int32_t value = bit_low_half(above);
        if (layer->pooled) {
            const int32_t before = larger_half(sum[BIT_BEFORE]);
            value = larger_half(above);
            value = before > value ? before : value;
            sum++;
        } else if (both) {
            y[layer->outputs] = finish(upper_half(above) + offset, shift, layer->high);
        }
        *y++ = finish(value + offset, shift, layer->high);
        sum += BIT_BEFORE;
    } while (sum != end);
}

void bit_conv2d_rows(const BitRows *layer, const uint8_t *x, uint8_t *y, uint32_t *scratch) {
    const uint32_t slots = BIT_BEFORE + layer->pooled;
    const uint8_t *codes = layer->codes;
    uint32_t *const sums = scratch + 2 * BIT_TABLE;
    for (uint32_t channel = 0; channel < layer->outputs; channel += layer->block) {
        const uint32_t left = layer->outputs - channel;
        const uint32_t count = left < layer->block ? left : layer->block;
        const uint32_t words = bit_mul(count, slots); /* of sums at two pixels */
        const uint32_t step = 3 * count;
        const uint8_t *pixels = x;
        uint8_t *result = y + channel;
        uint32_t *const end = sums + bit_mul(words, (layer->width + 1U) >> 1);
        for (uint32_t *sum = sums; sum != end; sum++) {
            *sum = 0;
        }
        for (uint32_t row = 0; row <= layer->height; row++) {
            const int writes = layer->pooled ? row != 0 && !(row & 1U) : row != 0;
            uint32_t column = 0;
            for (uint32_t *sum = sums; sum != end && row != layer->height; sum += words, column += 2) {
                read_pair(layer, codes, step, pixels, column, row, scratch, sum, sum + words);
                pixels += (uint32_t)layer->channels << (column + 1U < layer->width);
            }
            column = 0;
            for (uint32_t *sum = sums; sum != end; sum += words, column += 2) {
                const int both = column + 1U < layer->width;
                const int here = writes && (both || !layer->pooled);
                if (!here) {
                    pass_pair(layer, sum, sum + words);
                } else {
                    finish_pair(layer, channel, result, both, sum, sum + words);
                    result += (uint32_t)layer->outputs << (both && !layer->pooled);
                }
            }
        }
        codes += bit_mul(bit_mul(step, layer->channels), layer->tables);
    }
}
