/* Convolutions on AVX2; see bit_conv.h. `vpmaddubsw` adds two products of unsigned and signed bytes in 16 bits and
 * saturates, so its codes are at most 15: 2 * 15 * 128 fits. A code of 8 bits is taken as 16 * high + low. */
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

INLINE __m256i dot(const int bits, __m256i sum, __m256i code, __m256i x) {
    const __m256i one = _mm256_set1_epi16(1);
    if (bits < 8) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(code, x), one));
    }
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i low = _mm256_and_si256(code, mask), high = _mm256_and_si256(_mm256_srli_epi16(code, 4), mask);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(low, x), one));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(high, x), _mm256_set1_epi16(16)));
}

#define BIT_NAME avx2
#include "bit_conv_256.h"
