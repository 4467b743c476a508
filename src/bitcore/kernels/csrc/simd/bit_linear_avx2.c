/* Products on AVX2, which has no exact 8-bit dot product: `vpmaddubsw` adds two products of an unsigned and a signed
 * byte in 16 bits and saturates. So values are kept small: 2 * v * 128 per unit, for values up to v, may be added up
 * 32767 / (256 v) times before 16 bits overflow: 127 units of 1-bit, 42 of 2-bit, 8 of 4-bit values. Then the sums move
 * to 32 bits. Values beyond 15 are multiplied as two halves, value = 16 high + low.
 */
#include "bit_linear_256.h"

/* acc[0 ... 7] += factor * (pairs of 16-bit sums) */
INLINE void widen(int32_t *acc, __m256i sums, int16_t factor) {
    __m256i *out = (__m256i *)(void *)acc;
    _mm256_storeu_si256(out, _mm256_add_epi32(load(out), _mm256_madd_epi16(sums, _mm256_set1_epi16(factor))));
}

/* One row of x against packed fields of `bits` bits. Eight rows of each field at a time: a run of units stays in L1. */
INLINE void fields(const int bits, const int vectors, const uint8_t *weight, const int8_t *x, int64_t units,
                   int32_t *acc) {
    const int count = 8 / bits, most = bits == 1 ? 64 : bits == 2 ? 32 : 8;
    const __m256i mask = _mm256_set1_epi8((char)((1 << bits) - 1));
    for (int64_t u = 0; u < units; u += most) {
        const int64_t end = units - u < most ? units : u + most;
        for (int part = 0; part < 2 * vectors; part++) { /* 32 bytes of a unit */
            __m256i sum[8];
            UNROLL for (int f = 0; f < count; f++) { sum[f] = _mm256_setzero_si256(); }
            for (int64_t i = u; i < end; i++) {
                const uint8_t *from = weight + 64 * vectors * i + 32 * part;
                const __m256i bytes = load(from), four = broadcast(x + BIT_UNIT_INPUTS * i);
                _mm_prefetch((const char *)from + AHEAD, _MM_HINT_T0);
                UNROLL for (int f = 0; f < count; f++) {
                    const __m256i values = _mm256_and_si256(_mm256_srli_epi16(bytes, bits * f), mask);
                    sum[f] = _mm256_add_epi16(sum[f], _mm256_maddubs_epi16(values, four));
                }
            }
            UNROLL for (int f = 0; f < count; f++) {
                widen(acc + (part / 2 * count + f) * BIT_LANES + part % 2 * 8, sum[f], 1);
            }
        }
    }
}

/* `tokens` rows of x against units of `blocks` blocks of bytes. */
INLINE void panel(const int largest, const int blocks, const int tokens, const uint8_t *weight, const int8_t *x,
                  ptrdiff_t x_stride, int64_t units, int32_t *acc, ptrdiff_t acc_stride) {
    const int most = largest <= 3 ? 32 : 8, halves = largest <= 15 ? 1 : 2;
    const __m256i mask = _mm256_set1_epi8(15);
    for (int64_t u = 0; u < units; u += most) {
        const int64_t end = units - u < most ? units : u + most;
        for (int block = 0; block < blocks; block++) {
            __m256i sum[4][2][2];
            UNROLL for (int t = 0; t < tokens; t++) {
                UNROLL for (int p = 0; p < 2; p++) { sum[t][p][0] = sum[t][p][1] = _mm256_setzero_si256(); }
            }
            for (int64_t i = u; i < end; i++) {
                const uint8_t *from = weight + 64 * (blocks * i + block);
                _mm_prefetch((const char *)from + AHEAD, _MM_HINT_T0);
                __m256i value[2][2];
                UNROLL for (int p = 0; p < 2; p++) {
                    const __m256i bytes = load(from + 32 * p);
                    value[p][0] = halves == 1 ? bytes : _mm256_and_si256(bytes, mask);
                    value[p][1] = halves == 1 ? bytes : _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask);
                }
                UNROLL for (int t = 0; t < tokens; t++) {
                    const __m256i four = broadcast(x + t * x_stride + BIT_UNIT_INPUTS * i);
                    UNROLL for (int p = 0; p < 2; p++) {
                        UNROLL for (int h = 0; h < halves; h++) {
                            sum[t][p][h] = _mm256_add_epi16(sum[t][p][h], _mm256_maddubs_epi16(value[p][h], four));
                        }
                    }
                }
            }
            UNROLL for (int t = 0; t < tokens; t++) {
                UNROLL for (int p = 0; p < 2; p++) {
                    int32_t *out = acc + t * acc_stride + block * BIT_LANES + 8 * p;
                    widen(out, sum[t][p][0], 1);
                    if (halves == 2) {
                        widen(out, sum[t][p][1], 16);
                    }
                }
            }
        }
    }
}

#define DEFINE_FIELDS(bits, vectors)                                                                                   \
    static void bit_linear_##bits##bit_int8_avx2(ARGUMENTS) {                                                          \
        (void)x_stride, (void)acc_stride;                                                                              \
        fields(bits, vectors, weight, x, units, acc);                                                                  \
    }
#define DEFINE_PANEL(name, largest, blocks, tokens)                                                                    \
    static void bit_linear_##name##_int8_avx2_##tokens(ARGUMENTS) {                                                    \
        panel(largest, blocks, tokens, weight, x, x_stride, units, acc, acc_stride);                                   \
    }
DEFINE_FIELDS(1, 1)
DEFINE_FIELDS(2, 1)
DEFINE_FIELDS(4, 2)
DEFINE_PANEL(8bit, 255, 4, 1)
DEFINE_PANEL(8bit, 255, 4, 2)
DEFINE_PANEL(to15, 15, 4, 1)
DEFINE_PANEL(to15, 15, 4, 2)
DEFINE_PANEL(to15, 15, 4, 4)
DEFINE_PANEL(to3, 3, 4, 1)
DEFINE_PANEL(to3, 3, 4, 2)
DEFINE_PANEL(to3, 3, 4, 4)
DEFINE_PANEL(ternary, 3, 5, 1)
DEFINE_PANEL(ternary, 3, 5, 2)
DEFINE_PANEL(ternary, 3, 5, 4)
DEFINE_COUNT(1, avx2)
DEFINE_COUNT(2, avx2)
DEFINE_COUNT(4, avx2)

static int supported(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2");
}

const struct bit_isa bit_isa_avx2 = {
    .name = "avx2",
    .conv = &bit_conv_avx2,
    .supported = supported,
    .product =
        {
            [BIT_LAYOUT_8BIT] = {UP_TO_2(bit_linear_8bit_int8_avx2)},
            [BIT_LAYOUT_4BIT] = {NULL, bit_linear_4bit_int8_avx2},
            [BIT_LAYOUT_2BIT] = {NULL, bit_linear_2bit_int8_avx2},
            [BIT_LAYOUT_1BIT] = {NULL, bit_linear_1bit_int8_avx2},
            [BIT_LAYOUT_BITS] = {UP_TO_4(bit_linear_binary_binary_avx2)},
        },
    .direct_tokens = 2,
    .panel_to15 = {UP_TO_4(bit_linear_to15_int8_avx2)},
    .panel_to3 = {UP_TO_4(bit_linear_to3_int8_avx2)},
    .panel_ternary = {UP_TO_4(bit_linear_ternary_int8_avx2)},
    BIT_ROWS,
    .real = bit_real,
};
