/* Convolution with groups, depthwise above all. */
#include "bit_store.h"

void bit_grouped_conv2d(const BitGrouped *layer, const uint8_t *x, uint8_t *y, const BitBuffers *buffers) {
    const BitWindow *const window = &layer->window;
    uint32_t element = 0;
    int32_t row_y = -(int32_t)window->padding_height;
    int32_t row = window->first;
    for (uint32_t rows = window->result_height; rows != 0; rows--) {
        int32_t column_x = -(int32_t)window->padding_width;
        int32_t column = row;
        for (uint32_t columns = window->result_width; columns != 0; columns--) {
            const uint8_t *level = (const uint8_t *)layer->levels;
            uint32_t channel = 0;
            int32_t group = column; /* offset of the group's first input */
            for (uint32_t groups = layer->groups; groups != 0; groups--, group += layer->inputs) {
                for (uint32_t outputs = layer->outputs; outputs != 0; outputs--) {
                    uint32_t sum = 0;
                    int32_t at_y = row_y;
                    int32_t line = group;
                    for (uint32_t ky = window->kernel_height; ky != 0; ky--) {
                        int32_t at_x = column_x;
                        int32_t at = line;
                        for (uint32_t kx = window->kernel_width; kx != 0; kx--) {
                            const int inside = at_y >= 0 && at_y < (int32_t)window->height && at_x >= 0 &&
                                               at_x < (int32_t)window->width;
                            for (int32_t i = 0; i < (int32_t)layer->inputs; i++) {
                                int32_t factor = (int8_t)BIT_FLASH8(level);
                                if (layer->wide) {
                                    factor = (int16_t)BIT_FLASH16((const uint16_t *)(const void *)level);
                                }
                                level += layer->wide ? 2 : 1;
                                if (inside) {
                                    const int32_t value = bit_load(x + at, (uint32_t)i, layer->source);
                                    sum += bit_mul((uint32_t)value, (uint32_t)factor);
                                }
                            }
                            at_x += window->dilation_width;
                            at += window->dilated_pixel;
                        }
                        at_y += window->dilation_height;
                        line += window->dilated_row;
                    }
                    bit_store(y, element, layer->result, layer->activate((int32_t)sum, channel, element, buffers));
                    element++;
                    channel++;
                }
            }
            column_x += window->stride_width;
            column += window->stride_pixel;
        }
        row_y += window->stride_height;
        row += window->stride_row;
    }
}
