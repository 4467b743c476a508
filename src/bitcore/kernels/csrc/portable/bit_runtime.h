/* BitLab runtime: exact integer arithmetic in C99, without malloc, libc or floating point.
 *
 * The same files are the portable kernels of the Python package and the runtime of exported networks.
 * With BIT_NO_MULTIPLIER defined nothing here multiplies: products become shifts and additions.
 */
#ifndef BIT_RUNTIME_H
#define BIT_RUNTIME_H

#include <stdint.h>

#include "bit_formats.h"
#include "bit_version.h"

#if defined(__GNUC__)
#define BIT_INLINE static inline __attribute__((always_inline))
#define BIT_OUTLINE __attribute__((noinline)) /* an inner loop that has registers enough as a function of its own */
#else
#define BIT_INLINE static inline
#define BIT_OUTLINE
#endif

/* Constants stay in flash: on AVR they are declared and read so, elsewhere they are ordinary memory. */
#if defined(__AVR__)
#include <avr/pgmspace.h>
#define BIT_IN_FLASH PROGMEM
#define BIT_FLASH8(address) pgm_read_byte(address)
#define BIT_FLASH16(address) pgm_read_word(address)
#define BIT_FLASH32(address) pgm_read_dword(address)
#define BIT_FLASH64(address) (pgm_read_dword(address) | (uint64_t)pgm_read_dword((const uint8_t *)(address) + 4) << 32)
#else
#define BIT_IN_FLASH
#define BIT_FLASH8(address) (*(const uint8_t *)(address))
#define BIT_FLASH16(address) (*(const uint16_t *)(address))
#define BIT_FLASH32(address) (*(const uint32_t *)(address))
#define BIT_FLASH64(address) (*(const uint64_t *)(address))
#endif

/* a * b. Unsigned arithmetic wraps, so intermediate results may leave int32 as long as the final one does not. */
BIT_INLINE uint32_t bit_mul(uint32_t a, uint32_t b) {
#ifdef BIT_NO_MULTIPLIER
    uint32_t product = 0;
    if (b >> 31) { /* a small negative factor: fewer steps by its magnitude */
        a = 0U - a;
        b = 0U - b;
    }
    for (; b != 0; b >>= 1, a <<= 1) {
        if (b & 1U) {
            product += a;
        }
    }
    return product;
#else
    return a * b;
#endif
}

/* value >> shift, rounding towards minus infinity, for negative values too (C99 leaves that to the compiler). */
BIT_INLINE int32_t bit_shift_right(int32_t value, unsigned shift) {
    return value >= 0 ? value >> shift : ~(~value >> shift);
}

/* value / 2**shift, rounded to the nearest integer, ties to even; 0 <= shift <= 31. */
BIT_INLINE int32_t bit_round_shift(int32_t value, unsigned shift) {
    const int32_t floor = bit_shift_right(value, shift);
    const uint32_t rest = (uint32_t)value - ((uint32_t)floor << shift);
    if (shift == 0) {
        return floor;
    }
    /* Beyond half a step, or half a step beyond an odd number. At shift 31 the doubled rest still fits. */
    return floor + ((rest << 1 | ((uint32_t)floor & 1U)) > (uint32_t)1 << shift);
}

/* (value - half a step) / 2**shift, rounded to the nearest integer, ties to even; 0 <= shift <= 31. The half step is in
 * a bias: what it rounds up from a tie to an odd number is one less. */
BIT_INLINE int32_t bit_finish_round(int32_t value, unsigned shift) {
    int32_t result = bit_shift_right(value, shift);
    if ((uint32_t)result << shift == (uint32_t)value && shift != 0) {
        result &= -2;
    }
    return result;
}

/* Sums of n activations; the dot products of formats whose codes are offset need it. */
int32_t bit_sum_int8(const int8_t *x, uint32_t n);
int32_t bit_sum_uint8(const uint8_t *x, uint32_t n);

/* bit_dot_<weight>_<activation>: the sum of weight level times activation over one packed row of n weights.
 * `sum` is the sum of the n activations. */
#define BIT_DECLARE_DOT(format)                                                                                        \
    int32_t bit_dot_##format##_int8(const uint8_t *weight, const int8_t *x, uint32_t n, int32_t sum);                  \
    int32_t bit_dot_##format##_uint8(const uint8_t *weight, const uint8_t *x, uint32_t n, int32_t sum);
BIT_FORMATS(BIT_DECLARE_DOT)

/* clamp(round((x * multiplier + bias) / 2**shift), low, high), ties to even; 0 <= shift <= 62. */
int32_t bit_requantize(int32_t x, int32_t multiplier, int64_t bias, unsigned shift, int32_t low, int32_t high);

/* The same with multiplier 1, where x + bias fits int32, taken modulo 2**32; 0 <= shift <= 31. */
int32_t bit_requantize_shift(int32_t x, int32_t bias, unsigned shift, int32_t low, int32_t high);

/* round((x * multiplier + bias) / 2**shift), ties to even, in 32 bits: multiplier < 2**shift, 2 <= shift <= 31, and
 * |x| + |bias| fits int32. */
int32_t bit_scale(int32_t x, uint32_t multiplier, int32_t bias, unsigned shift);

/* How many of the rising thresholds, in flash, are <= x. */
int32_t bit_threshold(int32_t x, const int32_t *thresholds, uint32_t count);
int32_t bit_threshold16(int32_t x, const int16_t *thresholds, uint32_t count);

/* The index of the largest value; the first one where several are equal. */
int bit_argmax(const int32_t *x, uint32_t n);

#endif
