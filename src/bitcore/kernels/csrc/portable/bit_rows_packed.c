/* Convolution row by row: three codes in 16 bits. */
#include "bit_conv2d_rows.h"

BIT_INLINE void add(const BitGroup *group, const uint8_t *codes, const uint8_t *others, int inner, int two) {
    const uint32_t *const tables = group->tables;
    const uint32_t *const end = group->end;
    const uint32_t step = group->step;
    const unsigned first = 5 * group->first;
    const uint16_t *p = (const uint16_t *)(const void *)codes;
    const uint16_t *q = (const uint16_t *)(const void *)others;
    uint32_t *sum = group->sum;
    do {
        uint32_t code = BIT_FLASH16(p++);
        uint32_t other = two ? BIT_FLASH16(q++) : 0;
        if (inner) {
            bit_add_entry(sum + BIT_BELOW, tables, code >> 7 & 248, other >> 7 & 248, two);
        } else {
            code >>= first;
            other >>= first;
        }
        bit_add_entry(sum + BIT_ABOVE, tables, code << 3 & 248, other << 3 & 248, two);
        bit_add_entry(sum + BIT_AT, tables, code >> 2 & 248, other >> 2 & 248, two);
        sum += step;
    } while (sum < end);
}

BIT_DEFINE_ADD(bit_rows_packed)
