/* Convolutions on Arm, for bit_conv_neon.c and bit_conv_i8mm.c: everything but the products of bytes; see bit_conv.h.
 */
#include <arm_neon.h>
#include <string.h>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-schedule-insns") /* or loads move up until accumulators have to leave their registers */
#endif

#include "bit_conv.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

/* Codes of 4 rows (of 16: `part`) of field f, and 4 inputs. `second`: of two units of 1 bit. */
INLINE uint8x16_t codes(const int bits, int f, int part, const uint8_t *unit, int second) {
    const int vector = bits == 8 ? f : bits == 4 ? f / 2 : 0;
    const int shift = bits == 8 ? 0 : bits == 4 ? 4 * (f % 2) : bits == 2 ? 2 * f : f + 4 * second;
    const uint8x16_t bytes = vld1q_u8(unit + 64 * vector + 16 * part);
    const uint8x16_t field = vshlq_u8(bytes, vdupq_n_s8((int8_t)-shift));
    return bits == 8 ? bytes : vandq_u8(field, vdupq_n_u8((uint8_t)((1 << bits) - 1)));
}

INLINE int unit_bytes(const int bits, const int fields) {
    return bits == 8 ? 64 * fields : bits == 4 ? 64 * ((fields + 1) / 2) : 64;
}

/* 4 rows of one pixel. */
INLINE void put(int32_t *tile, int32x4_t sum, int shift, int32_t correction, const int32_t *constant) {
    const int32x4_t add = vaddq_s32(vdupq_n_s32(correction), vld1q_s32(constant));
    vst1q_s32(tile, vaddq_s32(vshlq_s32(sum, vdupq_n_s32(shift)), add));
}

static void sums(const int8_t *const *pointers, int64_t taps, int64_t length, int pixels, int32_t *result) {
    for (int p = 0; p < pixels; p++) {
        int32x4_t sum = vdupq_n_s32(0);
        int32_t rest = 0;
        for (int64_t tap = 0; tap < taps; tap++) {
            const int8_t *x = pointers[tap * BIT_TILE_PIXELS + p];
            int64_t i = 0;
            for (; i + 16 <= length; i += 16) {
                sum = vdotq_s32(sum, vld1q_s8(x + i), vdupq_n_s8(1));
            }
            for (; i < length; i++) {
                rest += x[i];
            }
        }
        result[p] = vaddvq_s32(sum) + rest;
    }
}

/* How many signs differ; a row's word lies in two 32-bit lanes. */
INLINE void count(const int pixels, const uint64_t *weight, const int8_t *const *pointers, int64_t taps, int64_t words,
                  int fields, const int32_t *constant, int32_t *tile) {
    for (int row = 0; row < 16 * fields; row += 4) {
        uint32x4_t sum[BIT_TILE_PIXELS][2];
        UNROLL for (int p = 0; p < pixels; p++) { sum[p][0] = sum[p][1] = vdupq_n_u32(0); }
        const uint64_t *w = weight + row;
        for (int64_t tap = 0; tap < taps; tap++) {
            const int8_t *const *x = pointers + tap * BIT_TILE_PIXELS;
            for (int64_t i = 0; i < words; i++, w += 16 * fields) {
                const uint8x16_t first = vreinterpretq_u8_u64(vld1q_u64(w));
                const uint8x16_t second = vreinterpretq_u8_u64(vld1q_u64(w + 2));
                UNROLL for (int p = 0; p < pixels; p++) {
                    const uint8x8_t word = vld1_u8((const uint8_t *)x[p] + 8 * i);
                    const uint8x16_t signs = vcombine_u8(word, word), one = vdupq_n_u8(1);
                    sum[p][0] = vdotq_u32(sum[p][0], vcntq_u8(veorq_u8(first, signs)), one);
                    sum[p][1] = vdotq_u32(sum[p][1], vcntq_u8(veorq_u8(second, signs)), one);
                }
            }
        }
        UNROLL for (int p = 0; p < pixels; p++) {
            const int32x4_t differ = vreinterpretq_s32_u32(vpaddq_u32(sum[p][0], sum[p][1]));
            vst1q_s32(tile + p * BIT_TILE_ROWS + row, vmlsq_n_s32(vld1q_s32(constant + row), differ, 2));
        }
    }
}

/* Bit i of each byte of a sum of 8 comes from byte i of the 8. */
INLINE uint64_t signs_of(const int8_t *x) {
    const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201U));
    uint8x16_t sum[4];
    UNROLL for (int i = 0; i < 4; i++) { sum[i] = vandq_u8(vcltzq_s8(vld1q_s8(x + 16 * i)), bit); }
    const uint8x16_t pairs = vpaddq_u8(vpaddq_u8(sum[0], sum[1]), vpaddq_u8(sum[2], sum[3]));
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(pairs, pairs)), 0);
}

static void signs(const int8_t *x, int64_t n, uint64_t *bits) {
    for (; n >= 64; n -= 64, x += 64) {
        *bits++ = signs_of(x);
    }
    if (n > 0) {
        int8_t rest[64] = {0};
        memcpy(rest, x, (size_t)n);
        *bits = signs_of(rest);
    }
}

/* Doubles hold every intermediate result exactly (post->in_double), so the conversion rounds the exact quotient. */
static void requantize_in_double(const struct bit_post *post, int32_t *tile, int pixels, int64_t first, int rows) {
    const double *factor = post->factor + (post->shared ? 0 : first),
                 *addend = post->addend + (post->shared ? 0 : first);
    const int32x4_t low = vdupq_n_s32(post->low), high = vdupq_n_s32(post->high);
    for (int r = 0; r < rows; r += 4) {
        float64x2_t scale[2], bias[2];
        UNROLL for (int i = 0; i < 2; i++) {
            scale[i] = vld1q_f64(factor + r + 2 * i);
            bias[i] = vld1q_f64(addend + r + 2 * i);
        }
        for (int p = 0; p < pixels; p++) {
            int32_t *at = tile + p * BIT_TILE_ROWS + r;
            int32x2_t y[2];
            UNROLL for (int i = 0; i < 2; i++) {
                const float64x2_t x = vcvtq_f64_s64(vmovl_s32(vld1_s32(at + 2 * i)));
                y[i] = vmovn_s64(vcvtnq_s64_f64(vfmaq_f64(bias[i], x, scale[i])));
            }
            vst1q_s32(at, vminq_s32(vmaxq_s32(vcombine_s32(y[0], y[1]), low), high));
        }
    }
}

#define BIT_REQUANTIZE_IN_DOUBLE requantize_in_double
#define BIT_SIGNS signs
#define BIT_SUMS sums
