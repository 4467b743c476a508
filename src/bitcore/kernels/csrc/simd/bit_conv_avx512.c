/* Convolutions on AVX-512 with VNNI and VPOPCNTDQ; see bit_conv.h, and bit_linear_avx512.c about nested fields. */
#include <immintrin.h>
#include <string.h>

#include "bit_conv.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32") /* or accumulator arrays stay in memory: 3 times slower */

/* The intrinsic makes gcc 12 copy every accumulator twice. */
INLINE __m512i dot(__m512i sum, __m512i weight, __m512i x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weight), "v"(x));
    return sum;
}

INLINE __m512i four(const int8_t *x) {
    int32_t bytes;
    memcpy(&bytes, x, sizeof bytes);
    return _mm512_set1_epi32(bytes);
}

INLINE __m512i low_bits(__m512i x, int count) {
    return _mm512_and_si512(x, _mm512_set1_epi8((char)((1 << count) - 1)));
}

/* The operands of a unit: low parts of its bytes, each with one field more than the one before. */
INLINE void operands(const int bits, const int fields, const uint8_t *unit, __m512i *value) {
    if (bits == 8) {
        UNROLL for (int f = 0; f < fields; f++) { value[f] = _mm512_loadu_si512(unit + 64 * f); }
    } else if (bits == 4) {
        UNROLL for (int f = 0; f < fields; f++) {
            const __m512i bytes = _mm512_loadu_si512(unit + 64 * (f / 2));
            value[f] = f % 2 ? bytes : low_bits(bytes, 4);
        }
    } else {
        const __m512i bytes = _mm512_loadu_si512(unit);
        UNROLL for (int f = 0; f < fields; f++) {
            value[f] = bits == 2 && f == 3 ? bytes : low_bits(bytes, bits * (f + 1));
        }
    }
}

INLINE void multiply(const int fields, const int pixels, const __m512i *value, const int8_t *const *x, ptrdiff_t at,
                     __m512i (*sum)[4]) {
    UNROLL for (int p = 0; p < pixels; p++) {
        const __m512i broadcast = four(x[p] + at);
        UNROLL for (int f = 0; f < fields; f++) { sum[p][f] = dot(sum[p][f], value[f], broadcast); }
    }
}

INLINE void product(const int bits, const int fields, const int pixels, const uint8_t *weight,
                    const int8_t *const *pointers, int64_t taps, int64_t units, int shift, const int32_t *correction,
                    const int32_t *constant, int32_t *tile) {
    /* so many units at a time go to separate sums, to hide the latency of few products */
    const int sums = fields * pixels, ways = sums <= 4 && bits > 1 ? 4 : sums <= 8 ? 2 : 1;
    const int unit_bytes = bits == 8 ? 64 * fields : bits == 4 ? 64 * ((fields + 1) / 2) : 64;
    __m512i sum[4][BIT_TILE_PIXELS][4], value[4];
    UNROLL for (int w = 0; w < ways; w++) {
        UNROLL for (int p = 0; p < pixels; p++) {
            UNROLL for (int f = 0; f < fields; f++) { sum[w][p][f] = _mm512_setzero_si512(); }
        }
    }
    for (int64_t tap = 0; tap < taps; tap++, pointers += BIT_TILE_PIXELS) {
        const int8_t *x[BIT_TILE_PIXELS];
        UNROLL for (int p = 0; p < pixels; p++) { x[p] = pointers[p]; }
        if (bits == 1) {
            for (int64_t u = 0; u < units; u += 2, weight += 64) {
                operands(1, fields, weight, value);
                multiply(fields, pixels, value, x, 4 * u, sum[0]);
                const __m512i high = _mm512_srli_epi16(_mm512_loadu_si512(weight), 4);
                UNROLL for (int f = 0; f < fields; f++) { value[f] = low_bits(high, f + 1); }
                multiply(fields, pixels, value, x, 4 * u + 4, sum[ways - 1]);
            }
            continue;
        }
        int64_t u = 0;
        for (; u + ways <= units; u += ways, weight += ways * unit_bytes) {
            UNROLL for (int w = 0; w < ways; w++) {
                operands(bits, fields, weight + w * unit_bytes, value);
                multiply(fields, pixels, value, x, 4 * (u + w), sum[w]);
            }
        }
        for (; u < units; u++, weight += unit_bytes) {
            operands(bits, fields, weight, value);
            multiply(fields, pixels, value, x, 4 * u, sum[0]);
        }
    }
    const __m128i count = _mm_cvtsi32_si128(shift);
    UNROLL for (int p = 0; p < pixels; p++) {
        const __m512i add = _mm512_set1_epi32(correction[p]);
        UNROLL for (int w = 1; w < ways; w++) {
            UNROLL for (int f = 0; f < fields; f++) { sum[0][p][f] = _mm512_add_epi32(sum[0][p][f], sum[w][p][f]); }
        }
        UNROLL for (int f = 0; f < fields; f++) {
            __m512i s = sum[0][p][f];
            if (bits < 8 && (bits == 4 ? f % 2 : f)) {
                s = _mm512_srai_epi32(_mm512_sub_epi32(s, sum[0][p][f - 1]), (unsigned)(bits == 4 ? 4 : bits * f));
            }
            s = _mm512_add_epi32(_mm512_sll_epi32(s, count), add);
            _mm512_storeu_si512(tile + p * BIT_TILE_ROWS + 16 * f,
                                _mm512_add_epi32(s, _mm512_loadu_si512(constant + 16 * f)));
        }
    }
}

static void sums(const int8_t *const *pointers, int64_t taps, int64_t length, int pixels, int32_t *result) {
    const __m512i ones = _mm512_set1_epi8(1);
    const __mmask64 tail = length % 64 ? (1ULL << length % 64) - 1 : 0;
    const int64_t whole = length / 64 * 64;
    __m512i sum[8];
    UNROLL for (int p = 0; p < 8; p++) { sum[p] = _mm512_setzero_si512(); }
    for (int64_t tap = 0; tap < taps; tap++, pointers += BIT_TILE_PIXELS) {
        const int8_t *x[BIT_TILE_PIXELS];
        UNROLL for (int p = 0; p < BIT_TILE_PIXELS; p++) { x[p] = pointers[p < pixels ? p : 0]; }
        for (int64_t i = 0; i < whole; i += 64) {
            UNROLL for (int p = 0; p < BIT_TILE_PIXELS; p++) {
                sum[p] = dot(sum[p], ones, _mm512_loadu_si512(x[p] + i));
            }
        }
        if (tail) {
            UNROLL for (int p = 0; p < BIT_TILE_PIXELS; p++) {
                sum[p] = dot(sum[p], ones, _mm512_maskz_loadu_epi8(tail, x[p] + whole));
            }
        }
    }
    /* halves, then pairs of sums side by side, until lane p of 8 holds sum p */
    __m256i half[8];
    UNROLL for (int p = 0; p < 8; p++) {
        half[p] = _mm256_add_epi32(_mm512_castsi512_si256(sum[p]), _mm512_extracti64x4_epi64(sum[p], 1));
    }
    UNROLL for (int p = 0; p < 4; p++) { half[p] = _mm256_hadd_epi32(half[2 * p], half[2 * p + 1]); }
    const __m256i first = _mm256_hadd_epi32(half[0], half[1]), second = _mm256_hadd_epi32(half[2], half[3]);
    const __m256i all = _mm256_add_epi32(_mm256_permute2x128_si256(first, second, 0x20),
                                         _mm256_permute2x128_si256(first, second, 0x31));
    _mm256_mask_storeu_epi32(result, (1 << BIT_TILE_PIXELS) - 1, all);
}

/* How many signs differ: 16 rows in two registers of 64-bit lanes. */
INLINE void count(const int pixels, const uint64_t *weight, const int8_t *const *pointers, int64_t taps, int64_t words,
                  int fields, const int32_t *constant, int32_t *tile) {
    for (int f = 0; f < fields; f++) {
        __m512i sum[BIT_TILE_PIXELS][2];
        UNROLL for (int p = 0; p < pixels; p++) { sum[p][0] = sum[p][1] = _mm512_setzero_si512(); }
        const uint64_t *w = weight + 16 * f;
        for (int64_t tap = 0; tap < taps; tap++) {
            const int8_t *const *x = pointers + tap * BIT_TILE_PIXELS;
            for (int64_t i = 0; i < words; i++, w += 16 * fields) {
                const __m512i first = _mm512_loadu_si512(w), second = _mm512_loadu_si512(w + 8);
                UNROLL for (int p = 0; p < pixels; p++) {
                    int64_t word;
                    memcpy(&word, x[p] + 8 * i, sizeof word);
                    const __m512i signs = _mm512_set1_epi64(word);
                    sum[p][0] = _mm512_add_epi64(sum[p][0], _mm512_popcnt_epi64(_mm512_xor_si512(first, signs)));
                    sum[p][1] = _mm512_add_epi64(sum[p][1], _mm512_popcnt_epi64(_mm512_xor_si512(second, signs)));
                }
            }
        }
        UNROLL for (int p = 0; p < pixels; p++) {
            UNROLL for (int i = 0; i < 2; i++) {
                const __m256i differ = _mm512_cvtepi64_epi32(sum[p][i]);
                const __m256i c = _mm256_loadu_si256((const __m256i *)(const void *)(constant + 16 * f + 8 * i));
                _mm256_storeu_si256((__m256i *)(void *)(tile + p * BIT_TILE_ROWS + 16 * f + 8 * i),
                                    _mm256_sub_epi32(c, _mm256_slli_epi32(differ, 1)));
            }
        }
    }
}
static void signs(const int8_t *x, int64_t n, uint64_t *bits) {
    for (int64_t i = 0; i < n; i += 64, bits++) {
        const __mmask64 valid = n - i < 64 ? (1ULL << (n - i)) - 1 : ~0ULL;
        *bits = _mm512_movepi8_mask(_mm512_maskz_loadu_epi8(valid, x + i));
    }
}

/* Doubles hold every intermediate result exactly (post->in_double), so the conversion rounds the exact quotient. */
static void requantize_in_double(const struct bit_post *post, int32_t *tile, int pixels, int64_t first, int rows) {
    const double *factor = post->factor + (post->shared ? 0 : first),
                 *addend = post->addend + (post->shared ? 0 : first);
    const __m256i low = _mm256_set1_epi32(post->low), high = _mm256_set1_epi32(post->high);
    for (int r = 0; r < rows; r += 8) {
        const __m512d scale = _mm512_loadu_pd(factor + r), bias = _mm512_loadu_pd(addend + r);
        for (int p = 0; p < pixels; p++) {
            __m256i *at = (__m256i *)(void *)(tile + p * BIT_TILE_ROWS + r);
            const __m512d x = _mm512_fmadd_pd(_mm512_cvtepi32_pd(_mm256_loadu_si256(at)), scale, bias);
            const __m256i y = _mm512_cvt_roundpd_epi32(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
            _mm256_storeu_si256(at, _mm256_min_epi32(_mm256_max_epi32(y, low), high));
        }
    }
}

/* 32-bit products, 64 channels in four registers. */
static void depthwise_block(const int16_t *weight, int64_t stride, const int8_t *const *pointers, int64_t taps,
                            int pixels, int rows, const int32_t *constant, int32_t *tile) {
    const __mmask64 valid = rows < 64 ? (1ULL << rows) - 1 : ~0ULL;
    for (int p = 0; p < pixels; p++) {
        __m512i sum[4];
        UNROLL for (int i = 0; i < 4; i++) { sum[i] = _mm512_loadu_si512(constant + 16 * i); }
        const int16_t *w = weight;
        for (int64_t tap = 0; tap < taps; tap++, w += stride) {
            const int8_t *x = pointers[tap * BIT_TILE_PIXELS + p];
            UNROLL for (int i = 0; i < 4; i++) {
                const __m128i bytes = _mm_maskz_loadu_epi8((__mmask16)(valid >> 16 * i), x + 16 * i);
                const __m512i level =
                    _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(w + 16 * i)));
                sum[i] = _mm512_add_epi32(sum[i], _mm512_mullo_epi32(_mm512_cvtepi8_epi32(bytes), level));
            }
        }
        UNROLL for (int i = 0; i < 4; i++) { _mm512_storeu_si512(tile + p * BIT_TILE_ROWS + 16 * i, sum[i]); }
    }
}

#define BIT_NAME avx512
#define BIT_DEPTHWISE depthwise_block
#define BIT_REQUANTIZE_IN_DOUBLE requantize_in_double
#define BIT_SIGNS signs
#define BIT_SUMS sums
#include "bit_conv_rows.h"
