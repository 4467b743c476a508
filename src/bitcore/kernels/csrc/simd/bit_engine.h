/* A whole integer network in one call: steps that read buffers tile by tile and hand each tile to a list of posts.
 * Python makes the program once (bitcore/kernels/engine.py) and keeps what it points to alive. */
#ifndef BIT_ENGINE_H
#define BIT_ENGINE_H

#include <stdatomic.h>

#include "bit_conv.h"

/* Activations of one sample, channels last. Sample b begins at arena + batch * at + b * bytes. */
struct bit_buffer {
    int64_t at, bytes; /* at -1: the network's output */
    int32_t height, width, channels;
    int32_t pixel;  /* bytes from one pixel to the next */
    int32_t item;   /* bytes of an element: 1, 2 or 4 */
    int32_t offset; /* added to what is stored */
};

/* Up to 64 channels of a step's result. */
struct bit_block {
    int64_t weight; /* where its weights begin, in bytes */
    int32_t first, rows;
    int32_t shape;   /* 0, 1, 2: room for 16, 32, 64 rows */
    int32_t channel; /* of the source, with which its inputs begin */
};

enum bit_step_kind {
    BIT_STEP_PRODUCT,   /* windows times weights, see bit_conv.h */
    BIT_STEP_COUNT,     /* the same of signs as bits */
    BIT_STEP_DEPTHWISE, /* one filter a channel */
    BIT_STEP_PLAIN,     /* any integers: slow */
    BIT_STEP_MAX,
    BIT_STEP_SUM,
    BIT_STEP_LOAD, /* the source as it is */
    BIT_STEP_NORMSHIFT,
    BIT_STEP_SIGNS,  /* -1 and +1 to bits, in `target` */
    BIT_STEP_FLATTEN /* to channels first, in `target` */
};

struct bit_step {
    int32_t kind, source, target;
    int32_t height, width; /* of the result */
    int32_t kernel[2], stride[2], padding[2], dilation[2];
    int32_t planes;        /* how often the window is multiplied, with further weights each time */
    int32_t bits;          /* 0, 1, 2, 3: codes of 1, 2, 4, 8 bits */
    int32_t base, shift;   /* level = base + (code << shift) */
    int32_t grouped;       /* blocks have inputs of their own */
    int32_t high, relu;    /* normshift */
    int64_t length;        /* bytes of a tap */
    int64_t units;         /* of a tap: of 4 bytes; for signs: words */
    int64_t stride_weight; /* depthwise: int16 elements from tap to tap; count: int32 elements of tap_sums likewise */
    int64_t weight_bytes, constant_count, tap_sums_count; /* how long the arrays are */
    const uint8_t *weight;
    const int32_t *constant; /* one a channel, padded */
    const int32_t *tap_sums; /* count: sums of levels, [taps][channels] */
    const struct bit_block *blocks;
    const struct bit_post *posts;
    int32_t block_count, post_count, slots, unused;
};

struct bit_program {
    const struct bit_buffer *buffers;
    const struct bit_step *steps;
    int64_t buffer_count, step_count;
    const int8_t *zeros[2]; /* bytes 0; bytes -128 */
    int64_t zeros_bytes;
    int64_t arena_bytes, output_bytes; /* of a sample; behind the arena, 4096 more may be read */
    int64_t input_count;               /* values of a sample */
    int32_t input;                     /* buffer */
    int32_t border[2];                 /* of zeros around it, within its height and width */
    int32_t low, high;                 /* of the input's levels, */
    int32_t step; /* which are all integers, or the odd ones (2); 0: others, to which no floats are rounded */
};

enum bit_input_kind {
    BIT_INPUT_INT32,
    BIT_INPUT_FLOAT,
    BIT_INPUT_INT8,
    BIT_INPUT_UINT8,
    BIT_INPUT_CHANNELS_LAST, /* bytes of the buffer's own type */
    BIT_INPUT_FLOAT_LAST     /* float, channels last */
};

struct bit_run {
    const struct bit_conv_isa *isa;
    const struct bit_program *program;
    const struct bit_step *step;
    uint8_t *arena;
    int32_t *output;
    int64_t batch, pixels; /* pixels: of all samples */
    int64_t tiles, parts;  /* of one item of work: tiles, and into how many the blocks are divided */
    const void *input;
    int kind;            /* of input */
    const float *scales; /* of a float input: one, or one a sample, */
    int64_t scale_count;
    atomic_int *failed; /* a NaN was met */
    /* float output: to each scale of the input those of all channels, and maybe their bias on the accumulators' grid */
    struct bit_output out;
    const float *factors;
    const double *grid;
};

static inline uint8_t *bit_sample(const struct bit_run *run, int buffer, int64_t sample) {
    const struct bit_buffer *b = run->program->buffers + buffer;
    return (b->at < 0 ? (uint8_t *)run->output : run->arena + run->batch * b->at) + sample * b->bytes;
}

enum bit_problem {
    BIT_NO_PROBLEM,
    BIT_PROBLEM_BUFFER,  /* a buffer has impossible sizes, or lies beyond the arena */
    BIT_PROBLEM_INPUT,   /* so has the input, or its levels do not fit it */
    BIT_PROBLEM_OUTPUT,  /* the output is not, or not wholly, written */
    BIT_PROBLEM_STEP,    /* there is no such step */
    BIT_PROBLEM_SOURCE,  /* a step reads what no step before it writes */
    BIT_PROBLEM_TARGET,  /* its result does not fit where it goes */
    BIT_PROBLEM_WINDOW,  /* kernel, stride, padding and dilation do not lead from the source's size to the result's */
    BIT_PROBLEM_BLOCKS,  /* blocks of channels overlap, leave gaps, or are not those of the source */
    BIT_PROBLEM_WEIGHTS, /* weights are shorter than what reads them, or of another layout */
    BIT_PROBLEM_POST     /* what follows has too few parameters, impossible ones, or a buffer of another size */
};

/* Whether a program may run; the problem, and the step that has it (-1: none of them). It is not checked again when it
 * runs. */
BIT_API int bit_program_check(const struct bit_program *program, int64_t *step);

/* Runs a program on `batch` samples: input levels, or floats (then divided by `scale` and rounded to levels), channels
 * first; output int32, channels last. `seconds`, if not NULL: adds what the input and each step took.
 * BIT_BAD_CODE: an input is NaN. BIT_NO_DATA: there is no input. BIT_BAD_PROGRAM: its input is of another kind. */
BIT_API int bit_engine_run(int isa, const struct bit_program *program, const void *input, int kind, float scale,
                           int32_t *output, int64_t batch, int threads, uint8_t *arena, double *seconds);

/* A convolution from float to float: a program whose output is one, scaled by (x scale * weight scale), bias added.
 * x and y: both channels first, or both channels last. x_scale: as in bit_linear_float_simd, with samples for rows.
 * BIT_BAD_CODE: there is a NaN; everything was computed as if it were a number. */
BIT_API int bit_conv2d_float(int isa, const struct bit_program *program, const struct bit_output *out, const float *x,
                             float *y, int channels_last, const float *x_scale, int64_t x_scales, int64_t batch,
                             int threads, uint8_t *arena);

/* ---- bit_engine_tiles.c ---- */

/* Scratch of one item of work. */
size_t bit_tile_scratch(const struct bit_run *run);
/* An item of work: some tiles, some blocks. */
void bit_tile_task(void *job, int64_t index, void *scratch);
/* What becomes of a tile. */
void bit_tile_posts(const struct bit_run *run, int32_t *tile, int64_t pixel, int pixels, int first, int rows);

/* ---- bit_engine_samples.c: what looks at whole samples ---- */

void bit_normshift_task(void *job, int64_t sample, void *scratch);
void bit_signs_task(void *job, int64_t sample, void *scratch);
void bit_flatten_task(void *job, int64_t sample, void *scratch);
/* The input of a sample is taken in so many lines, each an item of work. */
int64_t bit_input_lines(const struct bit_program *program);
void bit_input_task(void *job, int64_t index, void *scratch);

#endif
