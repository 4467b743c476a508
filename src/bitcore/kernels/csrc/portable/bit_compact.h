/* Convolution, dense and 2x2 max pooling in one small loop nest, for chips with little flash: slower than bit_conv2d.
 *
 * A network includes this file once it has defined
 *   BitCompact                a row of its table of layers,
 *   BIT_LAYER_<field>(layer)  a field of that row, or the number that all layers share,
 *   BIT_ANCHOR                where in the arena the table of summands begins; the sums lie before it, the first one
 * last, BIT_WORD, BIT_SHIFT       bytes of a channel's word, and its lower bits that hold the shift, BIT_FACTOR whether
 * a multiplier of 16 bits stands before the word. What the layers share is a constant of the code then, and what none
 * of them needs is not there.
 *
 * A dense layer is a window over a map of one row. Weight codes, and behind them the channels' words, are one stream
 * of bytes for the whole network: for each input of the window a row of codes, one an output, each row whole bytes.
 * Inputs that are zero or lie outside the map skip their row.
 *
 * Fields: target (offset of the result in the arena); row, size (bytes of a row of the input, of
 * all rows); flip (128 for int8 inputs); kernel_row, kernel_height (bytes of a row of the window, rows); left, top
 * (padding in bytes); right, down (bytes to the next window); columns, rows (windows; a multiple of two where pooled);
 * pool (1 if pooled); outputs; high (largest result; 0 for int32 results); levels, digits, shift of the weights: codes
 * of a byte, which is multiplied by 3 (ternary) or 2**shift for the next one; weight_row (bytes of a row of codes).
 */
#ifndef BIT_COMPACT_H
#define BIT_COMPACT_H

#include "bit_store.h"

#define BIT_OF(field) ((uint32_t)BIT_LAYER_##field(layer))

/* Runs layers that follow each other on `x`; `code` is where the first one's weights begin. */
static void bit_compact(const BitCompact *layer, unsigned count, const uint8_t *code, const uint8_t *x,
                        uint8_t *arena) {
    uint32_t *const table = (uint32_t *)(void *)(arena + BIT_ANCHOR);
    do {
        uint8_t *y = arena + BIT_OF(target);
        uint8_t *const result = y;
        const uint8_t *const weights = code;
        uint32_t top = 0U - BIT_OF(top);
        for (uint32_t rows = BIT_OF(rows); rows != 0; rows--) {
            uint8_t *const start = y;
            uint32_t left = 0U - BIT_OF(left);
            for (uint32_t columns = BIT_OF(columns); columns != 0; columns--) {
                uint32_t *sum = table;
                for (uint32_t i = BIT_OF(outputs); i != 0; i--) {
                    *--sum = 0;
                }
                code = weights;
                uint32_t line = top;
                for (uint32_t height = BIT_OF(kernel_height); height != 0; height--) {
                    uint32_t at = left;
                    for (uint32_t width = BIT_OF(kernel_row); width != 0; width--) {
                        const uint8_t *const end = code + BIT_OF(weight_row);
                        uint32_t value = 0;
                        if (line < BIT_OF(size) && at < BIT_OF(row)) {
                            value = (x[line + at] ^ BIT_OF(flip)) - BIT_OF(flip);
                        }
                        if (value != 0) {
                            /* table[1 + code]: the levels are 1, -1, 3, -3, ... or 0, 1, -1, 2, -2, ... */
                            uint32_t *entry = table + 1;
                            uint32_t product = value;
                            if (BIT_OF(levels) & 1) {
                                product = 0;
                                entry--;
                            } else {
                                value <<= 1;
                            }
                            do {
                                *entry++ = product;
                                *entry++ = 0U - product;
                                product += value;
                            } while (entry < table + 1 + BIT_OF(levels));
                            sum = table;
                            do {
                                uint32_t byte = BIT_FLASH8(code++);
                                for (uint32_t digits = BIT_OF(digits); digits != 0; digits--) {
                                    byte = (byte << BIT_OF(shift)) + (BIT_OF(levels) == 3 ? byte : 0);
                                    *--sum += table[1 + (byte >> 8)];
                                    byte &= 255;
                                }
                            } while (code != end);
                        }
                        code = end;
                        at++;
                    }
                    line += BIT_OF(row);
                }
                sum = table;
                for (uint32_t i = 0; i < BIT_OF(outputs); i++) {
                    uint32_t value = *--sum;
#if BIT_FACTOR
                    value = bit_mul(value, BIT_FLASH8(code) | (uint32_t)(int32_t)(int8_t)BIT_FLASH8(code + 1) << 8);
                    code += 2;
#endif
                    uint32_t word = 0;
#if BIT_WORD > 4
                    const unsigned shift = BIT_FLASH8(code++);
#endif
                    for (unsigned n = BIT_WORD & 4 ? 4 : BIT_WORD; n != 0; n--) {
                        word = word >> 8 | (uint32_t)BIT_FLASH8(code++) << 24;
                    }
#if BIT_WORD <= 4
                    const unsigned shift = word >> (32 - 8 * BIT_WORD) & ((1U << BIT_SHIFT) - 1);
                    word = (uint32_t)bit_shift_right((int32_t)word, 32 - 8 * BIT_WORD + BIT_SHIFT);
#endif
                    value += word;
                    int32_t rounded = bit_finish_round((int32_t)value, shift);
                    if (BIT_OF(high) == 0) {
                        ((BitInt32 *)(void *)y)[i] = rounded;
                    } else {
                        const int32_t least = (rows | columns) & BIT_OF(pool) ? y[i] : 0;
                        rounded = rounded < least ? least : rounded;
                        y[i] = (uint8_t)(rounded > (int32_t)BIT_OF(high) ? (int32_t)BIT_OF(high) : rounded);
                    }
                }
                if ((columns & BIT_OF(pool)) == BIT_OF(pool)) {
                    y += BIT_OF(outputs);
                }
                left += BIT_OF(right);
            }
            if ((rows & BIT_OF(pool)) != BIT_OF(pool)) {
                y = start;
            }
            top += BIT_OF(down);
        }
        x = result;
        layer++;
    } while (--count != 0);
}

#endif
