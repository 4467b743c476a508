/* Compares what every instruction set of this machine does with tiles of a convolution with the portable C: products of
 * every number of bits, rows and pixels, signs, sums, what follows them; random and extreme values, taps and tails. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bit_conv.h"

#define CHANNELS 150 /* of an activation; not a multiple of a vector */
#define TAPS 9
#define TILE (BIT_TILE_PIXELS * BIT_TILE_ROWS)

static uint32_t state = 1;
static int8_t activations[64][CHANNELS + 64];
static uint8_t weights[TAPS * 64 * 1024];
static int32_t constant[BIT_TILE_ROWS], correction[BIT_TILE_PIXELS];
static const int8_t *pointers[TAPS * BIT_TILE_PIXELS];
static int failures, comparisons;

static uint32_t draw(void) {
    state = state * 1664525U + 1013904223U;
    return state >> 8;
}

/* extreme: 1, the largest products; 2, the smallest; 0: random ones */
static void fill(int extreme) {
    for (size_t i = 0; i < sizeof activations; i++) {
        ((int8_t *)activations)[i] = (int8_t)(extreme ? (extreme == 1 ? 127 : -128) : (int)draw());
    }
    for (size_t i = 0; i < sizeof weights; i++) {
        weights[i] = (uint8_t)(extreme ? 255 : draw());
    }
    for (int i = 0; i < TAPS * BIT_TILE_PIXELS; i++) {
        pointers[i] = activations[draw() % 64];
    }
    for (int i = 0; i < BIT_TILE_ROWS; i++) {
        constant[i] = (int32_t)draw() - (1 << 23);
    }
    for (int i = 0; i < BIT_TILE_PIXELS; i++) {
        correction[i] = (int32_t)draw() - (1 << 23);
    }
}

/* Of results that do not count, nothing is promised. */
static void expect(const char *what, const char *isa, const void *a, const void *b, size_t bytes) {
    comparisons++;
    if (memcmp(a, b, bytes) != 0) {
        failures++;
        printf("%s differs: %s\n", isa, what);
    }
}

static void expect_rows(const char *what, const char *isa, const int32_t *a, const int32_t *b, int pixels, int rows) {
    for (int p = 0; p < pixels; p++) {
        expect(what, isa, a + p * BIT_TILE_ROWS, b + p * BIT_TILE_ROWS, (size_t)rows * sizeof *a);
    }
}

static void products(const char *name, const struct bit_conv_isa *isa) {
    static int32_t a[TILE], b[TILE];
    for (int bits = 0; bits < 4; bits++) {
        for (int shape = 0; shape < 3; shape++) {
            for (int pixels = 1; pixels <= BIT_TILE_PIXELS; pixels++) {
                for (int units = 1; units < 12; units += bits ? 5 : 1) {
                    if (bits == 0 && units % 2) { /* of 1 bit, two share a vector */
                        continue;
                    }
                    const int taps = 1 + units % 3 * 4;
                    isa->product[bits][shape][pixels - 1](weights, pointers, taps, units, units % 2, correction,
                                                          constant, a);
                    bit_conv_portable.product[bits][shape][pixels - 1](weights, pointers, taps, units, units % 2,
                                                                       correction, constant, b);
                    expect_rows("product", name, a, b, pixels, 16 << shape);
                    isa->count[pixels - 1]((const uint64_t *)(const void *)weights, pointers, taps, units, 1 << shape,
                                           constant, a);
                    bit_conv_portable.count[pixels - 1]((const uint64_t *)(const void *)weights, pointers, taps, units,
                                                        1 << shape, constant, b);
                    expect_rows("count", name, a, b, pixels, 16 << shape);
                }
            }
        }
    }
    for (int rows = 1; rows <= BIT_TILE_ROWS; rows += 7) {
        int16_t levels[TAPS * 80];
        for (int i = 0; i < TAPS * 80; i++) {
            levels[i] = (int16_t)(draw() % 257 - 128);
        }
        isa->depthwise(levels, 80, pointers, TAPS, 5, rows, constant, a);
        bit_conv_portable.depthwise(levels, 80, pointers, TAPS, 5, rows, constant, b);
        expect_rows("depthwise", name, a, b, 5, rows);
        isa->sums(pointers, TAPS, 2 * rows + 1, 5, a);
        bit_conv_portable.sums(pointers, TAPS, 2 * rows + 1, 5, b);
        expect("sums", name, a, b, 5 * sizeof *a);
        uint64_t bits[2][3] = {{0}, {0}};
        isa->signs(activations[rows % 64], 2 * rows + 1, bits[0]);
        bit_conv_portable.signs(activations[rows % 64], 2 * rows + 1, bits[1]);
        expect("signs", name, bits[0], bits[1], sizeof bits[0]);
    }
}

static void posts(const char *name, const struct bit_conv_isa *isa) {
    static double factor[2 * BIT_TILE_ROWS], addend[2 * BIT_TILE_ROWS];
    static int64_t multiplier[2 * BIT_TILE_ROWS], bias[2 * BIT_TILE_ROWS], shift[2 * BIT_TILE_ROWS];
    static int32_t table[4 * 2 * BIT_TILE_ROWS];
    for (int i = 0; i < 2 * BIT_TILE_ROWS; i++) {
        shift[i] = i % 20;
        multiplier[i] = draw() % 32768;
        bias[i] = (int64_t)(draw() % 2000000) - 1000000;
        factor[i] = (double)multiplier[i] / (double)(1 << shift[i]);
        addend[i] = (double)bias[i] / (double)(1 << shift[i]);
        for (int k = 0; k < 3; k++) {
            table[2 * BIT_TILE_ROWS * k + i] = (k - 1) * 9000 + (int32_t)(draw() % 5000);
        }
        table[2 * BIT_TILE_ROWS * 3 + i] = draw() % 2 ? 1 : -1;
    }
    static int32_t big[TILE];
    for (int i = 0; i < TILE; i++) {
        big[i] = (int32_t)(draw() * 256U);
    }
    for (int rows = 1; rows <= BIT_TILE_ROWS; rows += 7) {
        const int shared = rows % 2;
        const int64_t first = shared ? 0 : BIT_TILE_ROWS;
        struct bit_post post = {.shared = shared, .low = -128, .high = 127, .in_double = rows % 3 != 0};
        post.factor = factor, post.addend = addend, post.table = table, post.count = 3;
        post.multiplier = multiplier, post.bias = bias, post.shift = shift, post.channels = 2 * BIT_TILE_ROWS;
        int32_t a[TILE], b[TILE];
        for (int i = 0; i < TILE; i++) {
            a[i] = b[i] = (int32_t)(draw() % 20000) - 10000;
        }
        isa->requantize(&post, a, 6, first, rows);
        bit_conv_portable.requantize(&post, b, 6, first, rows);
        expect_rows("requantize", name, a, b, 6, rows);
        post.low = -1, post.high = 2;
        isa->threshold(&post, a, 6, first, rows);
        bit_conv_portable.threshold(&post, b, 6, first, rows);
        expect_rows("threshold", name, a, b, 6, rows);
        for (int bytes = 1; bytes <= 4; bytes *= 2) {
            const void *from[] = {activations[0], activations[8], activations[17], activations[3]};
            const int offset = bytes == 1 ? 128 : 0;
            isa->add(activations[rows % 64], bytes, offset, rows / bytes, a);
            bit_conv_portable.add(activations[rows % 64], bytes, offset, rows / bytes, b);
            expect_rows("add", name, a, b, 1, rows);
            int8_t stored[2][4 * BIT_TILE_ROWS] = {{0}, {0}};
            isa->store(stored[0], bytes, offset, rows, a);
            bit_conv_portable.store(stored[1], bytes, offset, rows, b);
            expect("store", name, stored[0], stored[1], sizeof stored[0]);
            isa->largest(from, 1 + rows % 4, bytes, offset, rows / bytes, a);
            bit_conv_portable.largest(from, 1 + rows % 4, bytes, offset, rows / bytes, b);
            expect_rows("largest", name, a, b, 1, rows / bytes);
        }
        float x[BIT_TILE_ROWS];
        int8_t levels[2][BIT_TILE_ROWS] = {{0}, {0}};
        for (int i = 0; i < rows; i++) { /* many ties, some beyond the range */
            x[i] = (float)((int)(draw() % 1200) - 600) * 0.5f * 0.013f;
        }
        x[0] = rows % 7 ? 1e9f : NAN;
        const int range[4] = {rows % 3 ? -127 : -15, rows % 3 ? 127 : 15, rows % 3 ? 1 : 2, rows % 2 ? 0 : 7};
        uint8_t nan[2];
        failures += isa->magnitude(x, rows) != bit_conv_portable.magnitude(x, rows);
        failures += isa->quantize(x, levels[0], rows, 0.013f, range, nan) !=
                    bit_conv_portable.quantize(x, levels[1], rows, 0.013f, range, nan + 1);
        failures += nan[0] != nan[1] || nan[0] != (rows % 7 == 0);
        expect("quantize", name, levels[0], levels[1], sizeof levels[0]);
        for (int channels = 1; channels <= 4; channels++) {
            int8_t planes[2][5 * BIT_TILE_ROWS] = {{0}, {0}};
            const int n = rows / 4 + 1,
                      more = isa->quantize_planes(x, (rows - n) / 4, channels, n, 0.013f, range, planes[0], 5);
            failures +=
                more != bit_conv_portable.quantize_planes(x, (rows - n) / 4, channels, n, 0.013f, range, planes[1], 5);
            expect("quantize planes", name, planes[0], planes[1], sizeof planes[0]);
        }
        float scales[BIT_TILE_ROWS], biases[BIT_TILE_ROWS];
        for (int i = 0; i < BIT_TILE_ROWS; i++) {
            scales[i] = 0.01f * (float)(draw() % 100), biases[i] = (float)draw();
        }
        for (int kind = 0; kind < 6; kind++) {
            float y[2][TILE] = {{0}, {0}};
            const float *bias = kind % 3 ? biases : NULL;
            const double *grid = kind % 3 == 2 ? addend : NULL;
            const int64_t pixel = kind < 3 ? BIT_TILE_ROWS : 1, channel = kind < 3 ? 1 : BIT_TILE_PIXELS;
            isa->reals(big, scales, bias, grid, 1 + rows % 6, rows, y[0], pixel, channel);
            bit_conv_portable.reals(big, scales, bias, grid, 1 + rows % 6, rows, y[1], pixel, channel);
            expect("reals", name, y[0], y[1], sizeof y[0]);
        }
    }
}

int main(void) {
    for (int isa = 0; bit_isa_name(isa) != NULL; isa++) {
        const struct bit_isa *set = bit_isa_get(isa);
        for (int extreme = 0; set != NULL && extreme < 3; extreme++) {
            fill(extreme);
            products(set->name, set->conv);
            posts(set->name, set->conv);
        }
        printf("%s ", set != NULL ? set->name : "");
    }
    printf("%d comparisons, %d failures\n", comparisons, failures);
    return failures != 0 || comparisons == 0;
}
