/* `vpdpbusd` on 256 bits adds 4 products of unsigned and signed bytes to each 32-bit lane, modulo 2**32 and without
 * saturation. Processors without AVX-512 have it as AVX-VNNI. Compiled for AVX-512 VNNI and VL in its place, these
 * kernels compute the same: so machines that lack AVX-VNNI can test them.
 */
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVXVNNI__)
#define DOT "%{vex%} vpdpbusd"
#else
#define DOT "vpdpbusd"
#endif

/* The intrinsic makes gcc 12 copy every accumulator twice. */
INLINE __m256i dot_bytes(__m256i sum, __m256i unsigned_bytes, __m256i signed_bytes) {
    __asm__(DOT " %2, %1, %0" : "+x"(sum) : "x"(unsigned_bytes), "x"(signed_bytes));
    return sum;
}
