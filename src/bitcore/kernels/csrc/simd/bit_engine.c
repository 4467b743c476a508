/* Runs a program step by step, each divided among threads. */
#include <time.h>

#include "bit_engine.h"

#define LARGE_ITEM 8 /* tiles of one item of work at most: a block's weights are read once for all of them */

static int run_step(struct bit_run *run, int threads) {
    const struct bit_step *step = run->step;
    run->pixels = run->batch * step->height * step->width;
    switch (step->kind) {
    case BIT_STEP_NORMSHIFT:
        return bit_parallel(bit_normshift_task, run, run->batch, threads,
                            (size_t)(step->slots + 1) * BIT_TILE_PIXELS * BIT_TILE_ROWS * sizeof(int32_t));
    case BIT_STEP_SIGNS:
        return bit_parallel(bit_signs_task, run, run->batch, threads, 64);
    case BIT_STEP_FLATTEN:
        return bit_parallel(bit_flatten_task, run, run->batch, threads, 64);
    default: {
        const int64_t all = (run->pixels + BIT_TILE_PIXELS - 1) / BIT_TILE_PIXELS;
        const int64_t wanted = threads > 1 ? 4 * (int64_t)threads : 1;
        run->tiles = all / wanted < 1 ? 1 : all / wanted > LARGE_ITEM ? LARGE_ITEM : all / wanted;
        const int64_t items = (all + run->tiles - 1) / run->tiles, parts = (wanted + items - 1) / items;
        run->parts = parts < 1 ? 1 : parts > step->block_count ? step->block_count : parts;
        return bit_parallel(bit_tile_task, run, items * run->parts, threads, bit_tile_scratch(run));
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

int bit_engine_run(int isa, const struct bit_program *program, const void *input, int kind, float scale,
                   int32_t *output, int64_t batch, int threads, uint8_t *arena, double *seconds) {
    atomic_int failed = 0;
    double before = seconds ? now() : 0;
    const struct bit_isa *set = bit_isa_get(isa);
    struct bit_run run = {
        .isa = set ? set->conv : &bit_conv_portable,
        .program = program,
        .arena = arena,
        .output = output,
        .batch = batch,
        .input = input,
        .scale = scale,
        .kind = kind,
        .failed = &failed,
    };
    if (bit_parallel(bit_input_task, &run, batch * program->buffers[program->input].height, threads, 64)) {
        return BIT_NO_MEMORY;
    }
    if (failed) {
        return BIT_BAD_CODE;
    }
    before = lap(seconds, before);
    for (int64_t i = 0; i < program->step_count; i++) {
        run.step = program->steps + i;
        if (run_step(&run, threads)) {
            return BIT_NO_MEMORY;
        }
        before = lap(seconds ? seconds + 1 + i : NULL, before);
    }
    return BIT_OK;
}
