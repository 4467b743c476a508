/* Compares every vector kernel that this machine runs with plain loops: every format in every layout that holds it,
 * int8, uint8 and float activations, shapes with tails, extreme values. `formats.h` comes from bitcore.formats. */
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bit_simd.h"
#include "formats.h"

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

static const struct {
    int rows, outputs, inputs;
} shapes[] = {{1, 1, 1}, {1, 7, 33}, {2, 65, 7}, {3, 130, 100}, {9, 33, 16}, {17, 81, 64}, {6, 16, 0}, {1, 2, 33001}};
static uint32_t state = 1;

static unsigned draw(unsigned n) {
    state = state * 1664525U + 1013904223U;
    return (state >> 8) % n;
}

static void pack(const struct bit_format *f, const uint8_t *codes, int64_t n, uint8_t *packed) {
    for (int64_t k = 0; k < n; k += f->codes, packed += f->word) {
        uint64_t word = 0, power = 1;
        for (int64_t i = k; i < k + f->codes && i < n; i++, power *= (uint64_t)f->radix) {
            word += codes[i] * power;
        }
        for (int i = 0; i < f->word; i++) {
            packed[i] = (uint8_t)(word >> 8 * i);
        }
    }
}

static float nearest(float u, const int *range) {
    u = range[2] == 1 ? rintf(u) : floorf(floorf(u) / 2) * 2 + 1;
    return u<(float)range[0] ? (float)range[0] : u>(float) range[1] ? (float)range[1] : u;
}

/* Whether products of float activations differ from sums in their one order, of packed or of plain levels. */
static int real_differs(int isa, const struct bit_format *f, const uint8_t *prepared, int64_t size,
                        const uint8_t *codes, const float *x, int64_t rows, int64_t outputs, int64_t inputs) {
    float *levels = malloc(sizeof(float) * (size_t)(outputs * inputs + 1));
    float *y = malloc(sizeof(float) * (size_t)(2 * rows * outputs)), *again = y + rows * outputs;
    int bad = bit_levels(f, prepared, size, outputs, inputs, levels) ||
              bit_linear_real(isa, f, prepared, size, x, y, rows, outputs, inputs, 2) ||
              bit_linear_levels(levels, x, again, rows, outputs, inputs, 2);
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t o = 0; o < outputs; o++) {
            float sum[4] = {0};
            for (int64_t k = 0; k < inputs; k++) {
                bad |= levels[o * inputs + k] != (float)f->levels[codes[o * inputs + k]];
                sum[k % 4] += levels[o * inputs + k] * x[row * inputs + k];
            }
            const float all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
            bad |= y[row * outputs + o] != all || again[row * outputs + o] != all;
        }
    }
    free(levels), free(y);
    return bad;
}

/* kind 0: int8, 1: uint8, 2 and on: float to the levels of `ranges` */
static const int ranges[][3] = {{-127, 127, 1}, {0, 255, 1}, {-8, 7, 1}, {-1, 1, 2}, {-15, 15, 2}};

static int compare(int isa, const struct bit_format *f, int layout, int shape, int kind, int extreme) {
    const int64_t rows = shapes[shape].rows, outputs = shapes[shape].outputs, inputs = shapes[shape].inputs;
    const int64_t row_bytes = (inputs + f->codes - 1) / f->codes * f->word;
    uint8_t *codes = malloc((size_t)(outputs * inputs) + 1), *packed = calloc((size_t)(outputs * row_bytes) + 1, 1);
    uint8_t *again = calloc((size_t)(outputs * row_bytes) + 1, 1);
    int *levels = malloc(sizeof(int) * (size_t)(rows * inputs + 1));
    float *reals = malloc(sizeof(float) * (size_t)(rows * inputs + 1)),
          *y = malloc(sizeof(float) * (size_t)(rows * outputs));
    float *scale = malloc(sizeof(float) * (size_t)rows), *weight_scale = malloc(sizeof(float) * (size_t)outputs);
    float *bias = malloc(sizeof(float) * (size_t)outputs);
    uint8_t *bytes = malloc((size_t)(rows * inputs) + 1), *prepared = NULL;
    int32_t *sums = malloc(sizeof(int32_t) * (size_t)(rows * outputs));
    const int signs = layout == BIT_LAYOUT_BITS, last = f->count - 1;
    int bad = 0, low = 0, high = 0;
    for (int i = 0; i < f->count; i++) {
        low = f->levels[i] < f->levels[low] ? i : low;
        high = f->levels[i] > f->levels[high] ? i : high;
    }
    for (int64_t i = 0; i < outputs * inputs; i++) {
        codes[i] = (uint8_t)(extreme ? (i / (inputs + 1) % 2 ? low : high) : (int)draw((unsigned)last + 1));
    }
    for (int64_t i = 0; i < outputs; i++) {
        pack(f, codes + i * inputs, inputs, packed + i * row_bytes);
        weight_scale[i] = 0.01f * (float)(i + 1);
        bias[i] = (float)draw(1000) * 0.37f - 100;
    }
    const int64_t size = bit_prepared_bytes(layout, outputs, inputs);
    if (posix_memalign((void **)&prepared, 64, (size_t)size) ||
        bit_prepare(f, layout, packed, row_bytes, outputs, inputs, prepared) ||
        bit_unprepare(f, prepared, size, outputs, inputs, again, row_bytes) ||
        memcmp(packed, again, (size_t)(outputs * row_bytes))) {
        printf("layout %d does not give a weight back\n", layout);
        return 1;
    }
    const int *range = ranges[kind < 2 ? 0 : signs ? 3 : kind - 2];
    for (int64_t row = 0; row < rows; row++) {
        scale[row] = 0.013f * (float)(row + 1);
        for (int64_t i = row * inputs; i < (row + 1) * inputs; i++) {
            if (kind < 2) {
                const int value = extreme ? (i % 2 || extreme == 1 ? 0 : 255) : (int)draw(256);
                bytes[i] = (uint8_t)(signs ? (draw(2) ? 1 : 255) : kind ? value : extreme == 1 ? 128 : value);
                levels[i] = kind ? bytes[i] : (int8_t)bytes[i];
            } else { /* many ties, some beyond the range */
                reals[i] = extreme ? (extreme == 1 ? -1e9f : 1e9f) : (float)((int)draw(1100) - 550) * 0.5f * scale[row];
                levels[i] = (int)nearest(reals[i] / scale[row], range);
            }
        }
    }
    const struct bit_linear_layer layer = {prepared, size, outputs,  inputs,   weight_scale, outputs,
                                           bias,     isa,  range[0], range[1], range[2],     extreme ? 1 : 0};
    const int error = kind < 2 ? bit_linear_int8_simd(isa, prepared, size, bytes, kind, sums, rows, outputs, inputs, 2)
                               : bit_linear_float_simd(&layer, reals, y, rows, 2, scale, rows);
    for (int64_t row = 0; row < rows && !bad; row++) {
        for (int64_t o = 0; o < outputs && !bad; o++) {
            int64_t sum = 0;
            for (int64_t k = 0; k < inputs; k++) {
                sum += (int64_t)f->levels[codes[o * inputs + k]] * levels[row * inputs + k];
            }
            if (kind < 2) {
                bad = sums[row * outputs + o] != sum;
            } else {
                const float s = scale[row] * weight_scale[o];
                const float product = (float)sum * s;
                const float real =
                    extreme ? (float)((double)sum + rint((double)bias[o] / (double)s)) * s : product + bias[o];
                bad = y[row * outputs + o] != real;
            }
        }
    }
    if (kind >= 2 && !signs && layout != BIT_LAYOUT_TERNARY) {
        bad |= real_differs(isa, f, prepared, size, codes, reals, rows, outputs, inputs);
    }
    if (bad || error) {
        printf("%s layout %d, %ld x %ld x %ld, activation %d, extreme %d: error %d\n", bit_isa_name(isa), layout,
               (long)rows, (long)outputs, (long)inputs, kind, extreme, error);
    }
    free(codes), free(packed), free(again), free(levels), free(reals), free(y), free(scale), free(weight_scale);
    free(bias), free(bytes), free(prepared), free(sums);
    return bad || error;
}

#ifdef BIT_X86
/* OpenMP as the pool sees it: a second thread, which spins between regions or sleeps. */
static struct {
    void (*part)(void *);
    void *data;
    atomic_int regions, done, spins;
} openmp;
static _Thread_local int thread_number;

int omp_get_thread_num(void) { return thread_number; }

static void *second_thread(void *unused) {
    thread_number = 1;
    for (;;) {
        const int region = atomic_load(&openmp.regions);
        if (region != atomic_load(&openmp.done)) {
            openmp.part(openmp.data);
            atomic_store(&openmp.done, region);
        } else if (!atomic_load(&openmp.spins)) {
            usleep(1000);
        }
    }
    return unused;
}

void GOMP_parallel(void (*part)(void *), void *data, unsigned threads, unsigned flags) {
    static pthread_t second;
    if (threads != 2 || flags != 0 || (!second && pthread_create(&second, NULL, second_thread, NULL))) {
        abort();
    }
    openmp.part = part;
    openmp.data = data;
    const int region = atomic_fetch_add(&openmp.regions, 1) + 1;
    part(data);
    while (atomic_load(&openmp.done) != region) {
        sched_yield();
    }
}

static int compare_once(void) {
    int isa = 0;
    while (!bit_isa_supported(isa)) {
        isa++;
    }
    return compare(isa, formats, BIT_LAYOUT_8BIT, 5, 0, 0);
}

/* While OpenMP's threads spin and the pool's sleep, jobs go to OpenMP's; but they need a second core for that. */
static int openmp_fails(void) {
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof cores, &cores) || CPU_COUNT(&cores) < 2) {
        return 0;
    }
    atomic_store(&openmp.spins, 1);
    int bad = 0, before = atomic_load(&openmp.regions);
    for (int i = 0; i < 5000 && atomic_load(&openmp.regions) < before + 4 && !bad; i++) {
        usleep(1000);
        bad = compare_once();
    }
    return bad || atomic_load(&openmp.regions) < before + 4;
}

/* A child has none of the threads that its parent had, OpenMP's neither. */
static int a_fork_fails(void) {
    const pid_t child = fork();
    if (child == 0) {
        alarm(60); /* of threads that are not there, it would wait for ever */
        _exit(compare_once());
    }
    int status = 1;
    waitpid(child, &status, 0);
    return status != 0;
}
#else /* emulators cannot start threads in a child */
static int openmp_fails(void) { return 0; }
static int a_fork_fails(void) { return 0; }
#endif

int main(void) {
    int failures = 0, ran = 0;
    for (int isa = 0; bit_isa_name(isa) != NULL; isa++) {
        if (!bit_isa_supported(isa)) {
            continue;
        }
        for (int i = 0; i < COUNT(formats); i++) {
            int held = 0;
            for (int layout = 0; layout < BIT_LAYOUTS; layout++) {
                uint8_t *probe = malloc((size_t)bit_prepared_bytes(layout, 1, 0));
                const int holds = bit_prepare(formats + i, layout, NULL, 0, 1, 0, probe) == BIT_OK;
                free(probe);
                held += holds;
                for (int shape = 0; holds && shape < COUNT(shapes); shape++) {
                    const int large = shape == COUNT(shapes) - 1;
                    for (int kind = 0; kind < (large ? 3 : 2 + COUNT(ranges)); kind++) {
                        const int extreme = large ? 1 + kind % 2 : 0;
                        if (layout == BIT_LAYOUT_BITS && kind == 1) { /* unsigned levels have no sign */
                            continue;
                        }
                        failures += compare(isa, formats + i, layout, shape, kind, extreme);
                        ran++;
                    }
                }
            }
            failures += held == 0;
        }
        printf("%s ", bit_isa_name(isa));
    }
    failures += openmp_fails();
    failures += a_fork_fails();
    printf("%d comparisons, %d failures\n", ran, failures);
    return failures != 0 || ran == 0;
}
