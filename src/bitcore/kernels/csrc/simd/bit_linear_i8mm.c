/* Products on Arm with int8 matrix multiplication (armv8.2-a+i8mm): `smmla` multiplies 2 rows of 8 signed bytes by 2
 * rows of 8, twice the products of `sdot`. One row of x at a time runs on `sdot`. */
#include "bit_neon.h"

DEFINE_COMMON(i8mm)

INLINE int8x16_t two_rows(const int8_t *first, const int8_t *second) {
    return vcombine_s8(vld1_s8(first), vld1_s8(second));
}

/* As `panel`, an even number of tokens. Of two units, the 4 bytes of a row each are brought side by side. */
INLINE void matrix(const int offset, const int blocks, const int tokens, ARGUMENTS) {
    const int8x16_t flip = vdupq_n_s8((int8_t)offset);
    for (int64_t u = 0; u < units; u += 64) {
        const int64_t end = units - u < 64 ? units : u + 64; /* even: units come in multiples of 4 */
        for (int part = 0; part < 4 * blocks; part++) {      /* 4 rows */
            int32x4_t sum[4][2];
            UNROLL for (int t = 0; t < tokens / 2; t++) { sum[t][0] = sum[t][1] = vdupq_n_s32(0); }
            for (int64_t i = u; i < end; i += 2) {
                const uint8_t *from = weight + 64 * blocks * i + 16 * part;
                const uint32x4_t first = vreinterpretq_u32_u8(vld1q_u8(from));
                const uint32x4_t second = vreinterpretq_u32_u8(vld1q_u8(from + 64 * blocks));
                const int8x16_t low = veorq_s8(vreinterpretq_s8_u32(vzip1q_u32(first, second)), flip);
                const int8x16_t high = veorq_s8(vreinterpretq_s8_u32(vzip2q_u32(first, second)), flip);
                UNROLL for (int t = 0; t < tokens / 2; t++) {
                    const int8_t *row = x + 2 * t * x_stride + BIT_UNIT_INPUTS * i;
                    const int8x16_t eight = two_rows(row, row + x_stride);
                    sum[t][0] = vmmlaq_s32(sum[t][0], low, eight);
                    sum[t][1] = vmmlaq_s32(sum[t][1], high, eight);
                }
            }
            UNROLL for (int t = 0; t < tokens / 2; t++) { /* lanes: row 0 x 0, row 0 x 1, row 1 x 0, row 1 x 1 */
                int32_t *out = acc + 2 * t * acc_stride + 4 * part;
                add(out, vuzp1q_s32(sum[t][0], sum[t][1]));
                add(out + acc_stride, vuzp2q_s32(sum[t][0], sum[t][1]));
            }
        }
    }
}

#define DEFINE_MATRIX(name, offset, blocks, tokens)                                                                    \
    static void bit_linear_##name##_int8_i8mm_##tokens(ARGUMENTS) {                                                    \
        matrix(offset, blocks, tokens, weight, x, x_stride, units, acc, acc_stride);                                   \
    }
DEFINE_MATRIX(8bit, 128, 4, 2)
DEFINE_MATRIX(8bit, 128, 4, 8)
DEFINE_MATRIX(to15, 0, 4, 2)
DEFINE_MATRIX(to15, 0, 4, 8)
DEFINE_MATRIX(ternary, 0, 5, 2)
DEFINE_MATRIX(ternary, 0, 5, 8)

static int supported(void) { return HAS_DOT_PRODUCTS && HAS_I8MM; }

#define UP_TO_8(name) NULL, name##_1, name##_2, NULL, NULL, NULL, NULL, NULL, name##_8
const struct bit_isa bit_isa_i8mm = {
    .name = "i8mm",
    .conv = &bit_conv_i8mm,
    .supported = supported,
    .value_offset = 128,
    PRODUCTS(i8mm, bit_linear_8bit_int8_i8mm_2, NULL, NULL, NULL, NULL, NULL, bit_linear_8bit_int8_i8mm_8),
    .direct_tokens = 2,
    .panel_to15 = {UP_TO_8(bit_linear_to15_int8_i8mm)},
    .panel_to3 = {UP_TO_8(bit_linear_to15_int8_i8mm)},
    .panel_ternary = {UP_TO_8(bit_linear_ternary_int8_i8mm)},
    BIT_ROWS,
    .real = bit_real,
};
