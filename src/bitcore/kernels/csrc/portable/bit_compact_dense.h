/* Fully connected layers for chips with little flash and RAM: less code than bit_dense, slower.
 *
 * Weights are a stream of bytes: for each block of outputs, for each input (or a few together) a row with the codes of
 * the block, in whole bytes. Rows whose inputs are zero are passed over.
 */
#ifndef BIT_COMPACT_DENSE_H
#define BIT_COMPACT_DENSE_H

#include "bit_store.h"

typedef struct BitCompactDense BitCompactDense;

/* Adds a row of weights, for the inputs from `x` to `end`, to the sums up to `last`; `table` is free to use. */
typedef void BitCompactRow(const BitCompactDense *layer, const uint8_t *codes, const uint8_t *x, const uint8_t *end,
                           uint32_t *sum, const uint32_t *last, uint32_t *table);

/* Codes of 4 bits, two in a byte: of one input; of a few inputs, a digit to the base `levels` for each; of one input
 * and levels of any kind. */
BitCompactRow bit_compact_4bit, bit_compact_digits, bit_compact_levels;

/* Codes of 5 bits, with digits; codes of 8 bits. */
BitCompactRow bit_compact_5bit, bit_compact_8bit;

/* Rice codes around zero: a bit of sign and the magnitude in ones, ended by a zero. */
BitCompactRow bit_compact_rice;

struct BitCompactDense {
    BitCompactRow *add;
    const uint8_t *codes;
    const int16_t *products;    /* bit_compact_levels: the levels */
    BitActivate *activate;      /* NULL: bit_scale, clamped to 0...high */
    const uint16_t *multiplier; /* its lower 14 bits, the 15th is set; above them the shift beyond `shift` */
    const int32_t *bias;
    uint16_t inputs, outputs, block;
    int16_t low;          /* the lowest level */
    uint8_t step, levels; /* of the weights */
    uint8_t bits;         /* of a row for each output; 0: the row's first byte says how many bytes follow */
    uint8_t inputs_of_row;
    uint8_t flip, result; /* as in BitDense */
    uint8_t shift, high;
};

/* An input as a number. */
BIT_INLINE uint32_t bit_activation(const BitCompactDense *layer, const uint8_t *x) {
    return (*x ^ (uint32_t)layer->flip) - layer->flip;
}

/* Fills the table of codes with digits; inputs that are missing are zero. */
void bit_compact_fill(const BitCompactDense *layer, const uint8_t *x, const uint8_t *end, uint32_t *table);

/* Adds the entries of a row of 4-bit codes; with an odd number of sums also to the word behind them. */
BIT_INLINE const uint8_t *bit_compact_add(const uint8_t *codes, uint32_t *sum, const uint32_t *last,
                                          const uint32_t *table) {
    do {
        const uint32_t byte = BIT_FLASH8(codes++);
        sum[0] += table[byte & 15];
        sum[1] += table[byte >> 4];
        sum += 2;
    } while (sum < last);
    return codes;
}

/* `scratch` holds the sums of a block, an even number of words, and the table. */
void bit_compact_dense(const BitCompactDense *layer, const uint8_t *x, uint8_t *y, const BitBuffers *buffers,
                       uint32_t *scratch);

#endif
