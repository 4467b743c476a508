/* The class of the scores. */
#include "bit_runtime.h"

int bit_argmax(const int32_t *x, uint32_t n) {
    const int32_t *best = x;
    for (const int32_t *score = x; n != 0; n--, score++) {
        if (*score > *best) {
            best = score;
        }
    }
    return (int)(best - x);
}
