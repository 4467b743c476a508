/* Tiles of up to 6 pixels and 64 channels: their windows, their products or pools, what becomes of them. */
#include <string.h>

#include "bit_engine.h"

#define TILE (BIT_TILE_PIXELS * BIT_TILE_ROWS)

static int64_t window(const struct bit_step *step) { return (int64_t)step->kernel[0] * step->kernel[1]; }

/* Pointers of a window's taps for `pixels` pixels from `pixel` on; `outside` beyond the border. */
static void gather(const struct bit_run *run, int64_t pixel, int pixels, const int8_t *outside,
                   const int8_t **pointers) {
    const struct bit_step *step = run->step;
    const struct bit_buffer *source = run->program->buffers + step->source;
    const int64_t area = (int64_t)step->height * step->width, row = (int64_t)source->width * source->pixel;
    int64_t sample = pixel / area, y = pixel % area / step->width, x = pixel % area % step->width;
    for (int p = 0; p < pixels; p++) {
        const int64_t top = y * step->stride[0] - step->padding[0], left = x * step->stride[1] - step->padding[1];
        const int64_t bottom = top + (int64_t)(step->kernel[0] - 1) * step->dilation[0];
        const int64_t right = left + (int64_t)(step->kernel[1] - 1) * step->dilation[1];
        const int8_t *begin = (const int8_t *)bit_sample(run, step->source, sample) + top * row + left * source->pixel;
        const int8_t **at = pointers + p;
        const int64_t down = row * step->dilation[0], aside = (int64_t)source->pixel * step->dilation[1];
        if (top >= 0 && left >= 0 && bottom < source->height && right < source->width) {
            for (int i = 0; i < step->kernel[0]; i++) {
                for (int j = 0; j < step->kernel[1]; j++, at += BIT_TILE_PIXELS) {
                    *at = begin + i * down + j * aside;
                }
            }
        } else {
            for (int i = 0; i < step->kernel[0]; i++) {
                const int64_t sy = top + (int64_t)i * step->dilation[0];
                const int inside = sy >= 0 && sy < source->height;
                for (int j = 0; j < step->kernel[1]; j++, at += BIT_TILE_PIXELS) {
                    const int64_t sx = left + (int64_t)j * step->dilation[1];
                    *at = inside && sx >= 0 && sx < source->width ? begin + i * down + j * aside : outside;
                }
            }
        }
        if (++x == step->width) {
            x = 0;
            if (++y == step->height) {
                y = 0;
                sample++;
            }
        }
    }
    const int64_t taps = window(step);
    for (int plane = 1; plane < step->planes; plane++) {
        memcpy(pointers + plane * taps * BIT_TILE_PIXELS, pointers,
               (size_t)(taps * BIT_TILE_PIXELS) * sizeof *pointers);
    }
}

/* A tile of the network's output, as floats. */
static void store_reals(const struct bit_run *run, const struct bit_buffer *buffer, const int32_t *tile, int64_t pixel,
                        int pixels, int first, int rows) {
    const int64_t area = (int64_t)buffer->height * buffer->width, channels = buffer->channels;
    const float *bias = run->out.bias != NULL ? run->out.bias + first : NULL;
    const int last = run->kind == BIT_INPUT_FLOAT_LAST;
    while (pixels > 0) { /* those of one sample */
        const int64_t sample = pixel / area, at = pixel % area, left = area - at;
        const int count = pixels < left ? pixels : (int)left;
        const int64_t scales = (run->scale_count > 1 ? sample : 0) * channels + first;
        const double *grid = run->grid != NULL ? run->grid + scales : NULL;
        float *y = run->out.reals + sample * area * channels + (last ? at * channels + first : first * area + at);
        run->isa->reals(tile, run->factors + scales, bias, grid, count, rows, y, last ? channels : 1, last ? 1 : area);
        pixels -= count, pixel += count, tile += count * BIT_TILE_ROWS;
    }
}

/* Adds pixels of a buffer to a tile, or stores them from it. */
static void exchange(const struct bit_run *run, const struct bit_post *post, int32_t *tile, int64_t pixel, int pixels,
                     int first, int rows) {
    const struct bit_buffer *buffer = run->program->buffers + post->target;
    const int64_t area = (int64_t)run->step->height * run->step->width,
                  channel = (int64_t)(post->low + first) * buffer->item;
    int64_t sample = pixel / area, left = area - pixel % area;
    uint8_t *at = bit_sample(run, post->target, sample) + (area - left) * buffer->pixel + channel;
    for (int p = 0; p < pixels; p++, tile += BIT_TILE_ROWS, at += buffer->pixel) {
        if (left-- == 0) {
            left = area - 1;
            at = bit_sample(run, post->target, ++sample) + channel;
        }
        if (post->kind == BIT_POST_ADD) {
            run->isa->add(at, buffer->item, buffer->offset, rows, tile);
        } else {
            run->isa->store(at, buffer->item, buffer->offset, rows, tile);
        }
    }
}

void bit_tile_posts(const struct bit_run *run, int32_t *tile, int64_t pixel, int pixels, int first, int rows) {
    const struct bit_step *step = run->step;
    const struct bit_conv_isa *isa = run->isa;
    for (const struct bit_post *post = step->posts; post < step->posts + step->post_count; post++) {
        switch (post->kind) {
        case BIT_POST_REQUANTIZE:
            isa->requantize(post, tile, pixels, first, rows);
            break;
        case BIT_POST_THRESHOLD:
            isa->threshold(post, tile, pixels, first, rows);
            break;
        case BIT_POST_LOOKUP:
            for (int i = 0; i < pixels * BIT_TILE_ROWS; i++) { /* rows that do not count, too */
                tile[i] = post->table[tile[i] & 255];
            }
            break;
        case BIT_POST_KEEP:
            memcpy(tile + (post->target + 1) * TILE, tile, TILE * sizeof *tile);
            break;
        case BIT_POST_RESTORE:
            memcpy(tile, tile + (post->target + 1) * TILE, TILE * sizeof *tile);
            break;
        default:
            if (run->out.reals != NULL && run->program->buffers[post->target].at < 0) {
                store_reals(run, run->program->buffers + post->target, tile, pixel, pixels, first, rows);
            } else {
                exchange(run, post, tile, pixel, pixels, first, rows);
            }
        }
    }
}

/* sum(level * x) in plain integers; weights int16 [channels][taps][inputs]. */
static void plain(const struct bit_run *run, const struct bit_block *block, const int8_t *const *pointers, int pixels,
                  int32_t *tile) {
    const struct bit_step *step = run->step;
    const struct bit_buffer *source = run->program->buffers + step->source;
    const int16_t *weight = (const int16_t *)(const void *)step->weight;
    const int64_t taps = window(step), inputs = step->length / source->item;
    for (int p = 0; p < pixels; p++) {
        for (int r = 0; r < block->rows; r++) {
            int32_t sum = step->constant[block->first + r];
            const int16_t *w = weight + (int64_t)(block->first + r) * taps * inputs;
            for (int64_t tap = 0; tap < taps; tap++) {
                const int8_t *x = pointers[tap * BIT_TILE_PIXELS + p];
                if (x == NULL) {
                    w += inputs;
                    continue;
                }
                x += (int64_t)block->channel * source->item;
                for (int64_t i = 0; i < inputs; i++, x += source->item) {
                    int32_t value;
                    if (source->item == 1) {
                        value = *x + source->offset;
                    } else if (source->item == 2) {
                        int16_t half;
                        memcpy(&half, x, sizeof half);
                        value = half;
                    } else {
                        memcpy(&value, x, sizeof value);
                    }
                    sum += *w++ * value;
                }
            }
            tile[p * BIT_TILE_ROWS + r] = sum;
        }
    }
}

/* Largest values or sums of windows; pointers beyond the border are NULL and left out. */
static void pool(const struct bit_run *run, const struct bit_block *block, const int8_t *const *pointers, int pixels,
                 const void **inside, int32_t *tile) {
    const struct bit_step *step = run->step;
    const struct bit_buffer *source = run->program->buffers + step->source;
    const int64_t taps = window(step), at = (int64_t)block->first * source->item;
    for (int p = 0; p < pixels; p++) {
        int32_t *row = tile + p * BIT_TILE_ROWS;
        int64_t count = 0;
        for (int64_t tap = 0; tap < taps; tap++) {
            const int8_t *x = pointers[tap * BIT_TILE_PIXELS + p];
            if (x != NULL) {
                inside[count++] = x + at;
            }
        }
        if (step->kind == BIT_STEP_MAX) {
            run->isa->largest(inside, count, source->item, source->offset, block->rows, row);
            continue;
        }
        memset(row, 0, BIT_TILE_ROWS * sizeof *row);
        for (int64_t i = 0; i < count; i++) {
            run->isa->add(inside[i], source->item, source->offset, block->rows, row);
        }
    }
}

/* A position beyond the border counted as +1, once for each input of the tap. */
static void subtract_border(const struct bit_step *step, const struct bit_block *block, const int8_t *const *pointers,
                            const int8_t *outside, int pixels, int32_t *tile) {
    for (int64_t tap = 0; tap < window(step); tap++) {
        for (int p = 0; p < pixels; p++) {
            if (pointers[tap * BIT_TILE_PIXELS + p] == outside) {
                const int32_t *sums = step->tap_sums + tap * step->stride_weight + block->first;
                for (int r = 0; r < block->rows; r++) {
                    tile[p * BIT_TILE_ROWS + r] -= sums[r];
                }
            }
        }
    }
}

struct tile {
    const int8_t **pointers;
    int32_t correction[BIT_TILE_PIXELS];
};

static void correct(const struct bit_run *run, const int8_t *const *pointers, int pixels, int32_t *correction) {
    const struct bit_step *step = run->step;
    memset(correction, 0, BIT_TILE_PIXELS * sizeof *correction);
    if (step->base) {
        run->isa->sums(pointers, window(step), step->length, pixels, correction);
        for (int p = 0; p < pixels; p++) {
            correction[p] *= step->base;
        }
    }
}

static void compute(const struct bit_run *run, const struct bit_block *block, struct tile *window_tile,
                    const int8_t *outside, int pixels, const int8_t **shifted, int32_t *tile) {
    const struct bit_step *step = run->step;
    const struct bit_conv_isa *isa = run->isa;
    const int64_t taps = window(step) * step->planes;
    const int8_t **pointers = window_tile->pointers;
    const int64_t at = step->grouped ? block->channel : step->kind == BIT_STEP_DEPTHWISE ? block->first : 0;
    const int in_bytes =
        step->kind == BIT_STEP_PRODUCT || step->kind == BIT_STEP_COUNT || step->kind == BIT_STEP_DEPTHWISE;
    if (in_bytes && at) {
        for (int64_t i = 0; i < taps * BIT_TILE_PIXELS; i++) {
            shifted[i] = i % BIT_TILE_PIXELS < pixels ? pointers[i] + at : NULL;
        }
        if (step->grouped) {
            correct(run, shifted, pixels, window_tile->correction);
        }
        pointers = shifted;
    } else if (step->grouped && step->kind == BIT_STEP_PRODUCT) {
        correct(run, pointers, pixels, window_tile->correction);
    }
    const int32_t *constant = step->constant + block->first;
    switch (step->kind) {
    case BIT_STEP_PRODUCT:
        isa->product[step->bits][block->shape][pixels - 1](step->weight + block->weight, pointers, taps, step->units,
                                                           step->shift, window_tile->correction, constant, tile);
        break;
    case BIT_STEP_COUNT:
        isa->count[pixels - 1]((const uint64_t *)(const void *)(step->weight + block->weight), pointers, taps,
                               step->units, 1 << block->shape, constant, tile);
        subtract_border(step, block, pointers, outside, pixels, tile);
        break;
    case BIT_STEP_DEPTHWISE:
        isa->depthwise((const int16_t *)(const void *)step->weight + block->first, step->stride_weight, pointers, taps,
                       pixels, block->rows, constant, tile);
        break;
    case BIT_STEP_PLAIN:
        plain(run, block, pointers, pixels, tile);
        break;
    default:
        pool(run, block, pointers, pixels, (const void **)shifted, tile);
    }
}

static size_t pointer_count(const struct bit_step *step) {
    return (size_t)(window(step) * step->planes * BIT_TILE_PIXELS);
}

size_t bit_tile_scratch(const struct bit_run *run) {
    const size_t pointers = pointer_count(run->step) * sizeof(int8_t *);
    const size_t tiles = (size_t)run->tiles;
    return (size_t)(run->step->slots + 1) * TILE * sizeof(int32_t) + (tiles + 1) * pointers +
           tiles * sizeof(struct tile);
}

void bit_tile_task(void *job, int64_t index, void *scratch) {
    const struct bit_run *run = job;
    const struct bit_step *step = run->step;
    const struct bit_buffer *source = run->program->buffers + step->source;
    const int zeros =
        step->kind == BIT_STEP_PRODUCT || step->kind == BIT_STEP_COUNT || step->kind == BIT_STEP_DEPTHWISE;
    const int8_t *outside = zeros ? run->program->zeros[source->offset != 0] : NULL;
    const size_t each = pointer_count(step);
    int32_t *tile = scratch;
    const int8_t **pointers = (const int8_t **)(void *)(tile + (step->slots + 1) * TILE);
    const int8_t **shifted = pointers + (size_t)run->tiles * each;
    struct tile *tiles = (struct tile *)(void *)(shifted + each);

    const int64_t begin = index / run->parts * run->tiles, part = index % run->parts;
    const int64_t all = (run->pixels + BIT_TILE_PIXELS - 1) / BIT_TILE_PIXELS;
    const int64_t end = begin + run->tiles < all ? begin + run->tiles : all;
    for (int64_t t = begin; t < end; t++) {
        const int64_t pixel = run->pixels * t / all;
        const int pixels = (int)(run->pixels * (t + 1) / all - pixel);
        tiles[t - begin].pointers = pointers + (size_t)(t - begin) * each;
        gather(run, pixel, pixels, outside, tiles[t - begin].pointers);
        if (step->kind == BIT_STEP_PRODUCT && !step->grouped) {
            correct(run, tiles[t - begin].pointers, pixels, tiles[t - begin].correction);
        }
    }
    for (int64_t b = step->block_count * part / run->parts; b < step->block_count * (part + 1) / run->parts; b++) {
        const struct bit_block *block = step->blocks + b;
        for (int64_t t = begin; t < end; t++) {
            const int64_t pixel = run->pixels * t / all;
            const int pixels = (int)(run->pixels * (t + 1) / all - pixel);
            compute(run, block, tiles + (t - begin), outside, pixels, shifted, tile);
            bit_tile_posts(run, tile, pixel, pixels, block->first, block->rows);
        }
    }
}
