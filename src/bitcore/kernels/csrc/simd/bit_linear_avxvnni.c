/* Products with AVX-VNNI (bit_avxvnni.h): the nested fields of bit_linear_avx512.c in registers of half the size. Where
 * AVX2 splits large values and moves sums on before 16 bits overflow, here they go to 32 bits at once.
 */
#include "bit_avxvnni.h"

#include "bit_linear_256.h"

#define RUN 64 /* units of a group that are taken at a time: they stay in L1 */

/* A group against `tokens` rows of x. `parts` halves of a vector of 64 bytes at a time, and `ways` units to separate
 * sums, to hide the latency of a few tokens. Low parts of bytes are multiplied, each with one field more than the one
 * before: the difference of their sums, shifted back, is the field's. */
INLINE void product(const int bits, const int vectors, const int parts, const int tokens, const int ways,
                    const uint8_t *weight, const int8_t *x, ptrdiff_t x_stride, int64_t units, int32_t *acc,
                    ptrdiff_t acc_stride) {
    const int count = 8 / bits;
    for (int64_t u = 0; u < units; u += RUN) {
        const int64_t end = units - u < RUN ? units : u + RUN; /* units come in multiples of 4 */
        for (int part = 0; part < 2 * vectors; part += parts) {
            __m256i sum[4][6][2][8];
            UNROLL for (int w = 0; w < ways; w++) {
                UNROLL for (int t = 0; t < tokens; t++) {
                    UNROLL for (int p = 0; p < parts; p++) {
                        UNROLL for (int f = 0; f < count; f++) { sum[w][t][p][f] = _mm256_setzero_si256(); }
                    }
                }
            }
            for (int64_t i = u; i < end; i += ways) {
                UNROLL for (int w = 0; w < ways; w++) {
                    const uint8_t *from = weight + 64 * vectors * (i + w) + 32 * part;
                    __m256i bytes[2];
                    _mm_prefetch((const char *)from + AHEAD, _MM_HINT_T0);
                    UNROLL for (int p = 0; p < parts; p++) { bytes[p] = load(from + 32 * p); }
                    UNROLL for (int t = 0; t < tokens; t++) {
                        const __m256i four = broadcast(x + t * x_stride + BIT_UNIT_INPUTS * (i + w));
                        UNROLL for (int p = 0; p < parts; p++) {
                            UNROLL for (int f = 0; f < count; f++) {
                                const __m256i mask = _mm256_set1_epi8((char)((2 << (bits * (f + 1) - 1)) - 1));
                                const __m256i low = f < count - 1 ? _mm256_and_si256(bytes[p], mask) : bytes[p];
                                sum[w][t][p][f] = dot_bytes(sum[w][t][p][f], low, four);
                            }
                        }
                    }
                }
            }
            UNROLL for (int t = 0; t < tokens; t++) {
                UNROLL for (int p = 0; p < parts; p++) {
                    __m256i before = _mm256_setzero_si256();
                    UNROLL for (int f = 0; f < count; f++) {
                        UNROLL for (int w = 1; w < ways; w++) {
                            sum[0][t][p][f] = _mm256_add_epi32(sum[0][t][p][f], sum[w][t][p][f]);
                        }
                        const __m256i field = _mm256_srai_epi32(_mm256_sub_epi32(sum[0][t][p][f], before), bits * f);
                        const int half = part + p;
                        __m256i *out = (__m256i *)(void *)(acc + t * acc_stride + (half / 2 * count + f) * BIT_LANES +
                                                           half % 2 * 8);
                        _mm256_storeu_si256(out, _mm256_add_epi32(load(out), field));
                        before = sum[0][t][p][f];
                    }
                }
            }
        }
    }
}

#define DEFINE(name, bits, vectors, parts, tokens, ways)                                                               \
    static void bit_linear_##name##_int8_avxvnni_##tokens(ARGUMENTS) {                                                 \
        product(bits, vectors, parts, tokens, ways, weight, x, x_stride, units, acc, acc_stride);                      \
    }
DEFINE(1bit, 1, 1, 1, 1, 1)
DEFINE(2bit, 2, 1, 2, 1, 1)
DEFINE(4bit, 4, 2, 2, 1, 2)
DEFINE(8bit, 8, 4, 2, 1, 4)
DEFINE(8bit, 8, 4, 2, 2, 2)
DEFINE(8bit, 8, 4, 2, 4, 1)
DEFINE(8bit, 8, 4, 2, 6, 1)
DEFINE(ternary, 8, 5, 2, 1, 4)
DEFINE(ternary, 8, 5, 2, 2, 2)
DEFINE(ternary, 8, 5, 2, 4, 1)
DEFINE(ternary, 8, 5, 2, 6, 1)
DEFINE_COUNT(1, avxvnni)
DEFINE_COUNT(2, avxvnni)
DEFINE_COUNT(4, avxvnni)

#if defined(__AVXVNNI__)
#include <cpuid.h>

/* CPUID leaf 7.1; that the system saves registers of 256 bits, the test of AVX2 has seen. */
static int supported(void) {
    unsigned eax = 0, ebx, ecx, edx;
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}
#else
static int supported(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#endif

#define UP_TO_6(name) UP_TO_4(name), NULL, name##_6
const struct bit_isa bit_isa_avxvnni = {
    .name = "avxvnni",
    .conv = &bit_conv_avxvnni,
    .supported = supported,
    .product =
        {
            [BIT_LAYOUT_8BIT] = {UP_TO_6(bit_linear_8bit_int8_avxvnni)},
            [BIT_LAYOUT_4BIT] = {NULL, bit_linear_4bit_int8_avxvnni_1},
            [BIT_LAYOUT_2BIT] = {NULL, bit_linear_2bit_int8_avxvnni_1},
            [BIT_LAYOUT_1BIT] = {NULL, bit_linear_1bit_int8_avxvnni_1},
            [BIT_LAYOUT_BITS] = {UP_TO_4(bit_linear_binary_binary_avxvnni)},
        },
    .direct_tokens = 2,
    .panel_to15 = {UP_TO_6(bit_linear_8bit_int8_avxvnni)},
    .panel_to3 = {UP_TO_6(bit_linear_8bit_int8_avxvnni)},
    .panel_ternary = {UP_TO_6(bit_linear_ternary_int8_avxvnni)},
    BIT_ROWS,
    .real = bit_real,
};
