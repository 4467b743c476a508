/* Products on Arm with dot product instructions, for bit_linear_neon.c and bit_linear_i8mm.c. `sdot` adds 4 products
 * of signed bytes to each 32-bit lane, modulo 2**32. Bytes beyond 127 are multiplied as byte - 128 (value_offset).
 */
#include <arm_neon.h>

#if defined(__linux__)
#include <sys/auxv.h>
#endif

#define BIT_LOOKUP(out, codes, table)                                                                                  \
    for (int lookup_i = 0; lookup_i < 64; lookup_i += 16) {                                                            \
        vst1q_u8((out) + lookup_i, vqtbl1q_u8(vld1q_u8(table), vld1q_u8((codes) + lookup_i)));                         \
    }
#include "bit_reals.h"
#include "bit_rows.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

#define ARGUMENTS                                                                                                      \
    const uint8_t *weight, const int8_t *x, ptrdiff_t x_stride, int64_t units, int32_t *acc, ptrdiff_t acc_stride

INLINE int8x16_t broadcast(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

INLINE void add(int32_t *acc, int32x4_t sums) { vst1q_s32(acc, vaddq_s32(vld1q_s32(acc), sums)); }

/* One row of x against packed fields of `bits` bits. Four rows of each field at a time: a run of units stays in L1. */
INLINE void fields(const int bits, const int vectors, const uint8_t *weight, const int8_t *x, int64_t units,
                   int32_t *acc) {
    const int count = 8 / bits;
    const uint8x16_t mask = vdupq_n_u8((uint8_t)((1 << bits) - 1));
    for (int64_t u = 0; u < units; u += 64) {
        const int64_t end = units - u < 64 ? units : u + 64;
        for (int part = 0; part < 4 * vectors; part++) { /* 16 bytes of a unit */
            int32x4_t sum[8];
            UNROLL for (int f = 0; f < count; f++) { sum[f] = vdupq_n_s32(0); }
            for (int64_t i = u; i < end; i++) {
                const uint8x16_t bytes = vld1q_u8(weight + 64 * vectors * i + 16 * part);
                const int8x16_t four = broadcast(x + BIT_UNIT_INPUTS * i);
                UNROLL for (int f = 0; f < count; f++) {
                    const uint8x16_t values = vandq_u8(vshlq_u8(bytes, vdupq_n_s8((int8_t)(-bits * f))), mask);
                    sum[f] = vdotq_s32(sum[f], vreinterpretq_s8_u8(values), four);
                }
            }
            UNROLL for (int f = 0; f < count; f++) {
                add(acc + (part / 4 * count + f) * BIT_LANES + part % 4 * 4, sum[f]);
            }
        }
    }
}

/* `tokens` rows of x against units of `blocks` blocks of bytes, from which `offset` is subtracted. */
INLINE void panel(const int offset, const int blocks, const int tokens, ARGUMENTS) {
    const int8x16_t flip = vdupq_n_s8((int8_t)offset);
    for (int64_t u = 0; u < units; u += 64) {
        const int64_t end = units - u < 64 ? units : u + 64;
        for (int block = 0; block < blocks; block++) {
            int32x4_t sum[4][4];
            UNROLL for (int t = 0; t < tokens; t++) {
                UNROLL for (int p = 0; p < 4; p++) { sum[t][p] = vdupq_n_s32(0); }
            }
            for (int64_t i = u; i < end; i++) {
                int8x16_t values[4];
                UNROLL for (int p = 0; p < 4; p++) {
                    const uint8x16_t bytes = vld1q_u8(weight + 64 * (blocks * i + block) + 16 * p);
                    values[p] = veorq_s8(vreinterpretq_s8_u8(bytes), flip);
                }
                UNROLL for (int t = 0; t < tokens; t++) {
                    const int8x16_t four = broadcast(x + t * x_stride + BIT_UNIT_INPUTS * i);
                    UNROLL for (int p = 0; p < 4; p++) { sum[t][p] = vdotq_s32(sum[t][p], values[p], four); }
                }
            }
            UNROLL for (int t = 0; t < tokens; t++) {
                UNROLL for (int p = 0; p < 4; p++) { add(acc + t * acc_stride + block * BIT_LANES + 4 * p, sum[t][p]); }
            }
        }
    }
}

/* How many signs differ; 16-bit lanes hold 2048 sums of up to 16 each. */
INLINE void count(const int tokens, ARGUMENTS) {
    for (int64_t u = 0; u < units; u += 2048) {
        const int64_t end = units - u < 2048 ? units : u + 2048;
        for (int part = 0; part < 8; part++) { /* 2 rows */
            uint16x8_t sum[4];
            UNROLL for (int t = 0; t < tokens; t++) { sum[t] = vdupq_n_u16(0); }
            for (int64_t i = u; i < end; i++) {
                const uint8x16_t signs = vld1q_u8(weight + 128 * i + 16 * part);
                UNROLL for (int t = 0; t < tokens; t++) {
                    const uint8x8_t word = vld1_u8((const uint8_t *)x + t * x_stride + 8 * i);
                    sum[t] = vpadalq_u8(sum[t], vcntq_u8(veorq_u8(signs, vcombine_u8(word, word))));
                }
            }
            UNROLL for (int t = 0; t < tokens; t++) {
                const uint64x2_t rows = vpaddlq_u32(vpaddlq_u16(sum[t]));
                acc[t * acc_stride + 2 * part] += (int32_t)vgetq_lane_u64(rows, 0);
                acc[t * acc_stride + 2 * part + 1] += (int32_t)vgetq_lane_u64(rows, 1);
            }
        }
    }
}

#define DEFINE_FIELDS(bits, vectors, isa)                                                                              \
    static void bit_linear_##bits##bit_int8_##isa(ARGUMENTS) {                                                         \
        (void)x_stride, (void)acc_stride;                                                                              \
        fields(bits, vectors, weight, x, units, acc);                                                                  \
    }
#define DEFINE_PANEL(name, offset, blocks, tokens, isa)                                                                \
    static void bit_linear_##name##_int8_##isa##_##tokens(ARGUMENTS) {                                                 \
        panel(offset, blocks, tokens, weight, x, x_stride, units, acc, acc_stride);                                    \
    }
#define DEFINE_COUNT(tokens, isa)                                                                                      \
    static void bit_linear_binary_binary_##isa##_##tokens(ARGUMENTS) {                                                 \
        count(tokens, weight, x, x_stride, units, acc, acc_stride);                                                    \
    }
/* What both have; of the panels the first one. */
#define DEFINE_COMMON(isa)                                                                                             \
    DEFINE_FIELDS(1, 1, isa)                                                                                           \
    DEFINE_FIELDS(2, 1, isa)                                                                                           \
    DEFINE_FIELDS(4, 2, isa)                                                                                           \
    DEFINE_PANEL(8bit, 128, 4, 1, isa)                                                                                 \
    DEFINE_PANEL(to15, 0, 4, 1, isa)                                                                                   \
    DEFINE_PANEL(ternary, 0, 5, 1, isa)                                                                                \
    DEFINE_COUNT(1, isa)                                                                                               \
    DEFINE_COUNT(2, isa)                                                                                               \
    DEFINE_COUNT(4, isa)

#define PRODUCTS(isa, ...)                                                                                             \
    .product = {                                                                                                       \
        [BIT_LAYOUT_8BIT] = {NULL, bit_linear_8bit_int8_##isa##_1, __VA_ARGS__},                                       \
        [BIT_LAYOUT_4BIT] = {NULL, bit_linear_4bit_int8_##isa},                                                        \
        [BIT_LAYOUT_2BIT] = {NULL, bit_linear_2bit_int8_##isa},                                                        \
        [BIT_LAYOUT_1BIT] = {NULL, bit_linear_1bit_int8_##isa},                                                        \
        [BIT_LAYOUT_BITS] = {NULL, bit_linear_binary_binary_##isa##_1, bit_linear_binary_binary_##isa##_2, NULL,       \
                             bit_linear_binary_binary_##isa##_4},                                                      \
    }

#if defined(__linux__)
#define HAS_DOT_PRODUCTS ((getauxval(AT_HWCAP) >> 20 & 1) != 0) /* HWCAP_ASIMDDP */
#define HAS_I8MM ((getauxval(AT_HWCAP2) >> 13 & 1) != 0)        /* HWCAP2_I8MM */
#else
#define HAS_DOT_PRODUCTS 1 /* every Arm processor that macOS runs on */
#define HAS_I8MM 0
#endif
