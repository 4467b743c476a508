/* Tables of codes with digits. */
#include "bit_compact_dense.h"

void bit_compact_fill(const BitCompactDense *layer, const uint8_t *x, const uint8_t *end, uint32_t *table) {
    uint32_t *next = table + 1;
    uint32_t total = 0;
    for (const uint8_t *input = x; input != end; input++) {
        total += bit_activation(layer, input);
    }
    *table = bit_mul(total, (uint32_t)(int32_t)layer->low);
    for (unsigned digits = layer->inputs_of_row; digits != 0; digits--) {
        const uint32_t step = x != end ? bit_activation(layer, x++) << (layer->step == 2) : 0;
        const uint32_t *entry = table;
        const uint32_t *const stop = table + bit_mul((uint32_t)(next - table), layer->levels);
        do {
            *next++ = *entry++ + step;
        } while (next != stop);
    }
}
