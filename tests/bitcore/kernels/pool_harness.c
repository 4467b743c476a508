/* Several threads give the thread pool jobs at the same time: every part of every job runs once, in memory of its own.
 * Built with -fsanitize=thread, it finds what two threads touch without saying so. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "bit_simd.h"

#define CALLERS 4
#define MOST_PARTS 64

struct job {
    int64_t parts[MOST_PARTS]; /* how often each ran; no atomics: each belongs to the thread that runs it */
    int64_t input;
    size_t bytes;
};

static int jobs;
static atomic_int failures, callers_done;

static void task(void *given, int64_t index, void *scratch) {
    struct job *job = given;
    unsigned char *memory = scratch;
    for (size_t i = 0; i < job->bytes; i += 16) { /* nobody else may have it meanwhile */
        memory[i] = (unsigned char)(index + (int64_t)i);
    }
    for (size_t i = 0; i < job->bytes; i += 16) {
        if (memory[i] != (unsigned char)(index + (int64_t)i)) {
            atomic_fetch_add(&failures, 1);
        }
    }
    job->parts[index] += job->input;
}

static void *caller(void *given) {
    unsigned state = 1 + *(unsigned *)given;
    for (int i = 0; i < jobs; i++) {
        state = state * 1664525U + 1013904223U;
        struct job job = {.input = i + 1, .bytes = 64 + (state >> 8) % 4096};
        const int64_t count = (state >> 20) % (MOST_PARTS + 1);
        const int threads = 1 + (int)((state >> 12) % 6);
        if (bit_parallel(task, &job, count, threads, job.bytes)) {
            atomic_fetch_add(&failures, 1);
        }
        for (int64_t k = 0; k < MOST_PARTS; k++) {
            if (job.parts[k] != (k < count ? i + 1 : 0)) {
                atomic_fetch_add(&failures, 1);
            }
        }
        if ((state >> 16) % 64 == 0) { /* long enough for the pool's threads to fall asleep */
            usleep(200);
        }
    }
    atomic_fetch_add(&callers_done, 1);
    return NULL;
}

int main(int argc, char **argv) {
    jobs = argc > 1 ? atoi(argv[1]) : 1000;
    pthread_t threads[CALLERS];
    unsigned numbers[CALLERS];
    for (unsigned i = 0; i < CALLERS; i++) {
        numbers[i] = i * 7919;
        if (pthread_create(&threads[i], NULL, caller, &numbers[i])) {
            return 2;
        }
    }
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(threads[i], NULL);
    }
    printf("%d callers, %d jobs each, %d failures\n", atomic_load(&callers_done), jobs, atomic_load(&failures));
    return atomic_load(&failures) != 0;
}
