/* Number formats. Generated from their levels by bitcore.formats.ctables; do not edit. */
#ifndef BIT_FORMATS_H
#define BIT_FORMATS_H

/* X(format): every format, in the order of their numbers. */
#define BIT_FORMATS(X)                                                                                                 \
    X(binary)                                                                                                          \
    X(ternary)                                                                                                         \
    X(2bitsym)                                                                                                         \
    X(4bitsym)                                                                                                         \
    X(5bitsym)                                                                                                         \
    X(int2)                                                                                                            \
    X(int3)                                                                                                            \
    X(int4)                                                                                                            \
    X(int5)                                                                                                            \
    X(int6)                                                                                                            \
    X(int7)                                                                                                            \
    X(int8)                                                                                                            \
    X(4bit)                                                                                                            \
    X(8bit)                                                                                                            \
    X(fp130)                                                                                                           \
    X(nf4)                                                                                                             \
    X(uint1)                                                                                                           \
    X(uint2)                                                                                                           \
    X(uint3)                                                                                                           \
    X(uint4)                                                                                                           \
    X(uint5)                                                                                                           \
    X(uint6)                                                                                                           \
    X(uint7)                                                                                                           \
    X(uint8)
#define BIT_FORMAT_COUNT 24

/* X(format, bits, low, step): level = low + step * code, codes in a little-endian bit stream. */
#define BIT_FORMATS_OF_BITS(X)                                                                                         \
    X(binary, 1, -1, 2)                                                                                                \
    X(2bitsym, 2, -3, 2)                                                                                               \
    X(4bitsym, 4, -15, 2)                                                                                              \
    X(5bitsym, 5, -31, 2)                                                                                              \
    X(int2, 2, -1, 1)                                                                                                  \
    X(int3, 3, -3, 1)                                                                                                  \
    X(int4, 4, -7, 1)                                                                                                  \
    X(int5, 5, -15, 1)                                                                                                 \
    X(int6, 6, -31, 1)                                                                                                 \
    X(int7, 7, -63, 1)                                                                                                 \
    X(int8, 8, -127, 1)                                                                                                \
    X(4bit, 4, -8, 1)                                                                                                  \
    X(8bit, 8, -128, 1)                                                                                                \
    X(uint1, 1, 0, 1)                                                                                                  \
    X(uint2, 2, 0, 1)                                                                                                  \
    X(uint3, 3, 0, 1)                                                                                                  \
    X(uint4, 4, 0, 1)                                                                                                  \
    X(uint5, 5, 0, 1)                                                                                                  \
    X(uint6, 6, 0, 1)                                                                                                  \
    X(uint7, 7, 0, 1)                                                                                                  \
    X(uint8, 8, 0, 1)

/* Levels in code order. */
#define BIT_FP130_LEVELS {1, 2, 4, 8, 16, 32, 64, 128, -1, -2, -4, -8, -16, -32, -64, -128}
#define BIT_NF4_LEVELS {-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127}

#endif
