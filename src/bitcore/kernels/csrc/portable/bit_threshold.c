/* From accumulators to activations of few levels. */
#include "bit_runtime.h"

int32_t bit_threshold(int32_t x, const int32_t *thresholds, uint32_t count) {
    int32_t reached = 0;
    while (count != 0 && x >= (int32_t)BIT_FLASH32(thresholds)) {
        thresholds++;
        reached++;
        count--;
    }
    return reached;
}

int32_t bit_threshold16(int32_t x, const int16_t *thresholds, uint32_t count) {
    int32_t reached = 0;
    while (count != 0 && x >= (int16_t)BIT_FLASH16(thresholds)) {
        thresholds++;
        reached++;
        count--;
    }
    return reached;
}
