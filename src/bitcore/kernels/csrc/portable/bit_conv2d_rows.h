/* What the parts of a convolution row by row share. */
#ifndef BIT_CONV2D_ROWS_H
#define BIT_CONV2D_ROWS_H

#include "bit_layers.h"

/* The sums of an output: in the row above the one that is read, in that row, in the one below, and, where rows are
 * pooled, in the one before all these. Each is two words, of two pixels each, the second one in the upper half. */
enum { BIT_ABOVE, BIT_AT = 2, BIT_BELOW = 4, BIT_BEFORE = 6 };

/* Words of a table's entry; of a table of up to 32 entries, behind which the other one lies. */
enum { BIT_ENTRY = 2, BIT_TABLE = 64 };

/* What becomes of four pixels of a row. */
struct BitGroup {
    uint32_t *sum, *end; /* of all outputs of a block */
    uint32_t step;       /* words from one output to the next */
    uint32_t *tables;
    unsigned first; /* 1 in the map's first row, which has none above it: codes begin with the second one */
    int inner;      /* neither in the first row nor in the last: sums of three rows are added to, not of two */
};

/* Adds to one row what one table, or two, hold at offsets in bytes. */
BIT_INLINE void bit_add_entry(uint32_t *sum, const uint32_t *tables, uint32_t code, uint32_t other, int two) {
    const uint32_t *entry = (const uint32_t *)(const void *)((const uint8_t *)tables + code);
    uint32_t left = entry[0];
    uint32_t right = entry[1];
    if (two) {
        entry = (const uint32_t *)(const void *)((const uint8_t *)tables + other);
        left += entry[BIT_TABLE];
        right += entry[BIT_TABLE + 1];
    }
    sum[0] += left;
    sum[1] += right;
}

/* Defines `name` by its loop `add`, for two or three rows and one or two tables. */
#define BIT_DEFINE_ADD(name)                                                                                           \
    void name(const BitGroup *group, const uint8_t *codes, const uint8_t *others) {                                    \
        if (group->inner) {                                                                                            \
            if (others) {                                                                                              \
                add(group, codes, others, 1, 1);                                                                       \
            } else {                                                                                                   \
                add(group, codes, others, 1, 0);                                                                       \
            }                                                                                                          \
        } else if (others) {                                                                                           \
            add(group, codes, others, 0, 1);                                                                           \
        } else {                                                                                                       \
            add(group, codes, others, 0, 0);                                                                           \
        }                                                                                                              \
    }

#endif
