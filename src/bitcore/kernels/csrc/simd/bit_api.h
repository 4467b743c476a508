/* C interface of the vector kernels, as Python calls it. Functions return 0, or the number of a bit_error. */
#ifndef BIT_API_H
#define BIT_API_H

#include <stdint.h>

#if defined(__GNUC__)
#define BIT_API __attribute__((visibility("default")))
#else
#define BIT_API
#endif

enum bit_error {
    BIT_OK,
    BIT_BAD_WEIGHT, /* not a prepared weight of this shape and format */
    BIT_NO_ISA,     /* this machine lacks the instruction set */
    BIT_NO_MEMORY,
    BIT_BAD_CODE,   /* packed data hold a code that the format does not have */
    BIT_BAD_FORMAT, /* the layout cannot hold the format */
    BIT_BAD_INPUT,  /* weights for signs meet other activations */
    BIT_TOO_LARGE,  /* sums could leave int32, or sizes what is counted */
    BIT_NO_DATA,    /* no memory where there should be values */
    BIT_BAD_PROGRAM /* of the engine: see bit_program_check */
};

/* A number format as Python defines it: the packing, and the level of each code. */
struct bit_format {
    int32_t radix, codes, word;
    int32_t count;
    int32_t step; /* level = levels[0] + step * code; 0 where it is not so */
    int16_t levels[256];
};

/* The name of an instruction set; NULL behind the last. `bit_isa_supported`: whether this machine has it. */
BIT_API const char *bit_isa_name(int isa);
BIT_API int bit_isa_supported(int isa);

/* The bytes that a weight takes in a layout (enum bit_layout); -1 if there is no such layout or size. */
BIT_API int64_t bit_prepared_bytes(int layout, int64_t outputs, int64_t inputs);

/* Packed rows (row_stride bytes apart) to the machine layout, and back. `bytes`: of the prepared weight, so that one of
 * another shape is refused and not read. */
BIT_API int bit_prepare(const struct bit_format *format, int layout, const uint8_t *packed, int64_t row_stride,
                        int64_t outputs, int64_t inputs, uint8_t *prepared);
BIT_API int bit_unprepare(const struct bit_format *format, const uint8_t *prepared, int64_t bytes, int64_t outputs,
                          int64_t inputs, uint8_t *packed, int64_t row_stride);
/* The levels of a prepared weight, [outputs][inputs]. */
BIT_API int bit_levels(const struct bit_format *format, const uint8_t *prepared, int64_t bytes, int64_t outputs,
                       int64_t inputs, float *levels);

/* y[rows][outputs] = x[rows][inputs] times the weight, as int32 sums of levels. x: int8, or uint8. */
BIT_API int bit_linear_int8_simd(int isa, const uint8_t *prepared, int64_t bytes, const void *x, int is_unsigned,
                                 int32_t *y, int64_t rows, int64_t outputs, int64_t inputs, int threads);

/* A layer: x is divided by its scale, rounded to levels low ... high (all integers, or with step 2 the odd ones),
 * multiplied, and scaled by (x scale * weight scale), bias added. */
struct bit_linear_layer {
    const uint8_t *prepared;
    int64_t bytes, outputs, inputs;
    const float *weight_scale;
    int64_t weight_scales; /* 1, or one an output */
    const float *bias;     /* one an output, or NULL */
    int32_t isa, low, high, step;
    int32_t bias_on_grid; /* the bias is first rounded to a multiple of the scale */
};

/* y[rows][outputs] from float x[rows][inputs]. x_scales: how many scales x_scale holds: 1, or one a row;
 * 0: largest |x| of a row / high; -1: of all rows. */
BIT_API int bit_linear_float_simd(const struct bit_linear_layer *layer, const float *x, float *y, int64_t rows,
                                  int threads, const float *x_scale, int64_t x_scales);

/* y[rows][outputs] = float x[rows][inputs] times the levels of a weight (not in the layouts of 1.6 bits and of signs),
 * prepared or plain [outputs][inputs]: sums in the one order of bit_reals.h. An instruction set that this machine lacks
 * stands for portable C. */
BIT_API int bit_linear_real(int isa, const struct bit_format *format, const uint8_t *prepared, int64_t bytes,
                            const float *x, float *y, int64_t rows, int64_t outputs, int64_t inputs, int threads);
BIT_API int bit_linear_levels(const float *levels, const float *x, float *y, int64_t rows, int64_t outputs,
                              int64_t inputs, int threads);

/* Loads for `bitlab bench` (AVX-512 alone): read memory once; `rounds` times 1024 products of bytes, or 8192 of signs.
 */
BIT_API void bit_limit_read(const uint8_t *memory, int64_t bytes);
BIT_API void bit_limit_dot(int64_t rounds);
BIT_API void bit_limit_count(int64_t rounds);

#endif
