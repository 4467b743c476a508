/* Steps that look at whole samples, and the network's input. */
#include <string.h>

#include "bit_engine.h"

#define ROW 256 /* values of the input that are quantized at once */

static int32_t value_of(const uint8_t *at, const struct bit_buffer *buffer) {
    int32_t value;
    int16_t half;
    switch (buffer->item) {
    case 1:
        return (int8_t)*at + buffer->offset;
    case 2:
        memcpy(&half, at, sizeof half);
        return half;
    default:
        memcpy(&value, at, sizeof value);
        return value;
    }
}

/* Shifts a sample so that its largest magnitude just fits: e is the smallest integer with largest <= high * 2**e. */
void bit_normshift_task(void *job, int64_t sample, void *scratch) {
    struct bit_run *run = job;
    const struct bit_step *step = run->step;
    const struct bit_buffer *source = run->program->buffers + step->source;
    const int64_t area = (int64_t)step->height * step->width;
    const uint8_t *begin = bit_sample(run, step->source, sample);
    int64_t largest = 0;
    for (int64_t i = 0; i < area; i++) {
        for (int c = 0; c < source->channels; c++) {
            const int64_t x = value_of(begin + i * source->pixel + (int64_t)c * source->item, source);
            const int64_t magnitude = x >= 0 ? x : step->relu ? 0 : -x;
            largest = magnitude > largest ? magnitude : largest;
        }
    }
    int e = 0;
    while (largest > (int64_t)step->high << e) {
        e++;
    }
    while (e <= 0 && largest > 0 && largest << (1 - e) <= step->high) {
        e--;
    }
    int32_t *tile = scratch;
    for (int64_t i = 0; i < area; i++) {
        for (int first = 0; first < source->channels; first += BIT_TILE_ROWS) {
            const int left = source->channels - first, rows = left < BIT_TILE_ROWS ? left : BIT_TILE_ROWS;
            for (int r = 0; r < rows; r++) {
                int64_t x = value_of(begin + i * source->pixel + (int64_t)(first + r) * source->item, source);
                x = x < 0 && step->relu ? 0 : x;
                if (e <= 0) {
                    x *= (int64_t)1 << -e;
                } else { /* ties to even, as in bit_conv_rows.h */
                    x = (x + ((int64_t)1 << (e - 1)) - 1 + (x >> e & 1)) >> e;
                }
                tile[r] = (int32_t)x;
            }
            bit_tile_posts(run, tile, sample * area + i, 1, first, rows);
        }
    }
}

void bit_signs_task(void *job, int64_t sample, void *scratch) {
    const struct bit_run *run = job;
    const struct bit_step *step = run->step;
    const struct bit_buffer *source = run->program->buffers + step->source;
    const struct bit_buffer *target = run->program->buffers + step->target;
    const uint8_t *from = bit_sample(run, step->source, sample);
    uint8_t *to = bit_sample(run, step->target, sample);
    (void)scratch;
    for (int64_t i = 0; i < (int64_t)source->height * source->width; i++) {
        run->isa->signs((const int8_t *)from + i * source->pixel, source->channels,
                        (uint64_t *)(void *)(to + i * target->pixel));
    }
}

void bit_flatten_task(void *job, int64_t sample, void *scratch) {
    const struct bit_run *run = job;
    const struct bit_step *step = run->step;
    const struct bit_buffer *source = run->program->buffers + step->source;
    const uint8_t *from = bit_sample(run, step->source, sample);
    uint8_t *to = bit_sample(run, step->target, sample);
    const int64_t area = (int64_t)source->height * source->width;
    (void)scratch;
    for (int c = 0; c < source->channels; c++) {
        for (int64_t i = 0; i < area; i++, to += source->item) {
            memcpy(to, from + i * source->pixel + (int64_t)c * source->item, (size_t)source->item);
        }
    }
}

/* One row of a channel of the input to a row of the buffer; 1 if there is a NaN. */
static int copy_row(const struct bit_run *run, const struct bit_buffer *buffer, int64_t from, int64_t width,
                    uint8_t *to) {
    const struct bit_program *program = run->program;
    int8_t levels[ROW];
    int32_t values[ROW];
    int bad = 0;
    if (buffer->item == 1 && (run->kind == BIT_INPUT_INT8 || run->kind == BIT_INPUT_UINT8)) {
        const uint8_t *bytes = (const uint8_t *)run->input + from;
        for (int64_t i = 0; i < width; i++, to += buffer->pixel) {
            *to = (uint8_t)(bytes[i] - buffer->offset);
        }
        return 0;
    }
    for (int64_t i = 0; i < width; i += ROW, from += ROW) {
        const int64_t n = width - i < ROW ? width - i : ROW;
        switch (run->kind) {
        case BIT_INPUT_FLOAT: /* Python asks for it where levels are bytes */
            bad |= run->isa->quantize((const float *)run->input + from, run->scale, program->low, program->high,
                                      buffer->offset, n, levels);
            for (int64_t k = 0; k < n; k++, to += buffer->pixel) {
                *to = (uint8_t)levels[k];
            }
            continue;
        case BIT_INPUT_INT8:
        case BIT_INPUT_UINT8:
            for (int64_t k = 0; k < n; k++) {
                const uint8_t byte = ((const uint8_t *)run->input)[from + k];
                values[k] = run->kind == BIT_INPUT_INT8 ? (int8_t)byte : byte;
            }
            break;
        default:
            memcpy(values, (const int32_t *)run->input + from, (size_t)n * sizeof *values);
        }
        for (int64_t k = 0; k < n; k++, to += buffer->pixel) {
            if (buffer->item == 1) {
                *to = (uint8_t)(values[k] - buffer->offset);
            } else {
                run->isa->store(to, buffer->item, 0, 1, values + k);
            }
        }
    }
    return bad;
}

/* One row of one sample: channels first to channels last, with its border of zeros. */
void bit_input_task(void *job, int64_t index, void *scratch) {
    struct bit_run *run = job;
    const struct bit_program *program = run->program;
    const struct bit_buffer *buffer = program->buffers + program->input;
    const int64_t y = index % buffer->height, sample = index / buffer->height;
    const int64_t height = buffer->height - 2 * (int64_t)program->border[0];
    const int64_t width = buffer->width - 2 * (int64_t)program->border[1], at = y - program->border[0];
    uint8_t *row = bit_sample(run, program->input, sample) + y * buffer->width * buffer->pixel;
    (void)scratch;
    if (height != buffer->height || width != buffer->width) {
        memset(row, buffer->offset ? -128 : 0, (size_t)(buffer->width * (int64_t)buffer->pixel));
    }
    if (at < 0 || at >= height) {
        return;
    }
    row += (int64_t)program->border[1] * buffer->pixel;
    if (run->kind == BIT_INPUT_CHANNELS_LAST) {
        const uint8_t *from = (const uint8_t *)run->input + (sample * height + at) * width * buffer->channels;
        for (int64_t i = 0; i < width; i++, row += buffer->pixel) {
            for (int c = 0; c < buffer->channels; c++) {
                row[c] = (uint8_t)(*from++ - buffer->offset);
            }
        }
        return;
    }
    for (int c = 0; c < buffer->channels; c++) {
        const int64_t from = ((sample * buffer->channels + c) * height + at) * width;
        if (copy_row(run, buffer, from, width, row + (int64_t)c * buffer->item)) {
            atomic_store(run->failed, 1);
        }
    }
}
