/* Dot products of evenly spaced formats of whole bits: level = low + step * code, codes in a little-endian bit stream.
 */
#include "bit_runtime.h"

BIT_INLINE uint32_t code_times(uint32_t code, uint32_t x, unsigned bits) {
#ifdef BIT_NO_MULTIPLIER
    uint32_t product = 0;
    for (unsigned bit = 0; bit < bits; bit++, x <<= 1) {
        if (code >> bit & 1U) {
            product += x;
        }
    }
    return product;
#else
    (void)bits;
    return code * x;
#endif
}

/* low * sum x + step * sum code * x. Every argument but the pointers, n and sum is a constant of the caller. */
BIT_INLINE int32_t dot(const uint8_t *weight, const void *x, int x_signed, uint32_t n, int32_t sum, unsigned bits,
                       int32_t low, unsigned step) {
    const int8_t *s = (const int8_t *)x;
    const uint8_t *u = (const uint8_t *)x;
    uint32_t total = 0;
    uint32_t stream = 0;
    unsigned held = 0; /* bits in the stream */
    for (; n != 0; n--) {
        if (held < bits) {
            stream |= (uint32_t)*weight++ << held;
            held += 8;
        }
        const uint32_t code = stream & (((uint32_t)1 << bits) - 1);
        total += code_times(code, x_signed ? (uint32_t)(int32_t)*s++ : (uint32_t)*u++, bits);
        stream >>= bits;
        held -= bits;
    }
    return (int32_t)((step == 2 ? total << 1 : total) + bit_mul((uint32_t)sum, (uint32_t)low));
}

#define DEFINE_DOT(format, bits, low, step)                                                                            \
    int32_t bit_dot_##format##_int8(const uint8_t *weight, const int8_t *x, uint32_t n, int32_t sum) {                 \
        return dot(weight, x, 1, n, sum, bits, low, step);                                                             \
    }                                                                                                                  \
    int32_t bit_dot_##format##_uint8(const uint8_t *weight, const uint8_t *x, uint32_t n, int32_t sum) {               \
        return dot(weight, x, 0, n, sum, bits, low, step);                                                             \
    }
BIT_FORMATS_OF_BITS(DEFINE_DOT)
