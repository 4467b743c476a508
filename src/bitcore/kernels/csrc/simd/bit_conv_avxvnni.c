/* Convolutions with AVX-VNNI; see bit_conv.h. */
#include "bit_avxvnni.h"

INLINE __m256i dot(const int bits, __m256i sum, __m256i code, __m256i x) {
    (void)bits;
    return dot_bytes(sum, code, x);
}

#define BIT_NAME avxvnni
#include "bit_conv_256.h"
