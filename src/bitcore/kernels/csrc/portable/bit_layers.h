/* Layers of exported networks. Maps are stored channels last: all channels of a pixel lie side by side.
 *
 * Weighted layers run input by input: a table holds what each weight code would add for this input (or for a few
 * inputs together), and every output adds its entry. That needs no multiplication, skips inputs that are zero, and
 * serves two neighbouring pixels at once: the lower and the upper half of one 32-bit accumulator. The sum of both,
 * low + 65536 * high, is exact modulo 2**32 however far it strays on the way, as long as both results fit 16 bits.
 */
#ifndef BIT_LAYERS_H
#define BIT_LAYERS_H

#include "bit_runtime.h"

/* What a generated function may read beside its value: the network's input and its arena. */
typedef struct {
    const uint8_t *input;
    uint8_t *arena;
} BitBuffers;

/* From an accumulator to a result: bias, requantization, residual sum, ... Generated for each layer.
 * `channel` counts output channels, `element` elements of the layer's own result. */
typedef int32_t BitActivate(int32_t value, uint32_t channel, uint32_t element, const BitBuffers *buffers);

/* How maps are stored. */
enum { BIT_INT8 = 1, BIT_UINT8, BIT_INT16, BIT_INT32 };

/* Neighbouring inputs of one pixel or two; NULL stands for zeros. `flip` is 128 for int8 inputs, 0 for uint8. There are
 * `left` pixels before the first one in its row, and `right` from there on. */
typedef struct {
    const uint8_t *a;
    const uint8_t *b;
    uint16_t count;
    uint16_t left, right;
    uint8_t flip;
} BitInputs;

/* Packed weights, in flash: rows of codes, each of which meets one input (or a few together) with all outputs. */
typedef struct {
    const uint32_t *words;
    const uint8_t *bytes;
} BitCodes;

/* Adds the weights of `x->count` inputs to the sums of some outputs and moves `weight` behind them; `table` holds up to
 * 32 words. Formats of evenly spaced levels say which: level = low + step * code. */
typedef void BitColumns(const BitInputs *x, BitCodes *weight, uint32_t outputs, int low, int step, uint32_t *sums,
                        uint32_t *table);

BitColumns bit_columns_binary, bit_columns_2bit, bit_columns_ternary, bit_columns_4bit, bit_columns_5bit;
BitColumns bit_columns_8bit, bit_columns_fp130, bit_columns_nf4, bit_columns_ternary3;

/* Weights of a layer, in blocks of outputs that are computed together. */
typedef struct {
    BitColumns *columns;
    BitCodes codes;
    int16_t low;
    uint8_t step;
    uint16_t outputs, block;
} BitWeights;

/* Fully connected. */
typedef struct {
    BitWeights weights;
    BitActivate *activate;
    uint16_t inputs;
    uint8_t flip;   /* of the input: see BitInputs */
    uint8_t result; /* BIT_INT8, ... */
} BitDense;

/* `scratch` holds the sums of a block and the table. */
void bit_dense(const BitDense *layer, const uint8_t *x, uint8_t *y, const BitBuffers *buffers, uint32_t *scratch);

/* A window that moves over a map. Offsets count bytes. */
typedef struct {
    uint16_t height, width, channels; /* of the map */
    uint8_t kernel_height, kernel_width;
    uint8_t padding_height, padding_width;
    uint8_t stride_height, stride_width;
    uint8_t dilation_height, dilation_width;
    int32_t first;                        /* offset of the first window, left of and above the map by the padding */
    int32_t stride_row, stride_pixel;     /* to the next window below, to the right */
    int32_t dilated_row, dilated_pixel;   /* to the next position within a window */
    uint16_t result_height, result_width; /* how many windows there are */
} BitWindow;

/* What makes results of the sums of one pixel or two; in bit_conv2d.h. */
typedef struct BitPixels BitPixels;
typedef void BitFinish(const BitPixels *pixels, unsigned part, int larger, uint32_t at);

BitFinish bit_finish_shift, bit_finish_value;

/* Convolution without groups, and the maximum of each pooling window where one follows. */
typedef struct {
    BitWeights weights;
    BitFinish *finish;
    BitActivate *activate; /* of bit_finish_value */
    const int16_t *bias;   /* of bit_finish_shift: for each output, with half a step */
    const uint8_t *shift;
    uint8_t high;
    BitWindow window;
    uint8_t flip, result; /* as in BitDense */
    uint8_t pairs;        /* two pixels at a time: all results fit 16 bits */
    uint8_t pooled;       /* whether a pooling follows; windows must not overlap */
    uint8_t rising;       /* pooled, and results never fall when sums rise */
    uint8_t pool_height, pool_width;
    uint16_t height, width;           /* of the result */
    uint16_t step_height, step_width; /* pixels of the input from one result to the next */
    int32_t step_row, step_pixel;     /* the same in bytes */
} BitConv2d;

/* `scratch` as for bit_dense. */
void bit_conv2d(const BitConv2d *layer, const uint8_t *x, uint8_t *y, const BitBuffers *buffers, uint32_t *scratch);

/* Adds one table, or two, of what weights add for four pixels, to sums; in bit_conv2d_rows.h. */
typedef struct BitGroup BitGroup;
typedef void BitAdd(const BitGroup *group, const uint8_t *codes, const uint8_t *others);

BitAdd bit_rows_bytes, bit_rows_packed;

/* 3x3 convolution of stride 1, padded by 1, and the maximum of windows of 2x2 where a pooling follows. Sums that begin
 * at `start`, which the biases take back, fit 16 bits. Codes: for each block, each input channel, each of its tables
 * and each output, the three rows of its weights from the last one up, as `add` takes them. */
typedef struct {
    BitAdd *add;
    const void *codes;
    uint8_t code_bytes;  /* of three rows */
    uint32_t start;      /* in both halves */
    const int16_t *bias; /* for each output, with half a step */
    const uint8_t *shift;
    uint16_t channels, outputs, block; /* block: outputs that are computed together */
    uint16_t height, width;            /* of both maps, before a pooling */
    int8_t low;                        /* level = low + level_step * code */
    uint8_t level_step;
    uint8_t levels; /* at most 32; 0: ternary, and a table for three weights side by side */
    uint8_t tables; /* of an input channel: 3, or 1 if ternary */
    uint8_t flip;   /* as in BitDense */
    uint8_t high;   /* the largest result */
    uint8_t pooled; /* whether a pooling follows */
} BitRows;

/* `scratch` holds two tables of 64 words, and for each four pixels of a row and each output of a block three sums of 2
 * words (pooled: four). Results of a row are written when the next row of `x` has been read. */
void bit_conv2d_rows(const BitRows *layer, const uint8_t *x, uint8_t *y, uint32_t *scratch);

/* Convolution with groups: weight levels as they are. */
typedef struct {
    const void *levels; /* int8_t, or int16_t where `wide`: [outputs][kernel_height][kernel_width][inputs] */
    BitActivate *activate;
    BitWindow window;
    uint16_t groups, inputs, outputs; /* inputs and outputs of one group */
    uint8_t wide;
    uint8_t source, result;
} BitGrouped;

void bit_grouped_conv2d(const BitGrouped *layer, const uint8_t *x, uint8_t *y, const BitBuffers *buffers);

/* Pooling: the largest value of each window, or the sum. */
typedef struct {
    BitActivate *activate;
    BitWindow window;
    uint8_t source, result;
} BitPool;

void bit_max_pool2d(const BitPool *layer, const uint8_t *x, uint8_t *y, const BitBuffers *buffers);
void bit_sum_pool2d(const BitPool *layer, const uint8_t *x, uint8_t *y, const BitBuffers *buffers);

/* Element by element. */
typedef struct {
    BitActivate *activate;
    uint32_t pixels;
    uint16_t channels;
    uint8_t source, result;
} BitMap;

void bit_map(const BitMap *layer, const uint8_t *x, uint8_t *y, const BitBuffers *buffers);

/* Shifts a sample so that its largest magnitude just fits `high`: y = round(x / 2**e), e as small as possible.
 * With relu, negative values become 0 first. Every y fits a byte (int8, or uint8 with relu). */
void bit_normshift(const uint8_t *x, unsigned source, uint8_t *y, uint32_t n, int32_t high, int relu);

/* Concatenation: channels of one map become channels of another that has more, from channel `first` on. */
typedef struct {
    BitActivate *activate;
    uint32_t pixels;
    uint16_t channels, first, all; /* channels of the source; `all` of the result */
    uint8_t source, result;
} BitCopy;

void bit_copy_channels(const BitCopy *layer, const uint8_t *x, uint8_t *y, const BitBuffers *buffers);

#endif
