/* Whether a program may run: every buffer lies in the arena, every step reads what is there and was written, weights
 * and parameters are as long as their readers take them to be. Once a program, not once a call. Pointers and the
 * lengths of what they point to are Python's word; everything else may be a lie. */
#include "bit_engine.h"

#define SLACK 8           /* bytes behind a sample that products may read: units and pairs of them are whole */
#define MOST_TAPS 1 << 26 /* of a window: their pointers are kept for every pixel of a tile */

/* Of numbers that are not negative; INT64_MAX where int64 does not hold the product. */
static int64_t times(int64_t a, int64_t b) {
    int64_t product;
    return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

static int64_t whole_tiles(int64_t rows) { return bit_round_up(rows, BIT_TILE_ROWS); }

/* A step of a program and what it reads and makes. */
struct reader {
    const struct bit_program *program;
    const struct bit_step *step;
    const struct bit_buffer *source;
    int64_t taps, rows; /* rows: channels of the result */
};

/* ---- buffers ---- */

static int same_size(const struct bit_buffer *buffer, int32_t height, int32_t width) {
    return buffer->height == height && buffer->width == width;
}

static int buffer_fits(const struct bit_program *program, const struct bit_buffer *b) {
    const int item = b->item == 1 || b->item == 2 || b->item == 4, offset = b->item == 1 ? 128 : 0;
    if (b->height < 1 || b->width < 1 || b->channels < 1 || !item || (b->offset != 0 && b->offset != offset) ||
        (int64_t)b->channels * b->item > b->pixel || b->pixel % b->item != 0) {
        return 0;
    }
    const int64_t bytes = times((int64_t)b->height * b->width, b->pixel);
    if (b->at == -1) {
        return b->item == 4 && b->pixel == 4 * (int64_t)b->channels && bytes == b->bytes &&
               bytes == program->output_bytes;
    }
    return b->at >= 0 && b->at % 64 == 0 && b->bytes >= SLACK && bytes <= b->bytes - SLACK &&
           b->bytes <= program->arena_bytes - b->at;
}

static int input_fits(const struct bit_program *program) {
    if (program->input < 0 || program->input >= program->buffer_count) {
        return 0;
    }
    const struct bit_buffer *b = program->buffers + program->input;
    const int top = program->border[0], left = program->border[1];
    if (b->at < 0 || top < 0 || left < 0 || 2 * (int64_t)top >= b->height || 2 * (int64_t)left >= b->width ||
        ((top || left) && b->item != 1) || program->low > program->high || program->step < 0 || program->step > 2) {
        return 0;
    }
    const int64_t area = (b->height - 2 * (int64_t)top) * (b->width - 2 * (int64_t)left);
    if (times(area, b->channels) != program->input_count) {
        return 0;
    }
    const int64_t most = b->item == 1 ? 127 : b->item == 2 ? 32767 : INT32_MAX;
    return program->low - (int64_t)b->offset >= -most - 1 && program->high - (int64_t)b->offset <= most;
}

static int64_t rows_of(const struct bit_program *program, const struct bit_step *step) {
    if (step->kind == BIT_STEP_NORMSHIFT) {
        return program->buffers[step->source].channels;
    }
    const struct bit_block *last = step->blocks + step->block_count - 1;
    return step->block_count > 0 ? (int64_t)last->first + last->rows : 0;
}

/* Whether all channels of a buffer are there before post `post` of step `at`. */
static int is_written(const struct bit_program *program, int64_t buffer, int64_t at, int post) {
    int64_t rows = buffer == program->input ? INT32_MAX : 0;
    for (int64_t i = 0; i <= at && i < program->step_count; i++) {
        const struct bit_step *step = program->steps + i;
        if (i < at && (step->kind == BIT_STEP_SIGNS || step->kind == BIT_STEP_FLATTEN) && step->target == buffer) {
            return 1;
        }
        for (int k = 0; k < (i < at ? step->post_count : post); k++) {
            if (step->posts[k].kind == BIT_POST_STORE && step->posts[k].target == buffer) {
                rows += rows_of(program, step);
            }
        }
    }
    return rows >= program->buffers[buffer].channels;
}

/* ---- windows, blocks, weights ---- */

static int has_weights(const struct bit_step *step) { return step->kind <= BIT_STEP_PLAIN; }

static int is_pool(const struct bit_step *step) { return step->kind == BIT_STEP_MAX || step->kind == BIT_STEP_SUM; }

/* Pixels of a row that one tap reads: several where rows are read in one go. */
static int64_t pixels_of_tap(const struct reader *r) {
    const int in_rows = r->step->kind == BIT_STEP_PRODUCT && r->step->kernel[1] == 1 && !r->step->grouped;
    return in_rows && r->step->length > r->source->pixel
               ? bit_round_up(r->step->length, r->source->pixel) / r->source->pixel
               : 1;
}

static int window_fits(struct reader *r) {
    const struct bit_step *step = r->step;
    const int32_t sizes[2] = {r->source->height, r->source->width}, results[2] = {step->height, step->width};
    for (int i = 0; i < 2; i++) {
        const int64_t k = step->kernel[i], s = step->stride[i], p = step->padding[i], d = step->dilation[i];
        if (k < 1 || s < 1 || p < 0 || d < 1 || results[i] < 1 || (is_pool(step) && (p >= k || d != 1)) ||
            (step->kind == BIT_STEP_LOAD && (k != 1 || s != 1 || p != 0))) {
            return 0;
        }
        const int64_t span = i == 1 && pixels_of_tap(r) > 1 ? pixels_of_tap(r) : d * (k - 1) + 1;
        if ((span > 1 && i == 1 && pixels_of_tap(r) > 1 && p != 0) || span > sizes[i] + 2 * p ||
            (sizes[i] + 2 * p - span) / s + 1 != results[i]) {
            return 0;
        }
    }
    r->taps = (int64_t)step->kernel[0] * step->kernel[1];
    return step->planes >= 1 && step->planes <= 4 && (step->planes == 1 || step->kind == BIT_STEP_PRODUCT) &&
           times(r->taps, step->planes) <= MOST_TAPS;
}

/* Blocks follow each other without gaps. */
static int blocks_fit(struct reader *r) {
    r->rows = 0;
    for (int i = 0; i < r->step->block_count; i++) {
        const struct bit_block *b = r->step->blocks + i;
        if (b->first != r->rows || b->shape < 0 || b->shape > 2 || b->rows < 1 || b->rows > BIT_LANES << b->shape ||
            b->weight < 0 || b->channel < 0) {
            return 0;
        }
        r->rows += b->rows;
    }
    return r->rows > 0 && r->rows <= INT32_MAX - BIT_TILE_ROWS &&
           (has_weights(r->step) || r->rows == r->source->channels);
}

/* What taps read of a pixel: all channels, or with groups those of a block. */
static int inputs_fit(const struct reader *r) {
    const struct bit_step *step = r->step;
    const int64_t channels = (int64_t)r->source->channels * r->source->item;
    if (step->length < 1 || step->length % r->source->item != 0 || step->grouped < 0 || step->grouped > 1) {
        return 0;
    }
    const int64_t pixels = pixels_of_tap(r);
    int fits = step->grouped || step->length == times(channels, pixels);
    fits &= pixels == 1 || r->source->pixel == channels;
    for (int i = 0; i < step->block_count; i++) {
        const int64_t first = (int64_t)step->blocks[i].channel * r->source->item;
        fits &= step->grouped ? first + step->length <= channels : first == 0;
    }
    return fits;
}

static int64_t bytes_of_unit(const struct bit_step *step, const struct bit_block *b) {
    const int fields = 1 << b->shape;
    return step->bits == 3 ? 64 * fields : step->bits == 2 ? 64 * ((fields + 1) / 2) : 64;
}

static int product_fits(const struct reader *r) {
    const struct bit_step *step = r->step;
    if (r->source->item != 1 || step->bits < 0 || step->bits > 3 || step->shift < 0 || step->shift > 7 ||
        !inputs_fit(r) || step->units != bit_round_up(step->length, step->bits == 0 ? 8 : 4) / 4 ||
        ((step->padding[0] || step->padding[1]) &&
         r->program->zeros_bytes < (int64_t)r->source->pixel + 4 * step->units + BIT_TILE_ROWS)) {
        return 0;
    }
    const int64_t vectors = times(times(r->taps, step->planes), step->bits == 0 ? step->units / 2 : step->units);
    for (int i = 0; i < step->block_count; i++) {
        const struct bit_block *b = step->blocks + i;
        if (times(vectors, bytes_of_unit(step, b)) > step->weight_bytes - b->weight) {
            return 0;
        }
    }
    return 1;
}

static int count_fits(const struct reader *r) {
    const struct bit_step *step = r->step;
    if (r->source->item != 1 || step->units < 1 || times(8, step->units) > r->source->pixel || step->grouped ||
        r->program->zeros_bytes < r->source->pixel || step->stride_weight < r->rows ||
        times(r->taps, step->stride_weight) > step->tap_sums_count) {
        return 0;
    }
    for (int i = 0; i < step->block_count; i++) {
        const struct bit_block *b = step->blocks + i;
        if (b->channel != 0 ||
            times(times(r->taps, step->units), 8 * (BIT_LANES << b->shape)) > step->weight_bytes - b->weight) {
            return 0;
        }
    }
    return 1;
}

static int weights_fit(const struct reader *r) {
    const struct bit_step *step = r->step;
    if (!has_weights(step)) {
        return 1;
    }
    for (int i = 0; i < step->block_count; i++) {
        const struct bit_block *b = step->blocks + i;
        if (b->first + (int64_t)(step->kind == BIT_STEP_PLAIN ? b->rows : BIT_LANES << b->shape) >
            step->constant_count) {
            return 0;
        }
    }
    switch (step->kind) {
    case BIT_STEP_PRODUCT:
        return product_fits(r);
    case BIT_STEP_COUNT:
        return count_fits(r);
    case BIT_STEP_DEPTHWISE:
        return r->source->item == 1 && !step->grouped && r->rows == r->source->channels &&
               r->program->zeros_bytes >= (int64_t)r->source->pixel + BIT_TILE_ROWS &&
               step->stride_weight >= whole_tiles(r->rows) &&
               times(times(r->taps, step->stride_weight), 2) <= step->weight_bytes;
    default:
        return inputs_fit(r) &&
               times(times(r->rows, r->taps), times(step->length / r->source->item, 2)) <= step->weight_bytes;
    }
}

/* ---- posts ---- */

/* Which arrays there are, the kind decides, and that may be a lie. */
static int shifts_fit(const struct bit_post *post) {
    if (post->multiplier == NULL || post->bias == NULL || post->shift == NULL ||
        (post->in_double && (post->factor == NULL || post->addend == NULL))) {
        return 0;
    }
    for (int64_t i = 0; i < post->items; i++) {
        const int64_t most = (int64_t)1 << 61; /* with a product of int32, and half of 2**62, still within int64 */
        if (post->shift[i] < 0 || post->shift[i] > 62 || post->multiplier[i] < -INT32_MAX ||
            post->multiplier[i] > INT32_MAX || post->bias[i] < -most || post->bias[i] > most) {
            return 0;
        }
    }
    return 1;
}

static int thresholds_fit(const struct bit_post *post) {
    if (post->table == NULL || post->count < 0 || post->count > INT32_MAX ||
        times(post->count + 1, post->channels) > post->items ||
        post->low + (int64_t)post->high * post->count != (int32_t)(post->low + (int64_t)post->high * post->count)) {
        return 0;
    }
    const int32_t *sign = post->table + post->count * post->channels;
    for (int64_t i = 0; i < post->channels; i++) {
        if (sign[i] != 1 && sign[i] != -1) {
            return 0;
        }
    }
    return 1;
}

static int is_kept(const struct bit_step *step, int before, int32_t slot) {
    for (int i = 0; i < before; i++) {
        if (step->posts[i].kind == BIT_POST_KEEP && step->posts[i].target == slot) {
            return 1;
        }
    }
    return 0;
}

/* A buffer of the result's size that a tile is added from, or stored to. */
static int exchange_fits(const struct reader *r, int index) {
    const struct bit_post *post = r->step->posts + index;
    if (post->target < 0 || post->target >= r->program->buffer_count || post->low < 0) {
        return 0;
    }
    const struct bit_buffer *b = r->program->buffers + post->target;
    if (!same_size(b, r->step->height, r->step->width) || post->low + r->rows > b->channels) {
        return 0;
    }
    return post->kind == BIT_POST_ADD ? is_written(r->program, post->target, r->step - r->program->steps, index)
                                      : post->target != r->step->source && post->target != r->program->input;
}

static int post_fits(const struct reader *r, int index) {
    const struct bit_post *post = r->step->posts + index;
    const int64_t parameters = post->shared ? BIT_TILE_ROWS : whole_tiles(r->rows);
    switch (post->kind) {
    case BIT_POST_REQUANTIZE:
        return post->items >= parameters && shifts_fit(post) && post->low <= post->high;
    case BIT_POST_THRESHOLD:
        return post->channels >= parameters && thresholds_fit(post);
    case BIT_POST_LOOKUP:
        return post->table != NULL && post->items >= 256;
    case BIT_POST_ADD:
    case BIT_POST_STORE:
        return exchange_fits(r, index);
    case BIT_POST_KEEP:
    case BIT_POST_RESTORE:
        return post->target >= 0 && post->target < r->step->slots &&
               (post->kind == BIT_POST_KEEP || is_kept(r->step, index, post->target));
    default:
        return 0;
    }
}

/* ---- steps ---- */

/* Signs and flattened maps go to a buffer of their own. */
static int target_fits(const struct bit_program *program, const struct bit_step *step) {
    if (step->target < 0 || step->target >= program->buffer_count || step->target == step->source ||
        step->target == program->input || step->post_count != 0) {
        return 0;
    }
    const struct bit_buffer *source = program->buffers + step->source, *target = program->buffers + step->target;
    if (target->at < 0) {
        return 0;
    }
    if (step->kind == BIT_STEP_SIGNS) {
        return source->item == 1 && target->item == 1 && same_size(target, source->height, source->width) &&
               target->pixel >= bit_round_up(source->channels, 64) / 8 && target->pixel % 8 == 0;
    }
    return target->item == source->item && target->offset == source->offset && same_size(target, 1, 1) &&
           times((int64_t)source->height * source->width, source->channels) == target->channels;
}

static enum bit_problem step_problem(const struct bit_program *program, int64_t index) {
    struct reader r = {program, program->steps + index, NULL, 0, 0};
    const struct bit_step *step = r.step;
    if (step->kind < 0 || step->kind > BIT_STEP_FLATTEN || step->post_count < 0 || step->block_count < 0 ||
        step->slots < 0 || step->slots > step->post_count) {
        return BIT_PROBLEM_STEP;
    }
    if (step->source < 0 || step->source >= program->buffer_count || !is_written(program, step->source, index, 0)) {
        return BIT_PROBLEM_SOURCE;
    }
    r.source = program->buffers + step->source;
    if (step->kind == BIT_STEP_SIGNS || step->kind == BIT_STEP_FLATTEN) {
        return target_fits(program, step) ? BIT_NO_PROBLEM : BIT_PROBLEM_TARGET;
    }
    if (step->kind == BIT_STEP_NORMSHIFT) {
        r.rows = r.source->channels;
        if (!same_size(r.source, step->height, step->width) || step->high < 1) {
            return BIT_PROBLEM_WINDOW;
        }
    } else if (!window_fits(&r)) {
        return BIT_PROBLEM_WINDOW;
    } else if (!blocks_fit(&r)) {
        return BIT_PROBLEM_BLOCKS;
    } else if (!weights_fit(&r)) {
        return BIT_PROBLEM_WEIGHTS;
    }
    for (int i = 0; i < step->post_count; i++) {
        if (!post_fits(&r, i)) {
            return BIT_PROBLEM_POST;
        }
    }
    return BIT_NO_PROBLEM;
}

int bit_program_check(const struct bit_program *program, int64_t *step) {
    int64_t output = -1, outputs = 0;
    *step = -1;
    for (int64_t i = 0; i < program->buffer_count; i++) {
        if (!buffer_fits(program, program->buffers + i)) {
            return BIT_PROBLEM_BUFFER;
        }
        output = program->buffers[i].at < 0 ? i : output;
        outputs += program->buffers[i].at < 0;
    }
    if (outputs != 1 || program->arena_bytes < 0) {
        return BIT_PROBLEM_BUFFER;
    }
    if (!input_fits(program)) {
        return BIT_PROBLEM_INPUT;
    }
    for (*step = 0; *step < program->step_count; ++*step) {
        const enum bit_problem problem = step_problem(program, *step);
        if (problem != BIT_NO_PROBLEM) {
            return (int)problem;
        }
    }
    *step = -1;
    return is_written(program, output, program->step_count, 0) ? BIT_NO_PROBLEM : BIT_PROBLEM_OUTPUT;
}
