/* Products on Arm with dot product instructions (armv8.2-a+dotprod). */
#include "bit_neon.h"

DEFINE_COMMON(neon)
DEFINE_PANEL(8bit, 128, 4, 2, neon)
DEFINE_PANEL(8bit, 128, 4, 4, neon)
DEFINE_PANEL(to15, 0, 4, 2, neon)
DEFINE_PANEL(to15, 0, 4, 4, neon)
DEFINE_PANEL(ternary, 0, 5, 2, neon)
DEFINE_PANEL(ternary, 0, 5, 4, neon)

static int supported(void) { return HAS_DOT_PRODUCTS; }

#define UP_TO_4(name) NULL, name##_1, name##_2, NULL, name##_4
const struct bit_isa bit_isa_neon = {
    .name = "neon",
    .conv = &bit_conv_neon,
    .supported = supported,
    .value_offset = 128,
    PRODUCTS(neon, bit_linear_8bit_int8_neon_2, NULL, bit_linear_8bit_int8_neon_4),
    .direct_tokens = 2,
    .panel_to15 = {UP_TO_4(bit_linear_to15_int8_neon)},
    .panel_to3 = {UP_TO_4(bit_linear_to15_int8_neon)},
    .panel_ternary = {UP_TO_4(bit_linear_ternary_int8_neon)},
    BIT_ROWS,
    .real = bit_real,
};
