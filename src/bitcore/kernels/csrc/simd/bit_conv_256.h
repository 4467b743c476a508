/* Convolutions in registers of 256 bits; see bit_conv.h. Included once by each of bit_conv_avx2.c and
 * bit_conv_avxvnni.c, which define BIT_NAME and `dot`: 8 sums of 4 products each, of codes of so many bits. */
#include <string.h>

#include "bit_conv.h"

#define UNROLL _Pragma("GCC unroll 32")

INLINE __m256i load32(const void *at) { return _mm256_loadu_si256((const __m256i *)at); }

/* Codes of 8 rows and 4 inputs: field f, half h. */
INLINE __m256i codes(const int bits, int f, int h, const uint8_t *unit, int second) {
    const int vector = bits == 8 ? f : bits == 4 ? f / 2 : 0;
    const int shift = bits == 8 ? 0 : bits == 4 ? 4 * (f % 2) : bits == 2 ? 2 * f : f + 4 * second;
    const __m256i bytes = load32(unit + 64 * vector + 32 * h);
    const __m256i field = _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(shift));
    return bits == 8 ? bytes : _mm256_and_si256(field, _mm256_set1_epi8((char)((1 << bits) - 1)));
}

INLINE void product(const int bits, const int fields, const int pixels, const uint8_t *weight,
                    const int8_t *const *pointers, int64_t taps, int64_t units, int shift, const int32_t *correction,
                    const int32_t *constant, int32_t *tile) {
    const int unit_bytes = bits == 8 ? 64 * fields : bits == 4 ? 64 * ((fields + 1) / 2) : 64;
    const int64_t count = bits == 1 ? (units + 1) / 2 * 2 : units;
    for (int f = 0; f < fields; f++) {
        __m256i sum[BIT_TILE_PIXELS][2];
        UNROLL for (int p = 0; p < pixels; p++) { sum[p][0] = sum[p][1] = _mm256_setzero_si256(); }
        const uint8_t *unit = weight;
        for (int64_t tap = 0; tap < taps; tap++) {
            const int8_t *const *x = pointers + tap * BIT_TILE_PIXELS;
            for (int64_t u = 0; u < count; u++) {
                const __m256i first = codes(bits, f, 0, unit, (int)(u % 2));
                const __m256i second = codes(bits, f, 1, unit, (int)(u % 2));
                UNROLL for (int p = 0; p < pixels; p++) {
                    int32_t four;
                    memcpy(&four, x[p] + 4 * u, sizeof four);
                    const __m256i broadcast = _mm256_set1_epi32(four);
                    sum[p][0] = dot(bits, sum[p][0], first, broadcast);
                    sum[p][1] = dot(bits, sum[p][1], second, broadcast);
                }
                unit += bits == 1 && u % 2 == 0 ? 0 : unit_bytes;
            }
        }
        UNROLL for (int p = 0; p < pixels; p++) {
            UNROLL for (int h = 0; h < 2; h++) {
                const __m256i scaled = _mm256_sll_epi32(sum[p][h], _mm_cvtsi32_si128(shift));
                const __m256i add =
                    _mm256_add_epi32(_mm256_set1_epi32(correction[p]), load32(constant + 16 * f + 8 * h));
                _mm256_storeu_si256((__m256i *)(void *)(tile + p * BIT_TILE_ROWS + 16 * f + 8 * h),
                                    _mm256_add_epi32(scaled, add));
            }
        }
    }
}

/* Set bits of each 64-bit lane: a table for half bytes, then sums of bytes. */
INLINE __m256i ones(__m256i x) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2,
                                           2, 3, 2, 3, 3, 4);
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(x, mask));
    const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), mask));
    return _mm256_sad_epu8(_mm256_add_epi8(low, high), _mm256_setzero_si256());
}

INLINE void count(const int pixels, const uint64_t *weight, const int8_t *const *pointers, int64_t taps, int64_t words,
                  int fields, const int32_t *constant, int32_t *tile) {
    for (int quarter = 0; quarter < 4 * fields; quarter++) { /* 4 rows */
        __m256i sum[BIT_TILE_PIXELS];
        UNROLL for (int p = 0; p < pixels; p++) { sum[p] = _mm256_setzero_si256(); }
        const uint64_t *w = weight + 4 * quarter;
        for (int64_t tap = 0; tap < taps; tap++) {
            const int8_t *const *x = pointers + tap * BIT_TILE_PIXELS;
            for (int64_t i = 0; i < words; i++, w += 16 * fields) {
                const __m256i rows = load32(w);
                UNROLL for (int p = 0; p < pixels; p++) {
                    int64_t word;
                    memcpy(&word, x[p] + 8 * i, sizeof word);
                    sum[p] = _mm256_add_epi64(sum[p], ones(_mm256_xor_si256(rows, _mm256_set1_epi64x(word))));
                }
            }
        }
        UNROLL for (int p = 0; p < pixels; p++) {
            int64_t differ[4];
            _mm256_storeu_si256((__m256i *)(void *)differ, sum[p]);
            for (int i = 0; i < 4; i++) {
                tile[p * BIT_TILE_ROWS + 4 * quarter + i] = constant[4 * quarter + i] - 2 * (int32_t)differ[i];
            }
        }
    }
}

#include "bit_conv_rows.h"
