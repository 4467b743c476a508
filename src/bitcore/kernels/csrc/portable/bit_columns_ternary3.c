/* Rows of three ternary weights, as in 3x3 convolutions: an input channel at a time, 27 codes of 5 bits. Of the four
 * pixels that two neighbouring results see, each is read once, and where all are zero the channel is skipped. */
#include "bit_table.h"

void bit_columns_ternary3(const BitInputs *x, BitCodes *weight, uint32_t outputs, int low, int step, uint32_t *sum,
                          uint32_t *table) {
    const uint32_t pixel = x->count;
    (void)low;
    (void)step;
    for (uint32_t i = 0; i < pixel; i++) {
        uint32_t x0 = 0;
        uint32_t x1 = 0;
        uint32_t x2 = 0;
        if (x->a) {
            const uint8_t *const a = x->a + i;
            x1 = *a;
            if (x->left > 0) {
                x0 = *(a - pixel);
            }
            if (x->right > 1) {
                x2 = a[pixel];
            }
            if (x->b) {
                x0 |= x1 << 16;
                x1 |= x2 << 16;
                if (x->right > 2) {
                    x2 |= (uint32_t)a[2 * pixel] << 16;
                }
            }
        }
        if ((x0 | x1 | x2) != 0) {
            bit_fill_ternary(table, 1, x0, x1, x2);
            bit_add_5bit(weight, outputs, sum, table);
        } else {
            bit_skip_5bit(weight, outputs);
        }
    }
}
