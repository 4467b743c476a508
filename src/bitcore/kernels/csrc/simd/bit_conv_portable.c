/* Convolutions in plain C, in loops that compilers vectorize for any processor; see bit_conv.h. Products are summed in
 * 16 bits as long as these hold them: codes are at most 15 (those of 8 bits are taken as 16 * high + low), so that 16
 * products do. */
#include <string.h>

#include "bit_conv.h"

#define INLINE static inline __attribute__((always_inline))

/* Codes of a unit, input by input: code[i][row]; `first` is the field of row 0 in bits. */
INLINE void unpack(const int bits, const int fields, const uint8_t *unit, int first, int16_t (*code)[BIT_TILE_ROWS]) {
    const uint32_t mask = bits == 8 ? 15 : (1U << bits) - 1;
    const int fit = bits == 1 ? 4 : 8 / bits;
    for (int f = 0; f < fields; f++) {
        uint32_t words[16];
        memcpy(words, unit + 64 * (f / fit), sizeof words);
        for (int i = 0; i < 4; i++) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
            const int shift = 24 - 8 * i + bits * (f % fit) + first;
#else
            const int shift = 8 * i + bits * (f % fit) + first;
#endif
            for (int lane = 0; lane < 16; lane++) {
                code[i][16 * f + lane] = (int16_t)(words[lane] >> shift & mask);
            }
        }
    }
}

/* Adds the products of up to `count` units; `plane` is the half of an 8-bit code. */
INLINE void multiply(const int bits, const int fields, const int pixels, const uint8_t *unit,
                     const int8_t *const *pointers, int64_t begin, int64_t end, int plane,
                     int32_t (*sum)[BIT_TILE_ROWS]) {
    const int bytes = bits == 8 ? 64 * fields : bits == 4 ? 64 * ((fields + 1) / 2) : 64, rows = 16 * fields;
    int16_t few[BIT_TILE_PIXELS][BIT_TILE_ROWS] = {{0}};
    for (int64_t u = begin; u < end; u++) {
        int16_t code[4][BIT_TILE_ROWS];
        unpack(bits, fields, unit, bits == 1 ? (int)(u % 2) * 4 : 4 * plane, code);
        unit += bits == 1 && u % 2 == 0 ? 0 : bytes;
        for (int p = 0; p < pixels; p++) {
            const int8_t *x = pointers[p] + 4 * u;
            const int16_t x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3];
            for (int r = 0; r < rows; r++) {
                const int16_t a = (int16_t)(code[0][r] * x0 + code[1][r] * x1);
                const int16_t b = (int16_t)(code[2][r] * x2 + code[3][r] * x3);
                few[p][r] = (int16_t)(few[p][r] + a + b);
            }
        }
    }
    for (int p = 0; p < pixels; p++) {
        for (int r = 0; r < rows; r++) {
            sum[p][r] += few[p][r] * (1 << 4 * plane);
        }
    }
}

INLINE void product(const int bits, const int fields, const int pixels, const uint8_t *weight,
                    const int8_t *const *pointers, int64_t taps, int64_t units, int shift, const int32_t *correction,
                    const int32_t *constant, int32_t *tile) {
    const int bytes = bits == 8 ? 64 * fields : bits == 4 ? 64 * ((fields + 1) / 2) : 64;
    const int64_t most = bits == 1 ? 62 : bits == 2 ? 20 : 4, all = bits == 1 ? (units + 1) / 2 * 2 : units;
    int32_t sum[BIT_TILE_PIXELS][BIT_TILE_ROWS] = {{0}};
    for (int64_t tap = 0; tap < taps; tap++, pointers += BIT_TILE_PIXELS) {
        for (int64_t u = 0; u < all; u += most) {
            const int64_t end = u + most < all ? u + most : all;
            for (int plane = 0; plane < (bits == 8 ? 2 : 1); plane++) {
                multiply(bits, fields, pixels, weight, pointers, u, end, plane, sum);
            }
            weight += (bits == 1 ? (end - u) / 2 : end - u) * bytes;
        }
    }
    for (int p = 0; p < pixels; p++) {
        for (int r = 0; r < 16 * fields; r++) {
            tile[p * BIT_TILE_ROWS + r] = (int32_t)((uint32_t)sum[p][r] << shift) + correction[p] + constant[r];
        }
    }
}

/* Set bits of each byte of a word: sums of pairs, of four, of eight. */
INLINE uint64_t ones(uint64_t x) {
    x -= x >> 1 & 0x5555555555555555U;
    x = (x & 0x3333333333333333U) + (x >> 2 & 0x3333333333333333U);
    return (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fU;
}

INLINE void count(const int pixels, const uint64_t *weight, const int8_t *const *pointers, int64_t taps, int64_t words,
                  int fields, const int32_t *constant, int32_t *tile) {
    const int rows = 16 * fields;
    for (int p = 0; p < pixels; p++) {
        memcpy(tile + p * BIT_TILE_ROWS, constant, (size_t)rows * sizeof *tile);
    }
    for (int64_t tap = 0; tap < taps; tap++, pointers += BIT_TILE_PIXELS) {
        for (int64_t begin = 0; begin < words; begin += 31, weight += 31 * rows) { /* 31 * 8 fits a byte */
            const int64_t end = begin + 31 < words ? begin + 31 : words;
            for (int p = 0; p < pixels; p++) {
                uint64_t differ[BIT_TILE_ROWS] = {0};
                for (int64_t i = begin; i < end; i++) {
                    uint64_t word;
                    memcpy(&word, pointers[p] + 8 * i, sizeof word);
                    for (int r = 0; r < rows; r++) {
                        differ[r] += ones(weight[(i - begin) * rows + r] ^ word);
                    }
                }
                for (int r = 0; r < rows; r++) { /* pairs of bytes, then all of them */
                    const uint64_t pairs = (differ[r] & 0x00ff00ff00ff00ffU) + (differ[r] >> 8 & 0x00ff00ff00ff00ffU);
                    tile[p * BIT_TILE_ROWS + r] -= 2 * (int32_t)(pairs * 0x0001000100010001U >> 48);
                }
            }
        }
        weight -= (31 - words % 31) % 31 * rows;
    }
}

#define BIT_NAME portable
#include "bit_conv_rows.h"
