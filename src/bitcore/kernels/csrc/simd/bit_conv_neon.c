/* Convolutions on Arm with dot product instructions (armv8.2-a+dotprod): `sdot`, of signed bytes. A code of 8 bits is
 * taken as code - 128, which sums of the stored bytes make up for. */
#include "bit_conv_neon.h"

INLINE void product(const int bits, const int fields, const int pixels, const uint8_t *weight,
                    const int8_t *const *pointers, int64_t taps, int64_t units, int shift, const int32_t *correction,
                    const int32_t *constant, int32_t *tile) {
    const uint8x16_t flip = vdupq_n_u8(bits == 8 ? 128 : 0);
    int32_t stored[BIT_TILE_PIXELS] = {0};
    if (bits == 8) {
        sums(pointers, taps, 4 * units, pixels, stored);
    }
    UNROLL for (int f = 0; f < fields; f++) {
        int32x4_t sum[BIT_TILE_PIXELS][4];
        UNROLL for (int p = 0; p < pixels; p++) {
            const int32x4_t start = vdupq_n_s32((int32_t)(128U * (uint32_t)stored[p]));
            UNROLL for (int i = 0; i < 4; i++) { sum[p][i] = start; }
        }
        const uint8_t *unit = weight;
        for (int64_t tap = 0; tap < taps; tap++) {
            const int8_t *const *x = pointers + tap * BIT_TILE_PIXELS;
            for (int64_t u = 0; u < units; u++) {
                int8x16_t code[4];
                UNROLL for (int i = 0; i < 4; i++) {
                    code[i] = vreinterpretq_s8_u8(veorq_u8(codes(bits, f, i, unit, (int)(u % 2)), flip));
                }
                UNROLL for (int p = 0; p < pixels; p++) {
                    int32_t bytes;
                    memcpy(&bytes, x[p] + 4 * u, sizeof bytes);
                    const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(bytes));
                    UNROLL for (int i = 0; i < 4; i++) { sum[p][i] = vdotq_s32(sum[p][i], code[i], four); }
                }
                unit += bits == 1 && u % 2 == 0 ? 0 : unit_bytes(bits, fields);
            }
        }
        UNROLL for (int p = 0; p < pixels; p++) {
            UNROLL for (int i = 0; i < 4; i++) {
                const int row = 16 * f + 4 * i;
                put(tile + p * BIT_TILE_ROWS + row, sum[p][i], shift, correction[p], constant + row);
            }
        }
    }
}

#define BIT_NAME neon
#include "bit_conv_rows.h"
