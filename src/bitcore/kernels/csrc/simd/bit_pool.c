/* A small persistent thread pool. Parts of a job are claimed one by one, and the caller works too, so it never waits
 * for a thread that is asleep or was preempted before it began: late threads find the job closed. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "bit_simd.h"

#define MAX_WORKERS 63
#define SPINS 2000 /* some 20 microseconds: layers follow each other closely */

#if defined(__x86_64__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() (void)0
#endif

static struct {
    /* the job; written by the one caller that holds `taken`, read while `open` */
    bit_task task;
    void *job;
    int64_t count;
    size_t scratch_bytes;
    int helpers;
    atomic_flag taken;
    atomic_int open, inside, joined, sleeping;
    atomic_llong next;
    atomic_uint generation;
    int workers;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
} pool = {.taken = ATOMIC_FLAG_INIT, .mutex = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;

struct slots {
    void *memory[2];
    size_t bytes[2];
};

static void free_slots(void *p) {
    struct slots *slots = p;
    free(slots->memory[0]);
    free(slots->memory[1]);
    free(slots);
}

/* A forked child has no workers. */
static void reset_in_child(void) {
    pool.workers = 0;
    atomic_store(&pool.open, 0);
    atomic_store(&pool.inside, 0);
    atomic_store(&pool.sleeping, 0);
    atomic_flag_clear(&pool.taken);
    pthread_mutex_init(&pool.mutex, NULL);
    pthread_cond_init(&pool.wake, NULL);
}

static void initialize(void) {
    pthread_key_create(&key, free_slots);
    pthread_atfork(NULL, NULL, reset_in_child);
}

void *bit_scratch(int slot, size_t bytes) {
    pthread_once(&once, initialize);
    struct slots *slots = pthread_getspecific(key);
    if (slots == NULL) {
        slots = calloc(1, sizeof *slots);
        if (slots == NULL || pthread_setspecific(key, slots)) {
            free(slots);
            return NULL;
        }
    }
    if (slots->bytes[slot] < bytes) {
        void *memory = NULL;
        if (posix_memalign(&memory, 64, bytes)) {
            return NULL;
        }
        free(slots->memory[slot]);
        slots->memory[slot] = memory;
        slots->bytes[slot] = bytes;
    }
    return slots->memory[slot];
}

static void take_parts(void *scratch) {
    for (;;) {
        const long long index = atomic_fetch_add(&pool.next, 1);
        if (index >= pool.count) {
            return;
        }
        pool.task(pool.job, index, scratch);
    }
}

static void *work(void *unused) {
    (void)unused;
    unsigned seen = 0;
    for (;;) {
        for (int i = 0; i < SPINS && atomic_load(&pool.generation) == seen; i++) {
            RELAX();
        }
        if (atomic_load(&pool.generation) == seen) {
            pthread_mutex_lock(&pool.mutex);
            atomic_fetch_add(&pool.sleeping, 1);
            while (atomic_load(&pool.generation) == seen) {
                pthread_cond_wait(&pool.wake, &pool.mutex);
            }
            atomic_fetch_sub(&pool.sleeping, 1);
            pthread_mutex_unlock(&pool.mutex);
        }
        seen = atomic_load(&pool.generation);
        atomic_fetch_add(&pool.inside, 1); /* first announced, then looked: the caller does it the other way round */
        if (atomic_load(&pool.open) && atomic_fetch_add(&pool.joined, 1) < pool.helpers) {
            void *scratch = bit_scratch(1, pool.scratch_bytes);
            if (scratch != NULL) {
                take_parts(scratch);
            }
        }
        atomic_fetch_sub(&pool.inside, 1);
    }
    return NULL;
}

static void start_workers(int count) {
    while (pool.workers < count && pool.workers < MAX_WORKERS) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, work, NULL)) {
            return;
        }
        pthread_detach(thread);
        pool.workers++;
    }
}

int bit_parallel(bit_task task, void *job, int64_t count, int threads, size_t scratch_bytes) {
    void *scratch = bit_scratch(1, scratch_bytes);
    if (scratch == NULL) {
        return 1;
    }
    if (threads < 2 || count < 2 || atomic_flag_test_and_set(&pool.taken)) {
        for (int64_t i = 0; i < count; i++) {
            task(job, i, scratch);
        }
        return 0;
    }
    start_workers(threads - 1);
    pool.task = task;
    pool.job = job;
    pool.count = count;
    pool.scratch_bytes = scratch_bytes;
    pool.helpers = threads - 1;
    atomic_store(&pool.joined, 0);
    atomic_store(&pool.next, 0);
    atomic_store(&pool.open, 1);
    atomic_fetch_add(&pool.generation, 1);
    if (atomic_load(&pool.sleeping)) {
        pthread_mutex_lock(&pool.mutex);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.mutex);
    }
    take_parts(scratch);
    atomic_store(&pool.open, 0);
    for (int i = 0; atomic_load(&pool.inside); i++) {
        if (i < SPINS) {
            RELAX();
        } else {
            sched_yield();
        }
    }
    atomic_flag_clear(&pool.taken);
    return 0;
}
