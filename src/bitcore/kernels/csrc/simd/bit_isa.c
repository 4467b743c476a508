/* The instruction sets that this library was built with, best first. */
#include "bit_simd.h"

static const struct bit_isa *const sets[] = {
#if defined(BIT_X86)
    &bit_isa_avx512,
#if defined(BIT_AVXVNNI) /* the compiler knows it */
    &bit_isa_avxvnni,
#endif
    &bit_isa_avx2,
#elif defined(BIT_ARM)
    &bit_isa_i8mm,
    &bit_isa_neon,
#endif
    NULL,
};

const char *bit_isa_name(int isa) {
    const int count = (int)(sizeof sets / sizeof *sets) - 1;
    return isa >= 0 && isa < count ? sets[isa]->name : NULL;
}

int bit_isa_supported(int isa) { return bit_isa_name(isa) != NULL && sets[isa]->supported(); }

const struct bit_isa *bit_isa_get(int isa) { return bit_isa_supported(isa) ? sets[isa] : NULL; }
