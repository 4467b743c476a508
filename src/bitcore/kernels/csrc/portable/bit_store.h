/* Reading and writing elements of maps. */
#ifndef BIT_STORE_H
#define BIT_STORE_H

#include "bit_layers.h"

/* Arena memory holds elements of different types one after the other. */
#if defined(__GNUC__)
typedef int16_t __attribute__((may_alias)) BitInt16;
typedef int32_t __attribute__((may_alias)) BitInt32;
#else
typedef int16_t BitInt16;
typedef int32_t BitInt32;
#endif

BIT_INLINE int32_t bit_load(const void *x, uint32_t i, unsigned type) {
    switch (type) {
    case BIT_INT8:
        return ((const int8_t *)x)[i];
    case BIT_UINT8:
        return ((const uint8_t *)x)[i];
    case BIT_INT16:
        return ((const BitInt16 *)x)[i];
    default:
        return ((const BitInt32 *)x)[i];
    }
}

BIT_INLINE void bit_store(void *y, uint32_t i, unsigned type, int32_t value) {
    switch (type) {
    case BIT_INT8:
    case BIT_UINT8:
        ((uint8_t *)y)[i] = (uint8_t)value;
        break;
    case BIT_INT16:
        ((BitInt16 *)y)[i] = (int16_t)value;
        break;
    default:
        ((BitInt32 *)y)[i] = value;
    }
}

/* The lower half of a word as a signed number; the upper half of low + 65536 * high. */
BIT_INLINE int32_t bit_low_half(uint32_t word) { return (int32_t)((word & 0xffffU) ^ 0x8000U) - 0x8000; }

BIT_INLINE int32_t bit_high_half(uint32_t word) {
    return bit_shift_right((int32_t)(word - (uint32_t)bit_low_half(word)), 16);
}

#endif
