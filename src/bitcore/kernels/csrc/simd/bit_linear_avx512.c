/* Products on AVX-512 with VNNI and VPOPCNTDQ. `vpdpbusd` adds 4 products of unsigned and signed bytes to each 32-bit
 * lane, modulo 2**32 and without saturation.
 *
 * Nested fields: the fields d_0 ... d_(F-1) of a byte (b bits each) are rows that meet the same activation. Instead of
 * isolating them, whole low parts are multiplied: P_i = sum((byte & (2**(b (i+1)) - 1)) * x). Then
 * sum(d_i * x) = (P_i - P_(i-1)) / 2**(b i), exactly: one AND a field in the loop, the rest once an output.
 *
 * Base 3: a byte B_0 stands for the fraction B_0 / 256. Its first digit is floor(3 B_0 / 256), what remains is
 * B_1 = 3 B_0 mod 256, so d_i = (3 B_i - B_(i+1)) / 256: with P_i = sum(B_i * x), 6 products give 5 rows.
 *
 * 256 * 2 * 128 * inputs stays within 32 bits for inputs up to 32768; the driver calls with at most 16384 at a time.
 */
#include <immintrin.h>
#include <stdint.h>

#define BIT_LOOKUP(out, codes, table)                                                                                  \
    _mm512_storeu_si512(                                                                                               \
        (out), _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)(table))),    \
                                   _mm512_loadu_si512(codes)));

/* As in bit_rows.h, which explains it. */
static void signs(const float *x, uint64_t *bits, int64_t n, float scale, uint8_t *nan) {
    const __m512 divisor = _mm512_set1_ps(scale), zero = _mm512_setzero_ps();
    unsigned bad = 0;
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 valid = (__mmask16)(n - i < 16 ? (1U << (n - i)) - 1 : 0xffffU);
        const __m512 u = _mm512_div_ps(_mm512_maskz_loadu_ps(valid, x + i), divisor);
        bad |= _mm512_mask_cmp_ps_mask(valid, u, u, _CMP_UNORD_Q);
        const uint64_t negative = _mm512_cmp_ps_mask(u, zero, _CMP_LT_OQ);
        bits[i / 64] = (i % 64 ? bits[i / 64] : 0) | negative << i % 64;
    }
    *nan = bad != 0;
}
#define BIT_SIGNS signs
#include "bit_rows.h"

#define BIT_REAL_LANES 16
#define BIT_LOOKED_UP(bits, words, table) (bit_reals) _mm512_permutexvar_ps((__m512i)(words), _mm512_loadu_ps(table))
#include "bit_reals.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32") /* or accumulator arrays stay in memory: 3 times slower */
#define AHEAD 8192                      /* bytes to prefetch ahead */

/* The intrinsic makes gcc 12 copy every accumulator twice. */
INLINE __m512i dot(__m512i sum, __m512i weight, __m512i x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weight), "v"(x));
    return sum;
}

/* The register that the i-th product of a unit takes, from the unit's bytes; `state` goes from one to the next. */
INLINE __m512i operand(int layout, int i, const uint8_t *unit, __m512i *state) {
    switch (layout) {
    case BIT_LAYOUT_8BIT:
        return _mm512_loadu_si512(unit + 64 * i);
    case BIT_LAYOUT_4BIT:
        *state = i % 2 == 0 ? _mm512_loadu_si512(unit + 32 * i) : *state;
        return i % 2 == 0 ? _mm512_and_si512(*state, _mm512_set1_epi8(15)) : *state;
    case BIT_LAYOUT_2BIT:
        *state = i == 0 ? _mm512_loadu_si512(unit) : *state;
        return i < 3 ? _mm512_and_si512(*state, _mm512_set1_epi8((char)((4 << 2 * i) - 1))) : *state;
    case BIT_LAYOUT_1BIT:
        *state = i == 0 ? _mm512_loadu_si512(unit) : *state;
        return i < 7 ? _mm512_and_si512(*state, _mm512_set1_epi8((char)((2 << i) - 1))) : *state;
    default:
        *state = i == 0 ? _mm512_loadu_si512(unit)
                        : _mm512_add_epi8(*state, _mm512_add_epi8(*state, *state)); /* 3 b modulo 256 */
        return *state;
    }
}

/* Sums of one block from those of the operands. */
INLINE __m512i block_sum(int layout, int i, const __m512i *p) {
    switch (layout) {
    case BIT_LAYOUT_4BIT:
        return i % 2 ? _mm512_srai_epi32(_mm512_sub_epi32(p[i], p[i - 1]), 4) : p[i];
    case BIT_LAYOUT_2BIT:
        return i ? _mm512_srai_epi32(_mm512_sub_epi32(p[i], p[i - 1]), (unsigned)(2 * i)) : p[i];
    case BIT_LAYOUT_1BIT:
        return i ? _mm512_srai_epi32(_mm512_sub_epi32(p[i], p[i - 1]), (unsigned)i) : p[i];
    case BIT_LAYOUT_TERNARY:
        return _mm512_srai_epi32(_mm512_sub_epi32(_mm512_add_epi32(p[i], _mm512_add_epi32(p[i], p[i])), p[i + 1]), 8);
    default:
        return p[i];
    }
}

/* One group, `tokens` rows of x. `ways` units at a time go to separate sums, to hide the latency of a few tokens. */
INLINE void product(const int layout, const int blocks, const int tokens, const int ways, const uint8_t *weight,
                    const int8_t *x, ptrdiff_t x_stride, int64_t units, int32_t *acc, ptrdiff_t acc_stride) {
    const int operands = layout == BIT_LAYOUT_TERNARY ? 6 : blocks;
    const int unit_bytes = layout == BIT_LAYOUT_8BIT ? 64 * blocks : layout == BIT_LAYOUT_4BIT ? 128 : 64;
    __m512i sum[4][BIT_MAX_TOKENS][8], state;
    UNROLL for (int w = 0; w < ways; w++) {
        UNROLL for (int t = 0; t < tokens; t++) {
            UNROLL for (int i = 0; i < operands; i++) { sum[w][t][i] = _mm512_setzero_si512(); }
        }
    }
    for (int64_t u = 0; u < units; u += ways, weight += ways * unit_bytes, x += ways * BIT_UNIT_INPUTS) {
        UNROLL for (int w = 0; w < ways; w++) {
            UNROLL for (int i = 0; i < unit_bytes; i += 64) {
                _mm_prefetch((const char *)weight + w * unit_bytes + i + AHEAD, _MM_HINT_T0);
            }
            __m512i value[8];
            UNROLL for (int i = 0; i < operands; i++) {
                value[i] = operand(layout, i, weight + w * unit_bytes, &state);
            }
            UNROLL for (int t = 0; t < tokens; t++) {
                int32_t four;
                memcpy(&four, x + t * x_stride + w * BIT_UNIT_INPUTS, sizeof four);
                const __m512i broadcast = _mm512_set1_epi32(four);
                UNROLL for (int i = 0; i < operands; i++) { sum[w][t][i] = dot(sum[w][t][i], value[i], broadcast); }
            }
        }
    }
    UNROLL for (int t = 0; t < tokens; t++) {
        UNROLL for (int w = 1; w < ways; w++) {
            UNROLL for (int i = 0; i < operands; i++) { sum[0][t][i] = _mm512_add_epi32(sum[0][t][i], sum[w][t][i]); }
        }
        UNROLL for (int i = 0; i < blocks; i++) {
            int32_t *out = acc + t * acc_stride + i * BIT_LANES;
            _mm512_storeu_si512(out, _mm512_add_epi32(_mm512_loadu_si512(out), block_sum(layout, i, sum[0][t])));
        }
    }
}

#define ARGUMENTS                                                                                                      \
    const uint8_t *weight, const int8_t *x, ptrdiff_t x_stride, int64_t units, int32_t *acc, ptrdiff_t acc_stride
#define DEFINE(name, layout, blocks, tokens, ways)                                                                     \
    static void bit_linear_##name##_int8_avx512_##tokens(ARGUMENTS) {                                                  \
        product(layout, blocks, tokens, ways, weight, x, x_stride, units, acc, acc_stride);                            \
    }
DEFINE(8bit, BIT_LAYOUT_8BIT, 4, 1, 4)
DEFINE(8bit, BIT_LAYOUT_8BIT, 4, 2, 2)
DEFINE(8bit, BIT_LAYOUT_8BIT, 4, 3, 1)
DEFINE(8bit, BIT_LAYOUT_8BIT, 4, 4, 1)
DEFINE(8bit, BIT_LAYOUT_8BIT, 4, 5, 1)
DEFINE(8bit, BIT_LAYOUT_8BIT, 4, 6, 1)
DEFINE(4bit, BIT_LAYOUT_4BIT, 4, 1, 4)
DEFINE(4bit, BIT_LAYOUT_4BIT, 4, 2, 2)
DEFINE(4bit, BIT_LAYOUT_4BIT, 4, 3, 1)
DEFINE(4bit, BIT_LAYOUT_4BIT, 4, 4, 1)
DEFINE(4bit, BIT_LAYOUT_4BIT, 4, 5, 1)
DEFINE(4bit, BIT_LAYOUT_4BIT, 4, 6, 1)
DEFINE(2bit, BIT_LAYOUT_2BIT, 4, 1, 4)
DEFINE(2bit, BIT_LAYOUT_2BIT, 4, 2, 2)
DEFINE(2bit, BIT_LAYOUT_2BIT, 4, 3, 1)
DEFINE(2bit, BIT_LAYOUT_2BIT, 4, 4, 1)
DEFINE(2bit, BIT_LAYOUT_2BIT, 4, 5, 1)
DEFINE(2bit, BIT_LAYOUT_2BIT, 4, 6, 1)
DEFINE(1bit, BIT_LAYOUT_1BIT, 8, 1, 2)
DEFINE(1bit, BIT_LAYOUT_1BIT, 8, 2, 1)
DEFINE(1bit, BIT_LAYOUT_1BIT, 8, 3, 1)
DEFINE(ternary, BIT_LAYOUT_TERNARY, 5, 1, 2)
DEFINE(ternary, BIT_LAYOUT_TERNARY, 5, 2, 1)
DEFINE(ternary, BIT_LAYOUT_TERNARY, 5, 3, 1)
DEFINE(ternary, BIT_LAYOUT_TERNARY, 5, 4, 1)
DEFINE(panel_ternary, BIT_LAYOUT_8BIT, 5, 1, 4)
DEFINE(panel_ternary, BIT_LAYOUT_8BIT, 5, 2, 1)
DEFINE(panel_ternary, BIT_LAYOUT_8BIT, 5, 3, 1)
DEFINE(panel_ternary, BIT_LAYOUT_8BIT, 5, 4, 1)
DEFINE(panel_ternary, BIT_LAYOUT_8BIT, 5, 5, 1)

/* How many signs differ: 16 rows in two registers of 64-bit lanes. */
INLINE void count(const int tokens, const uint8_t *weight, const int8_t *x, ptrdiff_t x_stride, int64_t units,
                  int32_t *acc, ptrdiff_t acc_stride) {
    __m512i sum[BIT_MAX_TOKENS][2];
    UNROLL for (int t = 0; t < tokens; t++) { sum[t][0] = sum[t][1] = _mm512_setzero_si512(); }
    for (int64_t u = 0; u < units; u++, weight += 128, x += 8) {
        const __m512i first = _mm512_loadu_si512(weight), second = _mm512_loadu_si512(weight + 64);
        UNROLL for (int t = 0; t < tokens; t++) {
            int64_t word;
            memcpy(&word, x + t * x_stride, sizeof word);
            const __m512i signs = _mm512_set1_epi64(word);
            sum[t][0] = _mm512_add_epi64(sum[t][0], _mm512_popcnt_epi64(_mm512_xor_si512(first, signs)));
            sum[t][1] = _mm512_add_epi64(sum[t][1], _mm512_popcnt_epi64(_mm512_xor_si512(second, signs)));
        }
    }
    UNROLL for (int t = 0; t < tokens; t++) {
        UNROLL for (int i = 0; i < 2; i++) {
            __m256i *out = (__m256i *)(void *)(acc + t * acc_stride + 8 * i);
            _mm256_storeu_si256(out, _mm256_add_epi32(_mm256_loadu_si256(out), _mm512_cvtepi64_epi32(sum[t][i])));
        }
    }
}

#define DEFINE_COUNT(tokens)                                                                                           \
    static void bit_linear_binary_binary_avx512_##tokens(ARGUMENTS) {                                                  \
        count(tokens, weight, x, x_stride, units, acc, acc_stride);                                                    \
    }
DEFINE_COUNT(1)
DEFINE_COUNT(2)
DEFINE_COUNT(4)
DEFINE_COUNT(8)

static int supported(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vpopcntdq");
}

#define UP_TO_3(name) NULL, name##_1, name##_2, name##_3
#define UP_TO_6(name) UP_TO_3(name), name##_4, name##_5, name##_6
const struct bit_isa bit_isa_avx512 = {
    .name = "avx512",
    .conv = &bit_conv_avx512,
    .supported = supported,
    .product =
        {
            [BIT_LAYOUT_8BIT] = {UP_TO_6(bit_linear_8bit_int8_avx512)},
            [BIT_LAYOUT_4BIT] = {UP_TO_6(bit_linear_4bit_int8_avx512)},
            [BIT_LAYOUT_2BIT] = {UP_TO_6(bit_linear_2bit_int8_avx512)},
            [BIT_LAYOUT_1BIT] = {UP_TO_3(bit_linear_1bit_int8_avx512)},
            [BIT_LAYOUT_TERNARY] = {UP_TO_3(bit_linear_ternary_int8_avx512), bit_linear_ternary_int8_avx512_4},
            [BIT_LAYOUT_BITS] = {NULL, bit_linear_binary_binary_avx512_1, bit_linear_binary_binary_avx512_2, NULL,
                                 bit_linear_binary_binary_avx512_4, NULL, NULL, NULL,
                                 bit_linear_binary_binary_avx512_8},
        },
    .panel_to15 = {UP_TO_6(bit_linear_8bit_int8_avx512)},
    .panel_to3 = {UP_TO_6(bit_linear_8bit_int8_avx512)},
    .panel_ternary = {UP_TO_3(bit_linear_panel_ternary_int8_avx512), bit_linear_panel_ternary_int8_avx512_4,
                      bit_linear_panel_ternary_int8_avx512_5},
    .direct_ternary_tokens = 16,
    BIT_ROWS,
    .real = bit_real,
};
