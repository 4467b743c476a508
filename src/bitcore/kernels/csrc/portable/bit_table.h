/* Accumulation by tables: what the formats' columns have in common. */
#ifndef BIT_TABLE_H
#define BIT_TABLE_H

#include "bit_layers.h"

/* Input i of both pixels, in one word. */
BIT_INLINE uint32_t bit_input(const BitInputs *x, uint32_t i) {
    const uint32_t flip = x->flip;
    uint32_t word = 0;
    if (x->a) {
        word = (x->a[i] ^ flip) - flip;
    }
    if (x->b) {
        word += ((x->b[i] ^ flip) - flip) << 16;
    }
    return word;
}

/* The table's entry at an offset in bytes: codes are shifted to where they are offsets. */
BIT_INLINE uint32_t bit_entry(const uint32_t *table, uint32_t offset) {
    return *(const uint32_t *)(const void *)((const uint8_t *)table + offset);
}

/* Adds the entries of a row of 4-bit codes: 8 outputs a word, the last ones two a byte. */
BIT_INLINE void bit_add_4bit(BitCodes *row, uint32_t outputs, uint32_t *sum, const uint32_t *table) {
    const uint32_t *words = row->words;
    const uint8_t *bytes = row->bytes;
    for (; outputs >= 8; outputs -= 8, sum += 8) {
        const uint32_t word = BIT_FLASH32(words++);
        sum[0] += bit_entry(table, word << 2 & 60);
        sum[1] += bit_entry(table, word >> 2 & 60);
        sum[2] += bit_entry(table, word >> 6 & 60);
        sum[3] += bit_entry(table, word >> 10 & 60);
        sum[4] += bit_entry(table, word >> 14 & 60);
        sum[5] += bit_entry(table, word >> 18 & 60);
        sum[6] += bit_entry(table, word >> 22 & 60);
        sum[7] += bit_entry(table, word >> 26 & 60);
    }
    for (uint32_t byte = 0; outputs != 0; outputs--, sum++, byte >>= 4) {
        if (byte < 16) { /* the marker of 1 in bit 8 has come down: the byte is used up */
            byte = BIT_FLASH8(bytes++) | 256U;
        }
        *sum += bit_entry(table, byte << 2 & 60);
    }
    row->words = words;
    row->bytes = bytes;
}

/* Adds the entries of a row of 5-bit codes: 8 outputs in a word and a byte (six in the word, the seventh in the byte,
 * the eighth in what both have left), the last ones a byte each. */
BIT_INLINE void bit_add_5bit(BitCodes *row, uint32_t outputs, uint32_t *sum, const uint32_t *table) {
    const uint32_t *words = row->words;
    const uint8_t *bytes = row->bytes;
    for (; outputs >= 8; outputs -= 8, sum += 8) {
        const uint32_t word = BIT_FLASH32(words++);
        const uint32_t byte = BIT_FLASH8(bytes++);
        sum[0] += bit_entry(table, word << 2 & 124);
        sum[1] += bit_entry(table, word >> 3 & 124);
        sum[2] += bit_entry(table, word >> 8 & 124);
        sum[3] += bit_entry(table, word >> 13 & 124);
        sum[4] += bit_entry(table, word >> 18 & 124);
        sum[5] += bit_entry(table, word >> 23 & 124);
        sum[6] += bit_entry(table, byte << 2 & 124);
        sum[7] += bit_entry(table, (word >> 28 & 12) | (byte >> 1 & 112));
    }
    for (; outputs != 0; outputs--) {
        *sum++ += bit_entry(table, (uint32_t)BIT_FLASH8(bytes++) << 2);
    }
    row->words = words;
    row->bytes = bytes;
}

/* Passes over a row. */
BIT_INLINE void bit_skip_4bit(BitCodes *row, uint32_t outputs) {
    row->words += outputs >> 3;
    row->bytes += ((outputs & 7U) + 1) >> 1;
}

BIT_INLINE void bit_skip_5bit(BitCodes *row, uint32_t outputs) {
    row->words += outputs >> 3;
    row->bytes += (outputs >> 3) + (outputs & 7U);
}

/* table[size * code] = (low + step * code) * x for evenly spaced levels. */
BIT_INLINE void bit_fill(uint32_t *table, unsigned size, uint32_t x, int low, int step, unsigned levels) {
    const uint32_t *const end = table + size * levels;
    uint32_t entry = bit_mul(x, (uint32_t)(int32_t)low);
    const uint32_t next = step == 2 ? x << 1 : x;
    do {
        *table = entry;
        table += size;
        entry += next;
    } while (table != end);
}

/* table[size * code] = the sum of (digit - 1) * x for the three ternary digits of a code, the lowest one for x0. */
BIT_INLINE void bit_fill_ternary(uint32_t *table, unsigned size, uint32_t x0, uint32_t x1, uint32_t x2) {
    uint32_t entry = 0U - x0 - x1 - x2;
    for (const uint32_t *const end = table + 27 * size; table != end; table += 9 * size, entry += x2) {
        uint32_t first = entry;
        table[0] = first;
        table[size] = first += x0;
        table[2 * size] = first + x0;
        table[3 * size] = first = entry + x1;
        table[4 * size] = first += x0;
        table[5 * size] = first + x0;
        table[6 * size] = first = entry + (x1 << 1);
        table[7 * size] = first += x0;
        table[8 * size] = first + x0;
    }
}

/* table[i + size] = table[i] + x for the first `size` entries. */
BIT_INLINE void bit_extend(uint32_t *table, unsigned size, uint32_t x) {
    const uint32_t *const end = table + size;
    do {
        table[size] = *table + x;
        table++;
    } while (table != end);
}

#endif
