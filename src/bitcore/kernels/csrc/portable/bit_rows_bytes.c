/* Convolution row by row: a byte for each code, its entry's offset in the table. */
#include "bit_conv2d_rows.h"

BIT_INLINE void add(const BitGroup *group, const uint8_t *codes, const uint8_t *others, int inner, int two) {
    const uint32_t *const tables = group->tables;
    const uint32_t *const end = group->end;
    const uint32_t step = group->step;
    uint32_t *sum = group->sum;
    codes += group->first;
    if (two) {
        others += group->first;
    }
    do {
        bit_add_entry(sum + BIT_ABOVE, tables, BIT_FLASH8(codes), two ? BIT_FLASH8(others) : 0, two);
        bit_add_entry(sum + BIT_AT, tables, BIT_FLASH8(codes + 1), two ? BIT_FLASH8(others + 1) : 0, two);
        if (inner) {
            bit_add_entry(sum + BIT_BELOW, tables, BIT_FLASH8(codes + 2), two ? BIT_FLASH8(others + 2) : 0, two);
        }
        codes += 3;
        if (two) {
            others += 3;
        }
        sum += step;
    } while (sum < end);
}

BIT_DEFINE_ADD(bit_rows_bytes)
