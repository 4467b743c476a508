/* Steps that look at whole samples, and the network's input. */
#include <string.h>

#include "bit_engine.h"

#define LINE 256 /* pixels of the input that are taken at once */

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

/* Some pixels of a channel of an integer input to the buffer. */
static void copy_line(const struct bit_run *run, const struct bit_buffer *buffer, int64_t from, int64_t count,
                      uint8_t *to) {
    int32_t values[LINE];
    if (buffer->item == 1 && (run->kind == BIT_INPUT_INT8 || run->kind == BIT_INPUT_UINT8)) {
        const uint8_t *bytes = (const uint8_t *)run->input + from;
        for (int64_t i = 0; i < count; i++, to += buffer->pixel) {
            *to = (uint8_t)(bytes[i] - buffer->offset);
        }
        return;
    }
    for (int64_t i = 0; i < count; i += LINE, from += LINE) {
        const int64_t n = count - i < LINE ? count - i : LINE;
        if (run->kind == BIT_INPUT_INT32) {
            memcpy(values, (const int32_t *)run->input + from, (size_t)n * sizeof *values);
        }
        for (int64_t k = 0; k < n && run->kind != BIT_INPUT_INT32; k++) {
            const uint8_t byte = ((const uint8_t *)run->input)[from + k];
            values[k] = run->kind == BIT_INPUT_INT8 ? (int8_t)byte : byte;
        }
        for (int64_t k = 0; k < n; k++, to += buffer->pixel) {
            if (buffer->item == 1) {
                *to = (uint8_t)(values[k] - buffer->offset);
            } else {
                run->isa->store(to, buffer->item, 0, 1, values + k);
            }
        }
    }
}

/* Some pixels of a float input, quantized; 1 if there is a NaN. `first`: of the sample's, which has `area` of them. */
static int quantize_line(const struct bit_run *run, const struct bit_buffer *buffer, int64_t sample, int64_t area,
                         int64_t first, int64_t count, int8_t *to) {
    const struct bit_program *program = run->program;
    const int range[4] = {program->low, program->high, program->step, buffer->offset};
    const float scale = run->scales[run->scale_count > 1 ? sample : 0];
    const float *x = (const float *)run->input + sample * area * buffer->channels;
    int bad = 0;
    if (run->kind == BIT_INPUT_FLOAT) {
        for (int c = 0; c < buffer->channels; c += 4) {
            const int channels = buffer->channels - c < 4 ? buffer->channels - c : 4;
            bad |= run->isa->quantize_planes(x + c * area + first, area, channels, count, scale, range, to + c,
                                             buffer->pixel);
        }
        return bad;
    }
    const int dense = buffer->pixel == buffer->channels;
    const int64_t pixels = dense ? 1 : count, each = dense ? count * buffer->channels : buffer->channels;
    x += first * buffer->channels;
    for (int64_t i = 0; i < pixels; i++) {
        uint8_t nan;
        run->isa->quantize(x + i * each, to + i * buffer->pixel, each, scale, range, &nan);
        bad |= nan;
    }
    return bad;
}

static int bordered(const struct bit_program *program) { return program->border[0] || program->border[1]; }

int64_t bit_input_lines(const struct bit_program *program) {
    const struct bit_buffer *buffer = program->buffers + program->input;
    return bordered(program) ? buffer->height : ((int64_t)buffer->height * buffer->width + LINE - 1) / LINE;
}

/* Consecutive pixels of one sample: channels first, or last, to the buffer. With a border of zeros they are a row. */
void bit_input_task(void *job, int64_t index, void *scratch) {
    struct bit_run *run = job;
    const struct bit_program *program = run->program;
    const struct bit_buffer *buffer = program->buffers + program->input;
    const int64_t lines = bit_input_lines(program), sample = index / lines, line = index % lines;
    const int64_t height = buffer->height - 2 * (int64_t)program->border[0];
    const int64_t width = buffer->width - 2 * (int64_t)program->border[1], area = height * width;
    uint8_t *to = bit_sample(run, program->input, sample);
    int64_t first = line * LINE, count = area - first < LINE ? area - first : LINE;
    (void)scratch;
    if (bordered(program)) {
        const size_t row = (size_t)(buffer->width * (int64_t)buffer->pixel);
        to += line * (int64_t)row;
        memset(to, buffer->offset ? -128 : 0, row);
        first = (line - program->border[0]) * width, count = width;
        if (first < 0 || first >= area) {
            return;
        }
        to += (int64_t)program->border[1] * buffer->pixel;
    } else {
        to += first * buffer->pixel;
    }
    if (run->kind == BIT_INPUT_FLOAT || run->kind == BIT_INPUT_FLOAT_LAST) {
        if (quantize_line(run, buffer, sample, area, first, count, (int8_t *)to)) {
            atomic_store(run->failed, 1);
        }
    } else if (run->kind == BIT_INPUT_CHANNELS_LAST) {
        const uint8_t *from = (const uint8_t *)run->input + (sample * area + first) * buffer->channels;
        for (int64_t i = 0; i < count; i++, to += buffer->pixel) {
            for (int c = 0; c < buffer->channels; c++) {
                to[c] = (uint8_t)(*from++ - buffer->offset);
            }
        }
    } else {
        for (int c = 0; c < buffer->channels; c++) {
            copy_line(run, buffer, (sample * buffer->channels + c) * area + first, count,
                      to + (int64_t)c * buffer->item);
        }
    }
}
