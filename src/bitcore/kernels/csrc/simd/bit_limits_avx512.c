/* What the processor can do at most, for rooflines: reads, 8-bit dot products, and counts of differing signs. */
#include <immintrin.h>

#include "bit_api.h"

#define CHAINS 16                       /* independent sums, to hide latencies */
#define UNROLL _Pragma("GCC unroll 16") /* all loops over them, or they stay in memory */
#define CLEAR(sum, count)                                                                                              \
    UNROLL for (int c = 0; c < (count); c++) { (sum)[c] = _mm512_setzero_si512(); }
#define USE(sum, count)                                                                                                \
    UNROLL for (int c = 0; c < (count); c++) { use((sum)[c]); }

static void use(__m512i x) { __asm__ volatile("" ::"v"(x)); }

void bit_limit_read(const uint8_t *memory, int64_t bytes) {
    __m512i sum[4];
    CLEAR(sum, 4)
    for (int64_t i = 0; i + 512 <= bytes; i += 512) {
        UNROLL for (int j = 0; j < 8; j++) {
            sum[j % 4] = _mm512_or_si512(sum[j % 4], _mm512_loadu_si512(memory + i + 64 * j));
        }
    }
    use(_mm512_or_si512(_mm512_or_si512(sum[0], sum[1]), _mm512_or_si512(sum[2], sum[3])));
}

/* 16 * 64 products a round. */
void bit_limit_dot(int64_t rounds) {
    const __m512i one = _mm512_set1_epi8(1);
    __m512i sum[CHAINS];
    CLEAR(sum, CHAINS)
    for (int64_t r = 0; r < rounds; r++) {
        UNROLL for (int i = 0; i < CHAINS; i++) { __asm__ volatile("vpdpbusd %1, %1, %0" : "+v"(sum[i]) : "v"(one)); }
    }
    USE(sum, CHAINS)
}

/* 16 * 512 products of signs a round: exclusive or, count, addition. */
void bit_limit_count(int64_t rounds) {
    const __m512i x = _mm512_set1_epi64(0x123456789abcdef), y = _mm512_set1_epi64(0x3141592653589793);
    __m512i sum[CHAINS], differ;
    CLEAR(sum, CHAINS)
    for (int64_t r = 0; r < rounds; r++) {
        UNROLL for (int i = 0; i < CHAINS; i++) {
            __asm__ volatile("vpxorq %3, %2, %1\n\tvpopcntq %1, %1\n\tvpaddq %1, %0, %0"
                             : "+v"(sum[i]), "=&v"(differ)
                             : "v"(x), "v"(y));
        }
    }
    USE(sum, CHAINS)
}
