/* The class of the scores. */
#include "bit_runtime.h"

int bit_argmax(const int32_t *x, uint32_t n) {
    int best = 0;
    for (uint32_t i = 1; i < n; i++) {
        if (x[i] > x[best]) {
            best = (int)i;
        }
    }
    return best;
}
