/* Convolutions in plain C; see bit_conv.h. */
#include <string.h>

#include "bit_conv.h"

#define INLINE static inline __attribute__((always_inline))

/* Codes of a unit, input by input: code[i][row]. `second`: of two units of 1 bit. */
INLINE void unpack(const int bits, const int fields, const uint8_t *unit, int second, int16_t (*code)[BIT_TILE_ROWS]) {
    const int mask = (1 << bits) - 1, fit = bits == 1 ? 4 : 8 / bits;
    for (int f = 0; f < fields; f++) {
        const uint8_t *bytes = unit + 64 * (f / fit);
        const int shift = bits * (f % fit) + 4 * second;
        for (int i = 0; i < 4; i++) {
            for (int lane = 0; lane < 16; lane++) {
                code[i][16 * f + lane] = (int16_t)(bytes[4 * lane + i] >> shift & mask);
            }
        }
    }
}

INLINE void product(const int bits, const int fields, const int pixels, const uint8_t *weight,
                    const int8_t *const *pointers, int64_t taps, int64_t units, int shift, const int32_t *correction,
                    const int32_t *constant, int32_t *tile) {
    const int unit_bytes = bits == 8 ? 64 * fields : bits == 4 ? 64 * ((fields + 1) / 2) : 64;
    int32_t sum[BIT_TILE_PIXELS][BIT_TILE_ROWS] = {{0}};
    for (int64_t tap = 0; tap < taps; tap++, pointers += BIT_TILE_PIXELS) {
        for (int64_t u = 0; u < (bits == 1 ? (units + 1) / 2 * 2 : units); u++) {
            int16_t code[4][BIT_TILE_ROWS];
            unpack(bits, fields, weight, bits == 1 && u % 2, code);
            weight += bits == 1 && u % 2 == 0 ? 0 : unit_bytes;
            for (int p = 0; p < pixels; p++) {
                const int8_t *x = pointers[p] + 4 * u;
                const int16_t x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3];
                for (int r = 0; r < 16 * fields; r++) {
                    sum[p][r] += code[0][r] * x0 + code[1][r] * x1 + code[2][r] * x2 + code[3][r] * x3;
                }
            }
        }
    }
    for (int p = 0; p < pixels; p++) {
        for (int r = 0; r < 16 * fields; r++) {
            tile[p * BIT_TILE_ROWS + r] = (int32_t)((uint32_t)sum[p][r] << shift) + correction[p] + constant[r];
        }
    }
}

/* Set bits of a word: sums of pairs, of four, of eight, then of all bytes. */
INLINE int ones(uint64_t x) {
    x -= x >> 1 & 0x5555555555555555U;
    x = (x & 0x3333333333333333U) + (x >> 2 & 0x3333333333333333U);
    return (int)(((x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fU) * 0x0101010101010101U >> 56);
}

INLINE void count(const int pixels, const uint64_t *weight, const int8_t *const *pointers, int64_t taps, int64_t words,
                  int fields, const int32_t *constant, int32_t *tile) {
    for (int p = 0; p < pixels; p++) {
        memcpy(tile + p * BIT_TILE_ROWS, constant, (size_t)fields * 16 * sizeof *tile);
    }
    for (int64_t tap = 0; tap < taps; tap++, pointers += BIT_TILE_PIXELS) {
        for (int64_t i = 0; i < words; i++, weight += 16 * fields) {
            for (int p = 0; p < pixels; p++) {
                uint64_t word;
                memcpy(&word, pointers[p] + 8 * i, sizeof word);
                for (int r = 0; r < 16 * fields; r++) {
                    tile[p * BIT_TILE_ROWS + r] -= 2 * ones(weight[r] ^ word);
                }
            }
        }
    }
}

#define BIT_NAME portable
#include "bit_conv_rows.h"
