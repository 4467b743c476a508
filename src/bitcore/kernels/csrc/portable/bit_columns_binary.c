/* Columns of weights of 1 bit: four inputs at a time, 16 codes of 4 bits. */
#include "bit_table.h"

void bit_columns_binary(const BitInputs *x, BitCodes *weight, uint32_t outputs, int low, int step, uint32_t *sum,
                        uint32_t *table) {
    for (uint32_t i = 0; i < x->count; i += 4) {
        uint32_t any = 0;
        uint32_t least = 0;
        table[0] = 0;
        for (unsigned j = 0; j < 4; j++) {
            const uint32_t word = i + j < x->count ? bit_input(x, i + j) : 0;
            any |= word;
            least -= word;
            bit_extend(table, 1U << j, step == 2 ? word << 1 : word);
        }
        if (any != 0) {
            for (unsigned code = 0; low != 0 && code < 16; code++) {
                table[code] += least;
            }
            bit_add_4bit(weight, outputs, sum, table);
        } else {
            bit_skip_4bit(weight, outputs);
        }
    }
}
