/* Internal interface of the vector kernels: the machine layout of weights, the instruction sets, the thread pool.
 *
 * One layout serves every instruction set, so `prepare` is written once. It is never saved.
 *
 * A weight [outputs][inputs] is cut into groups of R output rows. A group is a run of units, each holding all R rows
 * for 4 consecutive inputs. A unit is V vectors of 64 bytes: byte 4 * lane + i of a vector belongs to input i of the
 * four, and to F rows, one in each field (or base-3 digit) of the byte. Row r of a group is lane r % 16 of block
 * r / 16, and block b is field b % F of vector b / F. So 4 inputs of 16 rows meet in one vector register, and the dot
 * product instructions (4 bytes to one 32-bit lane) give 16 rows at once, with no sum across lanes.
 *
 * BIT_LAYOUT_BITS, for weights and activations -1 and +1, packs signs (1 for -1) instead: a unit holds 64 inputs of
 * 16 rows, one 64-bit word a row.
 */
#ifndef BIT_SIMD_H
#define BIT_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "bit_api.h"

enum bit_layout {
    BIT_LAYOUT_8BIT,    /* one code a byte: R = 64, V = 4, F = 1 */
    BIT_LAYOUT_4BIT,    /* R = 64, V = 2, F = 2 */
    BIT_LAYOUT_2BIT,    /* R = 64, V = 1, F = 4 */
    BIT_LAYOUT_1BIT,    /* R = 128, V = 1, F = 8 */
    BIT_LAYOUT_TERNARY, /* five base-3 digits a byte, 1.6 bits a weight: R = 80, V = 1, F = 5 */
    BIT_LAYOUT_BITS,    /* signs, for signs: R = 16 */
    BIT_LAYOUTS
};

#define BIT_LANES 16      /* rows of a block */
#define BIT_MAX_ROWS 128  /* R is never larger */
#define BIT_MAX_TOKENS 8  /* activation rows of one call of a micro kernel */
#define BIT_UNIT_INPUTS 4 /* inputs of a unit */
/* Inputs of a run of units are padded to a multiple of this, so that loops over units may be unrolled 4 times. */
#define BIT_INPUT_PADDING 16
/* Units whose nested fields may be summed in 32 bits: 65536 * inputs <= 2**31, see bit_linear_avx512.c. */
#define BIT_MAX_UNITS 4096

/* What a prepared weight begins with; row sums (int32, of every padded row) and the groups' units follow. */
struct bit_prepared {
    uint32_t magic;
    int32_t layout;
    int64_t outputs, inputs;
    int64_t groups, units; /* units of a group */
    int64_t rows_at, units_at, bytes;
    /* A row's sum of level * x is: step * (sum of value * x) + base * (sum of x), value being the code, or
     * table[0][code] - table[1][code] where tables > 0 (then the second table counts if tables == 2). */
    int32_t base, step;
    int32_t tables;
    int32_t largest; /* value */
    uint8_t table[2][16];
};

/* Adds, for `tokens` rows of x, sum(value * x) over `units` units of one group to acc[token * acc_stride + row]. */
typedef void (*bit_micro)(const uint8_t *weight, const int8_t *x, ptrdiff_t x_stride, int64_t units, int32_t *acc,
                          ptrdiff_t acc_stride);

/* How accumulators become outputs; see bit_floats.h. */
struct bit_output {
    int32_t *integers;         /* int32 outputs, or NULL for */
    float *reals;              /* float outputs */
    const float *weight_scale; /* one, or one an output */
    const float *bias;         /* one an output, or NULL */
    int64_t weight_scales;
    int bias_on_grid; /* round the bias to the accumulator's grid */
};

struct bit_conv_isa; /* bit_conv.h */

/* A prepared weight for float activations: level = table[code], or base + step * code where it is affine. */
struct bit_real_weight {
    int64_t units;
    int32_t bits, affine;
    float base, step, table[16]; /* code & 15 where codes have fewer bits */
};

/* The scale of `largest` (bits of a float): largest / high, or 1 where that is no positive finite number. */
static inline float bit_dynamic_scale(uint32_t largest, int high) {
    float magnitude;
    memcpy(&magnitude, &largest, sizeof magnitude);
    const float scale = magnitude / (float)high;
    return largest < 0x7f800000U && scale > 1e-30f && scale <= 3.4028235e38f ? scale : 1.0f;
}

/* One instruction set. Pointers may be NULL: what the driver then does is in bit_linear_simd.c. */
struct bit_isa {
    const char *name;
    const struct bit_conv_isa *conv;
    int (*supported)(void);
    /* Subtracted by product[BIT_LAYOUT_8BIT] from values (instructions with two signed operands want int8). */
    int value_offset;
    /* [layout][tokens]; 8BIT takes values up to 255. */
    bit_micro product[BIT_LAYOUTS][BIT_MAX_TOKENS + 1];
    /* The same on units of bytes, unpacked from other layouts: 4 blocks of values up to 15 or 3, and the ternary
     * layout's 5 blocks. */
    bit_micro panel_to15[BIT_MAX_TOKENS + 1], panel_to3[BIT_MAX_TOKENS + 1], panel_ternary[BIT_MAX_TOKENS + 1];
    /* Beyond so many activation rows, 1-, 2-, 4-bit and ternary layouts are unpacked first; 0: never. */
    int direct_tokens, direct_ternary_tokens;
    /* values (one a byte, blocks of 16 rows) of a group's units; `half` is which 4 blocks of 8 */
    void (*unpack)(const struct bit_prepared *weight, const uint8_t *units, int64_t count, int plane, int half,
                   uint8_t *panel);
    /* largest |x| of n floats, as its bits (a NaN compares above infinity) */
    uint32_t (*largest)(const float *x, int64_t n);
    /* levels of x / scale, minus offset; returns their sum */
    int32_t (*quantize)(const float *x, int8_t *levels, int64_t n, float scale, const int *range, uint8_t *nan);
    int32_t (*copy)(const uint8_t *x, int8_t *levels, int64_t n, int flip);
    void (*signs)(const float *x, uint64_t *bits, int64_t n, float scale, uint8_t *nan);
    void (*finish)(const struct bit_prepared *weight, const struct bit_output *out, int64_t token, int64_t first,
                   int64_t n, const int32_t *acc, int32_t correction, int shifted, float scale, int nan);
    /* sums of level * x of a group, x being floats: see bit_reals.h */
    void (*real)(const struct bit_real_weight *weight, const uint8_t *units, const float *x, ptrdiff_t x_stride,
                 int tokens, float *y);
};

extern const struct bit_isa bit_isa_avx512, bit_isa_avxvnni, bit_isa_avx2, bit_isa_neon, bit_isa_i8mm;
extern const struct bit_conv_isa bit_conv_avx512, bit_conv_avxvnni, bit_conv_avx2, bit_conv_neon, bit_conv_i8mm,
    bit_conv_portable;

/* The instruction set of that number (in the order of bit_isa_name), or NULL where this machine lacks it. */
const struct bit_isa *bit_isa_get(int number);

/* ---- layout (bit_prepare.c) ---- */

struct bit_shape {
    int rows, vectors, fields, bits;
};
extern const struct bit_shape bit_shapes[BIT_LAYOUTS];

/* Checks all that a prepared weight's header says; NULL unless the bytes are a weight of this shape. Nothing beyond
 * `bytes` is read. `bit_prepared_of`: and its levels are those of a format. */
const struct bit_prepared *bit_prepared_check(const uint8_t *prepared, int64_t bytes, int64_t outputs, int64_t inputs);
const struct bit_prepared *bit_prepared_of(const struct bit_format *format, const uint8_t *prepared, int64_t bytes,
                                           int64_t outputs, int64_t inputs);

static inline int64_t bit_unit_bytes(int layout) {
    return layout == BIT_LAYOUT_BITS ? 8 * BIT_LANES : 64 * (int64_t)bit_shapes[layout].vectors;
}

static inline int64_t bit_round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

/* ---- threads (bit_pool.c) ---- */

/* Part `index` of a job; `scratch` is this thread's memory of the size that was asked for, aligned to 64 bytes. */
typedef void (*bit_task)(void *job, int64_t index, void *scratch);

/* Runs parts 0 ... count - 1 on up to `threads` threads, the caller among them; returns 1 if there is no memory.
 * Any thread may call it at any time; where the pool is taken, the caller does all parts itself. */
int bit_parallel(bit_task task, void *job, int64_t count, int threads, size_t scratch_bytes);

/* This thread's memory, kept until it ends; `slot` 0 belongs to callers, 1 to tasks. NULL if there is none. */
void *bit_scratch(int slot, size_t bytes);

#endif
