/* Runs programs of the engine that Python wrote (test_simd_harness.py): every instruction set of this machine, and the
 * portable C, must give what the interpreter gave. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bit_engine.h"

/* All of it in one block of memory; addresses are written as offsets in it, plus 1. */
struct file {
    int64_t bytes, cases, first_case; /* offset of the cases */
    int64_t addresses, first_address; /* how many, and where those are that lie in the block */
};

struct trial {
    const struct bit_program *program;
    const int32_t *input, *expected;
    int64_t batch;
};

static uint8_t *load(const char *path) {
    struct file head;
    FILE *file = fopen(path, "rb");
    if (file == NULL || fread(&head, sizeof head, 1, file) != 1 || fseek(file, 0, SEEK_SET)) {
        return NULL;
    }
    uint8_t *block = aligned_alloc(64, (size_t)head.bytes);
    const size_t got = block != NULL ? fread(block, 1, (size_t)head.bytes, file) : 0;
    fclose(file);
    if (got != (size_t)head.bytes) {
        return NULL;
    }
    for (int64_t i = 0; i < head.addresses; i++) {
        int64_t where;
        uintptr_t address;
        memcpy(&where, block + head.first_address + 8 * i, sizeof where);
        memcpy(&address, block + where, sizeof address);
        address += (uintptr_t)block - 1;
        memcpy(block + where, &address, sizeof address);
    }
    return block;
}

static int differs(const struct trial *trial, int isa, int threads) {
    const size_t output = (size_t)(trial->batch * trial->program->output_bytes);
    const size_t arena_bytes = (size_t)(trial->batch * trial->program->arena_bytes + 4096);
    int32_t *y = malloc(output);
    uint8_t *arena = aligned_alloc(64, (arena_bytes + 63) / 64 * 64);
    memset(arena, 0x5a, arena_bytes);
    const int error =
        bit_engine_run(isa, trial->program, trial->input, BIT_INPUT_INT32, 0, y, trial->batch, threads, arena, NULL);
    const int bad = error || memcmp(y, trial->expected, output) != 0;
    free(arena), free(y);
    return bad;
}

int main(int argc, char **argv) {
    uint8_t *block = argc > 1 ? load(argv[1]) : NULL;
    if (block == NULL) {
        return 2;
    }
    const struct file *head = (const void *)block;
    const struct trial *trials = (const void *)(block + head->first_case);
    int failures = 0, ran = 0;
    for (int64_t i = 0; i < head->cases; i++) {
        int64_t step;
        const int problem = bit_program_check(trials[i].program, &step);
        if (problem) {
            printf("program %d is refused: problem %d of step %d\n", (int)i, problem, (int)step);
            failures++;
        }
        for (int isa = -1; isa < 0 || bit_isa_name(isa) != NULL; isa++) {
            if (problem || (isa >= 0 && !bit_isa_supported(isa))) {
                continue;
            }
            for (int threads = 1; threads <= 2; threads++, ran++) {
                if (differs(trials + i, isa, threads)) {
                    printf("program %d differs: %s\n", (int)i, isa < 0 ? "portable" : bit_isa_name(isa));
                    failures++;
                }
            }
        }
    }
    for (int isa = 0; bit_isa_name(isa) != NULL; isa++) {
        printf("%s ", bit_isa_supported(isa) ? bit_isa_name(isa) : "");
    }
    printf("%d runs, %d failures\n", ran, failures);
    free(block);
    return failures != 0 || ran == 0;
}
