/* Runs a program step by step, each divided among threads. */
#include <time.h>

#include "bit_engine.h"

#include "bit_floats.h"

#define LARGE_ITEM 8 /* tiles of one item of work at most: a block's weights are read once for all of them */

#define MOST_PIXELS ((int64_t)1 << 32) /* of a step: int64 holds their number times that of their tiles */

static int in_parallel(bit_task task, struct bit_run *run, int64_t count, int threads, size_t scratch) {
    return bit_parallel(task, run, count, threads, scratch) ? BIT_NO_MEMORY : BIT_OK;
}

static int run_step(struct bit_run *run, int threads) {
    const struct bit_step *step = run->step;
    switch (step->kind) {
    case BIT_STEP_NORMSHIFT:
        return in_parallel(bit_normshift_task, run, run->batch, threads,
                           (size_t)(step->slots + 1) * BIT_TILE_PIXELS * BIT_TILE_ROWS * sizeof(int32_t));
    case BIT_STEP_SIGNS:
        return in_parallel(bit_signs_task, run, run->batch, threads, 64);
    case BIT_STEP_FLATTEN:
        return in_parallel(bit_flatten_task, run, run->batch, threads, 64);
    default: {
        if (run->batch > MOST_PIXELS / ((int64_t)step->height * step->width)) {
            return BIT_TOO_LARGE;
        }
        run->pixels = run->batch * step->height * step->width;
        const int64_t all = (run->pixels + BIT_TILE_PIXELS - 1) / BIT_TILE_PIXELS;
        const int64_t wanted = threads > 1 ? 4 * (int64_t)threads : 1;
        run->tiles = all / wanted < 1 ? 1 : all / wanted > LARGE_ITEM ? LARGE_ITEM : all / wanted;
        const int64_t items = (all + run->tiles - 1) / run->tiles, parts = (wanted + items - 1) / items;
        run->parts = parts < 1 ? 1 : parts > step->block_count ? step->block_count : parts;
        return in_parallel(bit_tile_task, run, items * run->parts, threads, bit_tile_scratch(run));
    }
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double lap(double *seconds, double before) {
    if (seconds == NULL) {
        return 0;
    }
    const double after = now();
    *seconds += after - before;
    return after;
}

/* The input, then every step; `stop`: not with a NaN in the input. */
static int run_program(struct bit_run *run, int threads, int stop, double *seconds) {
    const struct bit_program *program = run->program;
    atomic_int failed = 0;
    double before = seconds ? now() : 0;
    run->failed = &failed;
    if (bit_parallel(bit_input_task, run, run->batch * bit_input_lines(program), threads, 64)) {
        return BIT_NO_MEMORY;
    }
    if (failed && stop) {
        return BIT_BAD_CODE;
    }
    before = lap(seconds, before);
    for (int64_t i = 0; i < program->step_count; i++) {
        run->step = program->steps + i;
        const int error = run_step(run, threads);
        if (error) {
            return error;
        }
        before = lap(seconds ? seconds + 1 + i : NULL, before);
    }
    return failed ? BIT_BAD_CODE : BIT_OK;
}

/* Whether the program takes an input of that kind, of so many samples. */
static int input_error(const struct bit_program *program, const void *input, int kind, int64_t batch) {
    const int rounds = kind == BIT_INPUT_FLOAT || kind == BIT_INPUT_FLOAT_LAST;
    if (kind < 0 || kind > BIT_INPUT_FLOAT_LAST || batch < 0 || (rounds && program->step == 0) ||
        ((rounds || kind == BIT_INPUT_CHANNELS_LAST) && program->buffers[program->input].item != 1)) {
        return BIT_BAD_PROGRAM;
    }
    return input == NULL && batch > 0 ? BIT_NO_DATA : BIT_OK;
}

static const struct bit_conv_isa *kernels(int isa) {
    const struct bit_isa *set = bit_isa_get(isa);
    return set ? set->conv : &bit_conv_portable;
}

int bit_engine_run(int isa, const struct bit_program *program, const void *input, int kind, float scale,
                   int32_t *output, int64_t batch, int threads, uint8_t *arena, double *seconds) {
    const int error = input_error(program, input, kind, batch);
    if (error) {
        return error;
    }
    struct bit_run run = {
        .isa = kernels(isa),
        .program = program,
        .arena = arena,
        .output = output,
        .batch = batch,
        .input = input,
        .kind = kind,
        .scales = &scale,
        .scale_count = 1,
    };
    return run_program(&run, threads, 1, seconds);
}

/* Whether a program is one convolution whose results become floats, with one scale or one a channel, or a sample. */
static int float_error(const struct bit_program *program, const struct bit_output *out, int64_t x_scales,
                       int64_t batch) {
    const struct bit_step *last = program->steps + program->step_count - 1;
    if (program->step_count < 1 || last->post_count != 1 || last->posts->kind != BIT_POST_STORE ||
        program->buffers[last->posts->target].at >= 0 ||
        (out->weight_scales != 1 && out->weight_scales != program->buffers[last->posts->target].channels)) {
        return BIT_BAD_PROGRAM;
    }
    return x_scales > 1 && x_scales != batch ? BIT_BAD_INPUT : BIT_OK;
}

struct magnitudes {
    const struct bit_conv_isa *isa;
    const float *x;
    int64_t length; /* of a sample */
    uint32_t *largest;
};

#define PARTS 8 /* of a sample */

static void magnitude_task(void *job, int64_t index, void *scratch) {
    const struct magnitudes *m = job;
    const int64_t part = index % PARTS, begin = m->length * part / PARTS, end = m->length * (part + 1) / PARTS;
    (void)scratch;
    m->largest[index] = m->isa->magnitude(m->x + index / PARTS * m->length + begin, end - begin);
}

int bit_conv2d_float(int isa, const struct bit_program *program, const struct bit_output *out, const float *x, float *y,
                     int channels_last, const float *x_scale, int64_t x_scales, int64_t batch, int threads,
                     uint8_t *arena) {
    const int kind = channels_last ? BIT_INPUT_FLOAT_LAST : BIT_INPUT_FLOAT, bad = input_error(program, x, kind, batch);
    const int error = bad ? bad : float_error(program, out, x_scales, batch);
    if (error) {
        return error;
    }
    const struct bit_buffer *buffer = program->buffers + program->input;
    const int64_t channels = program->buffers[program->steps[program->step_count - 1].posts->target].channels;
    const int64_t area =
        (buffer->height - 2 * (int64_t)program->border[0]) * (buffer->width - 2 * (int64_t)program->border[1]);
    const int64_t scales = x_scales != 0 ? (x_scales < 0 ? 1 : x_scales) : batch;
    double *grid = bit_scratch(0, (size_t)(scales * channels * 12 + batch * (PARTS + 1) * 4));
    if (grid == NULL) {
        return BIT_NO_MEMORY;
    }
    float *factors = (float *)(grid + scales * channels), *dynamic = factors + scales * channels;
    if (x_scales <= 0) {
        struct magnitudes m = {kernels(isa), x, buffer->channels * area, (uint32_t *)(dynamic + batch)};
        if (bit_parallel(magnitude_task, &m, batch * PARTS, threads, 64)) {
            return BIT_NO_MEMORY;
        }
        const int64_t each = batch * PARTS / scales;
        for (int64_t i = 0; i < scales; i++) {
            uint32_t largest = 0;
            for (int64_t j = i * each; j < (i + 1) * each; j++) {
                largest = m.largest[j] > largest ? m.largest[j] : largest;
            }
            dynamic[i] = bit_dynamic_scale(largest, program->high);
        }
        x_scale = dynamic;
    }
    const int on_grid = out->bias != NULL && out->bias_on_grid;
    for (int64_t i = 0; i < scales; i++) {
        bit_scales_of(out, x_scale[i], 0, channels, factors + i * channels, on_grid ? grid + i * channels : NULL);
    }
    struct bit_run run = {
        .isa = kernels(isa),
        .program = program,
        .arena = arena,
        .batch = batch,
        .input = x,
        .kind = kind,
        .scales = x_scale,
        .scale_count = scales,
        .out = *out,
        .factors = factors,
        .grid = on_grid ? grid : NULL,
    };
    run.out.reals = y;
    return run_program(&run, threads, 0, NULL);
}
