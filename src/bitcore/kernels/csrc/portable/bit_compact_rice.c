/* Rows of Rice codes: decoded while they are added. */
#include "bit_compact_dense.h"

/* Bits are taken from the top of a byte; a one behind its last bit marks the end. */
#define END 0x80000000U

typedef struct {
    const uint8_t *codes;
    uint32_t bits;
    uint32_t end; /* END, in a register where the compiler would otherwise make it again for each bit */
} Stream;

BIT_INLINE uint32_t refill(const uint8_t *codes) { return (uint32_t)BIT_FLASH8(codes) << 24 | END >> 8; }

/* Adds the weights that one input meets. */
static BIT_OUTLINE void add_input(Stream *stream, uint32_t above, uint32_t step, uint32_t *sum, const uint32_t *last) {
    const uint8_t *codes = stream->codes;
    uint32_t bits = stream->bits;
    const uint32_t end = stream->end;
    do {
        uint32_t value = above - step;
        uint32_t more = step;
        if (bits == end) {
            bits = refill(codes++);
        }
        if (bits >= END) { /* negative */
            value = above;
            more = 0U - step;
        }
        do {
            value += more;
            bits <<= 1;
            if (bits == end) {
                bits = refill(codes++);
            }
        } while (bits >= END);
        bits <<= 1;
        *sum++ += value;
    } while (sum != last);
    stream->codes = codes;
    stream->bits = bits;
}

void bit_compact_rice(const BitCompactDense *layer, const uint8_t *codes, const uint8_t *x, const uint8_t *end,
                      uint32_t *sum, const uint32_t *last, uint32_t *table) {
    Stream stream = {codes, END, END};
    do {
        const uint32_t word = bit_activation(layer, x++);
        const uint32_t odd = layer->step == 2; /* levels are odd numbers: 0 is none */
        add_input(&stream, odd ? word : 0, word << odd, sum, last);
    } while (x != end);
    (void)table;
}
