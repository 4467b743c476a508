/* A small persistent thread pool. Parts of a job are claimed one by one, and the caller works too, so it never waits
 * for a thread that is asleep or was preempted before it began: late threads find the job closed. Where OpenMP's
 * threads are awake and the pool's are not, those take the parts. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

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

static struct worker {
    pthread_t thread;
    atomic_int core; /* where it sleeps, or -1 */
} workers[MAX_WORKERS];

static struct {      /* OpenMP's threads; belongs to the caller that holds `taken` */
    pthread_t owner; /* whose they are */
    int threads;     /* with the owner; 0: not known */
    clockid_t clock; /* the processor time of one */
    int lost;        /* by a fork */
} team;

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
    team.lost = 1;
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

static void join(void *unused) {
    (void)unused;
    void *scratch = bit_scratch(1, pool.scratch_bytes);
    if (scratch != NULL) {
        take_parts(scratch);
    }
}

#if defined(__linux__)
extern void GOMP_parallel(void (*part)(void *), void *data, unsigned threads, unsigned flags) __attribute__((weak));
extern int omp_get_thread_num(void) __attribute__((weak));

static void meet(void *threads) {
    if (omp_get_thread_num() == 1 && pthread_getcpuclockid(pthread_self(), &team.clock) == 0) {
        team.threads = *(int *)threads;
    }
}

/* Whether OpenMP's threads (those of torch's operators) have done the job.
 *
 * After a region they spin for milliseconds, and of their cores the pool's threads would get half. But a region ends
 * when the last of them has taken part, which takes milliseconds, too, where they sleep: they get a job only while one
 * of them is running. Every thread that opens regions has others; the pool knows those of one. */
static int done_by_openmp(int threads) {
    struct timespec before, after;
    if (GOMP_parallel == NULL || omp_get_thread_num == NULL || team.lost) {
        return 0;
    }
    const int mine = pthread_equal(team.owner, pthread_self());
    if (team.threads == 0 || clock_gettime(team.clock, &before) || (mine && team.threads != threads)) {
        team.threads = 0;
        team.owner = pthread_self();
        GOMP_parallel(meet, &threads, (unsigned)threads, 0);
        if (team.threads == 0) {
            return 0;
        }
    } else if (!mine || clock_gettime(team.clock, &after) || before.tv_nsec == after.tv_nsec) {
        return 0;
    }
    GOMP_parallel(join, NULL, (unsigned)threads, 0);
    return 1;
}
#else
static int done_by_openmp(int threads) {
    (void)threads;
    return 0;
}
#endif

/* Workers that sleep on the caller's core are to wake up on others. Some systems (of virtual machines that are to keep
 * few cores awake) would leave them there for milliseconds. */
static void move_workers(void) {
#if defined(__GLIBC__)
    const int here = sched_getcpu();
    cpu_set_t cores;
    for (int i = 0; i < pool.workers; i++) {
        if (atomic_load(&workers[i].core) == here && sched_getaffinity(0, sizeof cores, &cores) == 0) {
            CPU_CLR((size_t)here, &cores);
            pthread_setaffinity_np(workers[i].thread, sizeof cores, &cores); /* fails where there is no other core */
        }
    }
#endif
}

static void *work(void *self) {
    struct worker *worker = self;
    unsigned seen = 0;
    for (;;) {
        for (int i = 0; i < SPINS && atomic_load(&pool.generation) == seen; i++) {
            RELAX();
        }
        if (atomic_load(&pool.generation) == seen) {
            pthread_mutex_lock(&pool.mutex);
#if defined(__GLIBC__)
            atomic_store(&worker->core, sched_getcpu());
#endif
            atomic_fetch_add(&pool.sleeping, 1);
            while (atomic_load(&pool.generation) == seen) {
                pthread_cond_wait(&pool.wake, &pool.mutex);
            }
            atomic_fetch_sub(&pool.sleeping, 1);
            atomic_store(&worker->core, -1);
            pthread_mutex_unlock(&pool.mutex);
        }
        seen = atomic_load(&pool.generation);
        atomic_fetch_add(&pool.inside, 1); /* first announced, then looked: the caller does it the other way round */
        if (atomic_load(&pool.open) && atomic_fetch_add(&pool.joined, 1) < pool.helpers) {
            join(NULL);
        }
        atomic_fetch_sub(&pool.inside, 1);
    }
    return NULL;
}

static void start_workers(int count) {
    while (pool.workers < count && pool.workers < MAX_WORKERS) {
        struct worker *worker = workers + pool.workers;
        atomic_store(&worker->core, -1);
        if (pthread_create(&worker->thread, NULL, work, worker)) {
            return;
        }
        pthread_detach(worker->thread);
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
    pool.task = task;
    pool.job = job;
    pool.count = count;
    pool.scratch_bytes = scratch_bytes;
    pool.helpers = threads - 1;
    atomic_store(&pool.joined, 0);
    atomic_store(&pool.next, 0);
    if ((pool.workers < threads - 1 || atomic_load(&pool.sleeping)) && done_by_openmp(threads)) {
        atomic_flag_clear(&pool.taken);
        return 0;
    }
    start_workers(threads - 1);
    atomic_store(&pool.open, 1);
    atomic_fetch_add(&pool.generation, 1);
    if (atomic_load(&pool.sleeping)) {
        move_workers();
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
