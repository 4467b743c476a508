/* What the instruction sets with registers of 256 bits share: everything but the products of bytes. Included once by
 * each of bit_linear_avx2.c and bit_linear_avxvnni.c. */
#include <immintrin.h>

#define BIT_LOOKUP(out, codes, table)                                                                                  \
    for (int lookup_i = 0; lookup_i < 64; lookup_i += 32) {                                                            \
        const __m256i lookup_table =                                                                                   \
            _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)(table)));                      \
        const __m256i lookup_codes = _mm256_loadu_si256((const __m256i *)(const void *)((codes) + lookup_i));          \
        _mm256_storeu_si256((__m256i *)(void *)((out) + lookup_i), _mm256_shuffle_epi8(lookup_table, lookup_codes));   \
    }
#include "bit_rows.h"

/* A lookup takes 3 bits; the fourth, as a sign, chooses between two. */
static inline __m256 look_up(int bits, __m256i words, const float *table) {
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), words);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), words);
    return bits < 4 ? low : _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(words, 28)));
}
#define BIT_REAL_LANES 8
#define BIT_LOOKED_UP(bits, words, table) (bit_reals) look_up(bits, (__m256i)(words), table)
#include "bit_reals.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")
#define AHEAD 4096

INLINE __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

INLINE __m256i broadcast(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm256_set1_epi32(four);
}

/* How many signs differ. A table counts the bits of 4; bytes hold 31 sums of up to 8 each. */
INLINE void count(const int tokens, const uint8_t *weight, const int8_t *x, ptrdiff_t x_stride, int64_t units,
                  int32_t *acc, ptrdiff_t acc_stride) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2,
                                           2, 3, 2, 3, 3, 4);
    const __m256i mask = _mm256_set1_epi8(15);
    for (int64_t u = 0; u < units; u += 31) {
        const int64_t end = units - u < 31 ? units : u + 31;
        for (int part = 0; part < 4; part++) { /* 4 rows */
            __m256i sum[4];
            UNROLL for (int t = 0; t < tokens; t++) { sum[t] = _mm256_setzero_si256(); }
            for (int64_t i = u; i < end; i++) {
                const __m256i signs = load(weight + 128 * i + 32 * part);
                UNROLL for (int t = 0; t < tokens; t++) {
                    int64_t word;
                    memcpy(&word, x + t * x_stride + 8 * i, sizeof word);
                    const __m256i differ = _mm256_xor_si256(signs, _mm256_set1_epi64x(word));
                    const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(differ, mask));
                    const __m256i high =
                        _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(differ, 4), mask));
                    sum[t] = _mm256_add_epi8(sum[t], _mm256_add_epi8(low, high));
                }
            }
            UNROLL for (int t = 0; t < tokens; t++) {
                int64_t rows[4];
                _mm256_storeu_si256((__m256i *)(void *)rows, _mm256_sad_epu8(sum[t], _mm256_setzero_si256()));
                for (int i = 0; i < 4; i++) {
                    acc[t * acc_stride + 4 * part + i] += (int32_t)rows[i];
                }
            }
        }
    }
}

#define ARGUMENTS                                                                                                      \
    const uint8_t *weight, const int8_t *x, ptrdiff_t x_stride, int64_t units, int32_t *acc, ptrdiff_t acc_stride
#define DEFINE_COUNT(tokens, isa)                                                                                      \
    static void bit_linear_binary_binary_##isa##_##tokens(ARGUMENTS) {                                                 \
        count(tokens, weight, x, x_stride, units, acc, acc_stride);                                                    \
    }
#define UP_TO_2(name) NULL, name##_1, name##_2
#define UP_TO_4(name) UP_TO_2(name), NULL, name##_4
