/* One window of a pooling. */
#ifndef BIT_POOL_H
#define BIT_POOL_H

#include "bit_store.h"

/* Pools every window of every channel; `sum` and `window` are constants of the caller. */
BIT_INLINE void bit_pool2d(const BitPool *layer, const uint8_t *x, uint8_t *y, const BitBuffers *buffers, int sum) {
    const BitWindow *const window = &layer->window;
    uint32_t element = 0;
    int32_t row_y = -(int32_t)window->padding_height;
    int32_t row = window->first;
    for (uint32_t rows = window->result_height; rows != 0; rows--) {
        int32_t column_x = -(int32_t)window->padding_width;
        int32_t column = row;
        for (uint32_t columns = window->result_width; columns != 0; columns--) {
            for (uint32_t channel = 0; channel < window->channels; channel++, element++) {
                int32_t result = sum ? 0 : INT32_MIN;
                int32_t at_y = row_y;
                int32_t line = column;
                for (uint32_t ky = window->kernel_height; ky != 0; ky--) {
                    int32_t at_x = column_x;
                    int32_t at = line;
                    for (uint32_t kx = window->kernel_width; kx != 0; kx--) {
                        if (at_y >= 0 && at_y < (int32_t)window->height && at_x >= 0 && at_x < (int32_t)window->width) {
                            const int32_t value = bit_load(x + at, channel, layer->source);
                            result = sum ? result + value : value > result ? value : result;
                        }
                        at_x++;
                        at += window->dilated_pixel;
                    }
                    at_y++;
                    line += window->dilated_row;
                }
                bit_store(y, element, layer->result, layer->activate(result, channel, element, buffers));
            }
            column_x += window->stride_width;
            column += window->stride_pixel;
        }
        row_y += window->stride_height;
        row += window->stride_row;
    }
}

#endif
