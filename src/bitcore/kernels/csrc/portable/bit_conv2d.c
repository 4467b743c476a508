/* Convolution, requantization and max pooling in one pass: no map of accumulators, and none that a pooling shrinks. */
#include "bit_conv2d.h"

static void accumulate(const BitPixels *pixels, BitCodes *codes) {
    const BitConv2d *const layer = pixels->layer;
    const BitWeights *const w = &layer->weights;
    BitInputs inputs = {0, 0, layer->window.channels, 0, 0, layer->flip};
    int32_t row = pixels->row;
    int32_t line = pixels->offset;
    for (uint32_t i = 0; i < pixels->count; i++) {
        pixels->sums[i] = 0;
    }
    for (uint32_t ky = layer->window.kernel_height; ky != 0; ky--) {
        int32_t column = row >= 0 && row < (int32_t)layer->window.height ? pixels->column : INT32_MIN / 2; /* outside */
        int32_t offset = line;
        for (uint32_t kx = layer->window.kernel_width; kx != 0; kx--) {
            const int32_t next = column + (int32_t)layer->window.stride_width;
            inputs.a = column >= 0 && column < (int32_t)layer->window.width ? pixels->x + offset : 0;
            inputs.b = 0;
            inputs.left = (uint16_t)column;
            inputs.right = (uint16_t)(layer->window.width - (uint32_t)column);
            if (pixels->both && next >= 0 && next < (int32_t)layer->window.width) {
                inputs.b = pixels->x + (offset + layer->window.stride_pixel);
            }
            w->columns(&inputs, codes, pixels->count, w->low, w->step, pixels->sums, pixels->sums + w->block);
            column += layer->window.dilation_width;
            offset += layer->window.dilated_pixel;
        }
        row += layer->window.dilation_height;
        line += layer->window.dilated_row;
    }
}

/* All outputs of the pixels. */
static void compute(BitPixels *pixels, int larger, uint32_t at) {
    const BitConv2d *const layer = pixels->layer;
    BitCodes codes = layer->weights.codes;
    for (pixels->channel = 0; pixels->channel < layer->weights.outputs; pixels->channel += layer->weights.block) {
        const uint32_t left = layer->weights.outputs - pixels->channel;
        pixels->count = left < layer->weights.block ? left : layer->weights.block;
        accumulate(pixels, &codes);
        const int one = layer->rising && pixels->both;
        layer->finish(pixels, one ? BIT_LARGER : layer->pairs ? BIT_LOWER : BIT_WHOLE, larger, at);
        if (pixels->both && !one) {
            layer->finish(pixels, BIT_UPPER, layer->pooled, layer->pooled ? at : at + layer->weights.outputs);
        }
    }
}

void bit_conv2d(const BitConv2d *layer, const uint8_t *x, uint8_t *y, const BitBuffers *buffers, uint32_t *scratch) {
    const BitWindow *const window = &layer->window;
    BitPixels pixels = {layer, x, y, buffers, scratch, 0, 0, 0, 0, 0, 0};
    uint32_t at = 0;
    int32_t top = -(int32_t)window->padding_height;
    int32_t start = window->first; /* offset of the first window of the row */
    for (uint32_t rows = layer->height; rows != 0; rows--) {
        int32_t left = -(int32_t)window->padding_width;
        int32_t offset = start;
        for (uint32_t columns = layer->width; columns != 0;) {
            const uint32_t wide = layer->pooled ? layer->pool_width : layer->pairs && columns > 1 ? 2 : 1;
            pixels.row = top;
            for (uint32_t line = 0; line < layer->pool_height; line++) {
                pixels.column = left;
                pixels.offset = offset + (int32_t)bit_mul((uint32_t)window->stride_row, line);
                for (uint32_t rest = wide; rest != 0; rest -= 1U + (uint32_t)pixels.both) {
                    pixels.both = layer->pairs && rest > 1;
                    compute(&pixels, layer->pooled && (line != 0 || rest != wide), at);
                    pixels.column += (int32_t)((uint32_t)window->stride_width << pixels.both);
                    pixels.offset += (int32_t)((uint32_t)window->stride_pixel << pixels.both);
                }
                pixels.row += window->stride_height;
            }
            const unsigned two = !layer->pooled && wide == 2; /* results that have been written */
            columns -= 1 + two;
            at += layer->weights.outputs << two;
            left += (int32_t)((uint32_t)layer->step_width << two);
            offset += (int32_t)((uint32_t)layer->step_pixel << two);
        }
        top += layer->step_height;
        start += layer->step_row;
    }
}
