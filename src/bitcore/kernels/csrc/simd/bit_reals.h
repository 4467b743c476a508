/* Products of packed weights and float activations. Sums of floats depend on their order, so there is one, in every
 * instruction set: input k is multiplied, rounded and added to sum k % 4 in ascending order, and the result is
 * (sum 0 + sum 1) + (sum 2 + sum 3). Included once by each bit_linear_<isa>.c, and by bit_linear_real.c for portable C.
 *
 * Before it, an instruction set may define BIT_REAL_LANES, and BIT_LOOKED_UP(bits, words, table): the levels of codes
 * in the low bits of words; what lies above them is ignored.
 */
#include <string.h>

#include "bit_simd.h"

#ifndef BIT_REAL_LANES
#define BIT_REAL_LANES 4
#endif

typedef float bit_reals __attribute__((vector_size(4 * BIT_REAL_LANES)));
typedef uint32_t bit_words __attribute__((vector_size(4 * BIT_REAL_LANES)));

#define BIT_REAL_INLINE static inline __attribute__((always_inline))
#define BIT_REAL_UNROLL _Pragma("GCC unroll 32")

BIT_REAL_INLINE bit_reals bit_level(const int bits, bit_words words, const struct bit_real_weight *w) {
#ifdef BIT_LOOKED_UP
    if (bits < 8) {
        return BIT_LOOKED_UP(bits, words, w->table);
    }
#endif
    words &= (1U << bits) - 1;
    if (w->affine) {
        typedef int32_t integers __attribute__((vector_size(4 * BIT_REAL_LANES)));
        return __builtin_convertvector((integers)words, bit_reals) * w->step + w->base;
    }
    bit_reals levels = {0};
    for (int i = 0; i < BIT_REAL_LANES; i++) {
        levels[i] = w->table[words[i] & 15];
    }
    return levels;
}

/* Some rows of field f: `unit` is where their bytes of the first unit are. */
BIT_REAL_INLINE void bit_real_rows(const int bits, const int f, const int tokens, const struct bit_real_weight *w,
                                   const uint8_t *unit, const float *x, ptrdiff_t x_stride, float *y) {
    const int vectors = bits == 8 ? 4 : bits == 4 ? 2 : 1, rows = bits == 1 ? 128 : 64;
    bit_reals sum[4][4];
    BIT_REAL_UNROLL for (int t = 0; t < tokens; t++) {
        BIT_REAL_UNROLL for (int k = 0; k < 4; k++) { sum[t][k] = (bit_reals){0}; }
    }
    for (int64_t u = 0; u < w->units; u++, unit += 64 * vectors) {
        bit_words words;
        memcpy(&words, unit, sizeof words);
        BIT_REAL_UNROLL for (int k = 0; k < 4; k++) {
            const bit_reals level = bit_level(bits, words >> (8 * k + bits * f), w);
            BIT_REAL_UNROLL for (int t = 0; t < tokens; t++) { sum[t][k] += level * x[t * x_stride + 4 * u + k]; }
        }
    }
    BIT_REAL_UNROLL for (int t = 0; t < tokens; t++) {
        const bit_reals all = (sum[t][0] + sum[t][1]) + (sum[t][2] + sum[t][3]);
        memcpy(y + t * rows, &all, sizeof all);
    }
}

BIT_REAL_INLINE void bit_real_group(const int bits, const int tokens, const struct bit_real_weight *w,
                                    const uint8_t *units, const float *x, ptrdiff_t x_stride, float *y) {
    const int vectors = bits == 8 ? 4 : bits == 4 ? 2 : 1;
    for (int v = 0; v < vectors; v++) {
        for (int lane = 0; lane < BIT_LANES; lane += BIT_REAL_LANES) {
            BIT_REAL_UNROLL for (int f = 0; f < 8 / bits; f++) {
                bit_real_rows(bits, f, tokens, w, units + 64 * v + 4 * lane, x, x_stride,
                              y + (v * (8 / bits) + f) * BIT_LANES + lane);
            }
        }
    }
}

#define BIT_REAL_TOKENS(bits)                                                                                          \
    tokens == 4   ? bit_real_group(bits, 4, w, units, x, x_stride, y)                                                  \
    : tokens == 2 ? bit_real_group(bits, 2, w, units, x, x_stride, y)                                                  \
                  : bit_real_group(bits, 1, w, units, x, x_stride, y)

/* y[tokens][rows of the group]; 1, 2 or 4 tokens. */
static void bit_real(const struct bit_real_weight *w, const uint8_t *units, const float *x, ptrdiff_t x_stride,
                     int tokens, float *y) {
    switch (w->bits) {
    case 1:
        BIT_REAL_TOKENS(1);
        break;
    case 2:
        BIT_REAL_TOKENS(2);
        break;
    case 4:
        BIT_REAL_TOKENS(4);
        break;
    default:
        BIT_REAL_TOKENS(8);
    }
}
