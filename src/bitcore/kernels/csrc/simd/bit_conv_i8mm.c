/* Convolutions on Arm with int8 matrix multiplication (armv8.2-a+i8mm): `usmmla` multiplies 2 rows of 8 codes by 8
 * stored bytes of 2 pixels, twice the products of `sdot`. */
#include "bit_conv_neon.h"

#define PAIRS (BIT_TILE_PIXELS / 2)

static const uint8_t nothing[256]; /* a unit of zeros */

/* Two units of field f; `last` stands for the second pixel of the last pair. */
INLINE void multiply(const int bits, int f, const int pairs, const uint8_t *first, const uint8_t *second,
                     const int8_t *const *x, int last, int64_t at, int32x4_t (*sum)[4][2]) {
    int8x16_t eight[PAIRS];
    UNROLL for (int p = 0; p < pairs; p++) {
        eight[p] = vcombine_s8(vld1_s8(x[2 * p] + at), vld1_s8(x[p + 1 < pairs ? 2 * p + 1 : last] + at));
    }
    UNROLL for (int i = 0; i < 4; i++) { /* the 4 codes of a row of each unit side by side */
        const uint32x4_t a = vreinterpretq_u32_u8(codes(bits, f, i, first, 0));
        const uint32x4_t b = vreinterpretq_u32_u8(codes(bits, f, i, second, 1));
        const uint8x16_t low = vreinterpretq_u8_u32(vzip1q_u32(a, b)), high = vreinterpretq_u8_u32(vzip2q_u32(a, b));
        UNROLL for (int p = 0; p < pairs; p++) {
            sum[p][i][0] = vusmmlaq_s32(sum[p][i][0], low, eight[p]);
            sum[p][i][1] = vusmmlaq_s32(sum[p][i][1], high, eight[p]);
        }
    }
}

INLINE void product(const int bits, const int fields, const int pixels, const uint8_t *weight,
                    const int8_t *const *pointers, int64_t taps, int64_t units, int shift, const int32_t *correction,
                    const int32_t *constant, int32_t *tile) {
    const int pairs = (pixels + 1) / 2, last = pixels - 1, step = unit_bytes(bits, fields);
    UNROLL for (int f = 0; f < fields; f++) {
        int32x4_t sum[PAIRS][4][2];
        UNROLL for (int p = 0; p < pairs; p++) {
            UNROLL for (int i = 0; i < 4; i++) { sum[p][i][0] = sum[p][i][1] = vdupq_n_s32(0); }
        }
        const uint8_t *unit = weight;
        for (int64_t tap = 0; tap < taps; tap++) {
            const int8_t *const *x = pointers + tap * BIT_TILE_PIXELS;
            int64_t u = 0;
            for (; u + 2 <= units; u += 2) {
                multiply(bits, f, pairs, unit, bits == 1 ? unit : unit + step, x, last, 4 * u, sum);
                unit += bits == 1 ? step : 2 * step;
            }
            if (u < units) { /* of 1 bit, units are even */
                multiply(bits, f, pairs, unit, nothing, x, last, 4 * u, sum);
                unit += step;
            }
        }
        UNROLL for (int p = 0; p < pixels; p++) {
            UNROLL for (int i = 0; i < 4; i++) { /* lanes: row 0 pixel 0, row 0 pixel 1, row 1 pixel 0, row 1 pixel 1 */
                const int32x4_t *s = sum[p / 2][i];
                const int32x4_t rows = p % 2 ? vuzp2q_s32(s[0], s[1]) : vuzp1q_s32(s[0], s[1]);
                const int row = 16 * f + 4 * i;
                put(tile + p * BIT_TILE_ROWS + row, rows, shift, correction[p], constant + row);
            }
        }
    }
}

#define BIT_NAME i8mm
#include "bit_conv_rows.h"
