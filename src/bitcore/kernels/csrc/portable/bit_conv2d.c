/* Convolution, requantization and max pooling in one pass: no map of accumulators, and none that a pooling shrinks. */
#include "bit_store.h"

/* What is being computed: one pixel, or two neighbours in the lower and upper halves of the sums. */
typedef struct {
    const BitConv2d *layer;
    const uint8_t *x;
    uint8_t *y;
    const BitBuffers *buffers;
    uint32_t *sums;
    uint32_t count;              /* outputs of the block */
    uint32_t channel;            /* the first of them */
    int32_t row, column, offset; /* where the first pixel's window begins; may lie outside the map */
    int both;
} Job;

static void accumulate(const Job *job, BitCodes *codes) {
    const BitConv2d *const layer = job->layer;
    const BitWeights *const w = &layer->weights;
    BitInputs inputs = {0, 0, layer->flip, layer->window.channels};
    int32_t row = job->row;
    int32_t line = job->offset;
    for (uint32_t i = 0; i < job->count; i++) {
        job->sums[i] = 0;
    }
    for (uint32_t ky = layer->window.kernel_height; ky != 0; ky--) {
        int32_t column = row >= 0 && row < (int32_t)layer->window.height ? job->column : INT32_MIN / 2; /* outside */
        int32_t offset = line;
        for (uint32_t kx = layer->window.kernel_width; kx != 0; kx--) {
            const int32_t next = column + (int32_t)layer->window.stride_width;
            inputs.a = column >= 0 && column < (int32_t)layer->window.width ? job->x + offset : 0;
            inputs.b = 0;
            if (job->both && next >= 0 && next < (int32_t)layer->window.width) {
                inputs.b = job->x + offset + layer->window.stride_pixel;
            }
            w->columns(&inputs, codes, job->count, w->low, w->step, job->sums, job->sums + w->block);
            column += layer->window.dilation_width;
            offset += layer->window.dilated_pixel;
        }
        row += layer->window.dilation_height;
        line += layer->window.dilated_row;
    }
}

/* One sum of a pair. */
static int32_t half(uint32_t sum, int upper) {
    const int32_t low = bit_low_half(sum);
    return upper ? bit_shift_right((int32_t)(sum - (uint32_t)low), 16) : low;
}

/* Writes the results of one pixel to element `at`, or the larger ones of these and those already there. Where results
 * rise with the sums, the larger sum of two pooled pixels stands for both. */
static void finish(const Job *job, int upper, int larger, uint32_t at) {
    const BitConv2d *const layer = job->layer;
    for (uint32_t i = 0; i < job->count; i++) {
        const uint32_t channel = job->channel + i;
        int32_t value = (int32_t)job->sums[i];
        if (layer->pairs) {
            value = half(job->sums[i], upper);
            if (layer->rising && job->both) {
                const int32_t other = half(job->sums[i], 1);
                value = other > value ? other : value;
            }
        }
        value = layer->activate(value, channel, at + channel, job->buffers);
        if (!larger || value > bit_load(job->y, at + channel, layer->result)) {
            bit_store(job->y, at + channel, layer->result, value);
        }
    }
}

/* All outputs of the job's pixels. */
static void compute(Job *job, int larger, uint32_t at) {
    const BitConv2d *const layer = job->layer;
    BitCodes codes = layer->weights.codes;
    for (job->channel = 0; job->channel < layer->weights.outputs; job->channel += layer->weights.block) {
        const uint32_t left = layer->weights.outputs - job->channel;
        job->count = left < layer->weights.block ? left : layer->weights.block;
        accumulate(job, &codes);
        finish(job, 0, larger, at);
        if (job->both && !layer->rising) {
            finish(job, 1, layer->pooled, layer->pooled ? at : at + layer->weights.outputs);
        }
    }
}

void bit_conv2d(const BitConv2d *layer, const uint8_t *x, uint8_t *y, const BitBuffers *buffers, uint32_t *scratch) {
    const BitWindow *const window = &layer->window;
    Job job = {layer, x, y, buffers, scratch, 0, 0, 0, 0, 0, 0};
    uint32_t at = 0;
    int32_t top = -(int32_t)window->padding_height;
    int32_t start = window->first; /* offset of the first window of the row */
    for (uint32_t rows = layer->height; rows != 0; rows--) {
        int32_t left = -(int32_t)window->padding_width;
        int32_t offset = start;
        for (uint32_t columns = layer->width; columns != 0;) {
            const uint32_t pixels = layer->pooled ? layer->pool_width : layer->pairs && columns > 1 ? 2 : 1;
            job.row = top;
            for (uint32_t line = 0; line < layer->pool_height; line++) {
                job.column = left;
                job.offset = offset + (int32_t)bit_mul((uint32_t)window->stride_row, line);
                for (uint32_t rest = pixels; rest != 0; rest -= 1U + (uint32_t)job.both) {
                    job.both = layer->pairs && rest > 1;
                    compute(&job, layer->pooled && (line != 0 || rest != pixels), at);
                    job.column += (int32_t)((uint32_t)window->stride_width << job.both);
                    job.offset += (int32_t)((uint32_t)window->stride_pixel << job.both);
                }
                job.row += window->stride_height;
            }
            const unsigned two = !layer->pooled && pixels == 2; /* results that have been written */
            columns -= 1 + two;
            at += layer->weights.outputs << two;
            left += (int32_t)((uint32_t)layer->step_width << two);
            offset += (int32_t)((uint32_t)layer->step_pixel << two);
        }
        top += layer->step_height;
        start += layer->step_row;
    }
}
