/* 3x3 convolutions of stride 1 that keep the map's size, a row of the input at a time: a table of what weights add for
 * four neighbouring pixels serves the three results above each other that see these. */
#include "bit_conv2d_rows.h"
#include "bit_store.h"
#include "bit_table.h"

BIT_INLINE uint32_t sign_extend(uint32_t byte) { return (byte ^ 128U) - 128U; }

/* What the three weights side by side meet at the first two of four pixels, words[0..3), and at the last two. */
BIT_OUTLINE static void read_group(const BitRows *layer, const uint8_t *x, uint32_t column, uint32_t *words) {
    const uint32_t pixel = layer->channels;
    const uint32_t right = layer->width - column; /* pixels from the first one on */
    uint32_t before = 0;
    uint32_t x0 = *x;
    uint32_t x1 = 0;
    uint32_t x2 = 0;
    uint32_t x3 = 0;
    uint32_t behind = 0;
    if (column != 0) {
        before = *(x - pixel);
    }
    if (right > 1) {
        x1 = *(x += pixel);
    }
    if (right > 2) {
        x2 = *(x += pixel);
    }
    if (right > 3) {
        x3 = *(x += pixel);
    }
    if (right > 4) {
        behind = x[pixel];
    }
    if (layer->flip) {
        before = sign_extend(before);
        x0 = sign_extend(x0);
        x1 = sign_extend(x1);
        x2 = sign_extend(x2);
        x3 = sign_extend(x3);
        behind = sign_extend(behind);
    }
    words[0] = before + (x0 << 16);
    words[1] = x0 + (x1 << 16);
    words[2] = words[3] = x1 + (x2 << 16);
    words[4] = x2 + (x3 << 16);
    words[5] = x3 + (behind << 16);
}

/* Adds four pixels of all channels to the sums of the outputs that see them. `row`: bytes of a table's codes. */
static void add_group(const BitRows *layer, const BitGroup *group, const uint8_t *codes, uint32_t row, const uint8_t *x,
                      uint32_t column) {
    const uint8_t *waiting = 0; /* the codes of a table that has been filled and not added */
    const uint8_t *const last = x + layer->channels;
    uint32_t words[6];
    for (uint32_t left = 0; left != 0 || x != last; left--, codes += row) {
        if (left == 0) { /* the next channel */
            left = layer->tables;
            read_group(layer, x++, column, words);
        } else {
            words[0] = words[1];
            words[1] = words[2];
            words[3] = words[4];
            words[4] = words[5];
        }
        uint32_t *const table = group->tables + (waiting ? BIT_TABLE : 0);
        if (layer->levels == 0) {
            if ((words[0] | words[1] | words[2] | words[4] | words[5]) == 0) {
                continue;
            }
            bit_fill_ternary(table, BIT_ENTRY, words[0], words[1], words[2]);
            bit_fill_ternary(table + 1, BIT_ENTRY, words[3], words[4], words[5]);
        } else if (words[0] | words[3]) {
            bit_fill(table, BIT_ENTRY, words[0], layer->low, layer->level_step, layer->levels);
            bit_fill(table + 1, BIT_ENTRY, words[3], layer->low, layer->level_step, layer->levels);
        } else {
            continue;
        }
        if (waiting) {
            layer->add(group, waiting, codes);
            waiting = 0;
        } else {
            waiting = codes;
        }
    }
    if (waiting) {
        layer->add(group, waiting, 0);
    }
}

/* The larger one of both halves. */
BIT_INLINE int32_t larger_half(uint32_t word) {
    const int32_t lower = bit_low_half(word);
    const int32_t upper = bit_high_half(word);
    return lower > upper ? lower : upper;
}

/* A result from 0 to `high`; half a step is in the bias. */
BIT_INLINE uint8_t finish(int32_t value, unsigned shift, int32_t high) {
    if (value <= 0) {
        return 0;
    }
    const int32_t result = bit_finish_round(value, shift);
    return (uint8_t)(result > high ? high : result);
}

/* Moves the sums of an output at two pixels up by a row and returns what was above; the last one begins at `start`. */
BIT_INLINE uint32_t move_up(uint32_t *sum, uint32_t start) {
    const uint32_t above = sum[BIT_ABOVE];
    sum[BIT_ABOVE] = sum[BIT_AT];
    sum[BIT_AT] = sum[BIT_BELOW];
    sum[BIT_BELOW] = start;
    return above;
}

/* Goes to the next row where none is written. */
static void pass_pair(uint32_t *sum, const uint32_t *end, uint32_t step, uint32_t start, int pooled) {
    for (; sum < end; sum += step) {
        const uint32_t above = move_up(sum, start);
        if (pooled) {
            sum[BIT_BEFORE] = above;
        }
    }
}

/* Writes the results of the row above two pixels, or those of its pooling with the row before. */
BIT_OUTLINE static void finish_pair(const BitRows *layer, uint32_t channel, uint8_t *y, int both, uint32_t *sum,
                                    const uint32_t *end, uint32_t step) {
    const int16_t *bias = layer->bias + channel;
    const uint8_t *shifts = layer->shift + channel;
    do {
        const int32_t offset = (int16_t)BIT_FLASH16(bias++);
        const unsigned shift = BIT_FLASH8(shifts++);
        const uint32_t above = move_up(sum, layer->start);
        int32_t value = bit_low_half(above);
        if (layer->pooled) {
            const int32_t before = larger_half(sum[BIT_BEFORE]);
            value = larger_half(above);
            value = before > value ? before : value;
        } else if (both) {
            y[layer->outputs] = finish(bit_high_half(above) + offset, shift, layer->high);
        }
        *y++ = finish(value + offset, shift, layer->high);
        sum += step;
    } while (sum < end);
}

void bit_conv2d_rows(const BitRows *layer, const uint8_t *x, uint8_t *y, uint32_t *scratch) {
    const uint32_t step = BIT_BEFORE + 2U * layer->pooled;
    const uint8_t *codes = layer->codes;
    uint32_t *const sums = scratch + 2 * BIT_TABLE;
    for (uint32_t channel = 0; channel < layer->outputs; channel += layer->block) {
        const uint32_t left = layer->outputs - channel;
        const uint32_t count = left < layer->block ? left : layer->block;
        const uint32_t words = bit_mul(count, step); /* of sums at four pixels */
        const uint32_t bytes = bit_mul(count, layer->code_bytes);
        const uint8_t *pixels = x;
        uint8_t *result = y + channel;
        uint32_t *const end = sums + bit_mul(words, (layer->width + 3U) >> 2);
        for (uint32_t *sum = sums; sum != end; sum++) {
            *sum = layer->start;
        }
        for (uint32_t row = 0; row <= layer->height; row++) {
            if (row != layer->height) {
                BitGroup group = {sums, sums, step, scratch, row == 0, row != 0 && row != layer->height - 1U};
                group.sum += row == 0 ? BIT_AT : BIT_ABOVE;
                uint32_t column = 0;
                for (; group.end != end; group.sum += words, column += 4) {
                    group.end += words;
                    add_group(layer, &group, codes, bytes, pixels + bit_mul(column, layer->channels), column);
                }
                pixels += bit_mul(layer->width, layer->channels);
            }
            const int writes = layer->pooled ? row != 0 && !(row & 1U) : row != 0;
            uint32_t *sum = sums;
            for (uint32_t column = 0; column < layer->width; column += 2) {
                const int both = column + 1U < layer->width;
                if (!writes || (layer->pooled && !both)) {
                    pass_pair(sum, sum + words, step, layer->start, layer->pooled);
                } else {
                    finish_pair(layer, channel, result, both, sum, sum + words, step);
                    result += (uint32_t)layer->outputs << (both && !layer->pooled);
                }
                sum += column & 2U ? words - 1 : 1;
            }
        }
        codes += bit_mul(bit_mul(bytes, layer->channels), layer->tables);
    }
}
