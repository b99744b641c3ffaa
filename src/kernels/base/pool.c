/*
 * A job is open or closed, and counts the workers that are inside: both live in one atomic word,
 *
 *     bits 31..16 number of the job | bit 15 open | bits 14..0 workers inside
 *
 * A worker may enter only while the job is open. The caller works too; when no unit is left it closes the job and
 * waits only for the workers that are inside. A worker that the system has not scheduled in time is never waited for.
 *
 * When such a wait is long, the other cores are evidently taken by other programs, and a worker that was put to sleep
 * in the middle of a unit costs more than it brings: then the next jobs run on the calling thread alone, for a time
 * that grows while the trouble lasts.
 *
 * Work that hands out work of its own does all of that itself: the pool is busy with what it belongs to. A thread knows
 * that of itself, because the mutexes of Windows let their owner in again.
 */
#include "os.h" /* first: it asks the system headers for what is not in the C standard */

#include "floats.h"
#include "pool.h"

enum { OPEN = 1 << 15, INSIDE = OPEN - 1, NEXT_JOB = 1 << 16 };

enum {
    SPIN_NS = 50 * 1000,           /* waiting threads spin this long before they sleep */
    LONG_WAIT_NS = 300 * 1000,     /* a unit takes some microseconds: this is a worker that lost its core */
    FIRST_SOLO_NS = 4 * 1000000,   /* about one time slice of the usual schedulers */
    LONGEST_SOLO_NS = 64 * 1000000
};

static struct {
    lb_mutex job_lock; /* held by the caller whose job this is */
    lb_mutex sleep_lock;
    lb_cond wake;
    lb_atomic state;
    lb_atomic sleepers;
    lb_atomic limit; /* workers with a lower number may take part */
    lb_work_fn *work;
    void *context;
    int32_t n_threads, chunk; /* of this job */
    int32_t n_workers;
    int64_t solo_until, solo_ns;
} pool;

/* Each thread's share of the units, in a cache line of its own. */
static struct {
    lb_atomic next;
    int32_t end;
    char padding[64 - sizeof(lb_atomic) - sizeof(int32_t)];
} shares[LB_MAX_THREADS];

static lb_atomic pool_ready;
static LB_PER_THREAD int inside; /* this thread works on a job of the pool */

/*
 * A thread goes through its own share from front to back, which is one stream in memory, and then helps with what the
 * others have left. Near the end of a share less is taken at a time, so that all threads end at about one time.
 */
static void take_units(int32_t own) {
    for (int32_t i = 0; i < pool.n_threads; i++) {
        const int32_t share = (own + i) % pool.n_threads;
        int32_t begin = lb_atomic_load(&shares[share].next), left;
        while ((left = shares[share].end - begin) > 0) {
            const int32_t part = left / (2 * pool.n_threads) > 1 ? left / (2 * pool.n_threads) : 1;
            const int32_t taken = part < pool.chunk ? part : pool.chunk;
            if (lb_atomic_swap_if(&shares[share].next, begin, begin + taken)) {
                pool.work(pool.context, begin, begin + taken);
            }
            begin = lb_atomic_load(&shares[share].next);
        }
    }
}

static LB_THREAD_RESULT worker_main(void *argument) {
    const int32_t index = (int32_t)(intptr_t)argument;
    int32_t seen = 0;
    (void)lb_begin_floats(); /* this thread does nothing else */
    inside = 1;
    for (;;) {
        int32_t state = lb_atomic_load(&pool.state);
        if (state >> 16 == seen >> 16) {
            const int64_t start = lb_nanoseconds();
            int32_t rounds = 0;
            while ((state = lb_atomic_load(&pool.state)) >> 16 == seen >> 16) {
                lb_cpu_relax();
                if (++rounds % 64 == 0 && lb_nanoseconds() - start > SPIN_NS) {
                    lb_mutex_lock(&pool.sleep_lock);
                    lb_atomic_add(&pool.sleepers, 1);
                    while (lb_atomic_load(&pool.state) >> 16 == seen >> 16) lb_cond_wait(&pool.wake, &pool.sleep_lock);
                    lb_atomic_add(&pool.sleepers, -1);
                    lb_mutex_unlock(&pool.sleep_lock);
                }
            }
        }
        seen = state;
        while ((state & OPEN) && state >> 16 == seen >> 16 && index < lb_atomic_load(&pool.limit)) {
            if (lb_atomic_swap_if(&pool.state, state, state + 1)) {
                take_units(index + 1);
                lb_atomic_add(&pool.state, -1);
                break;
            }
            state = lb_atomic_load(&pool.state);
        }
    }
    return 0;
}

static void start_pool(void) {
    lb_mutex_init(&pool.job_lock);
    lb_mutex_init(&pool.sleep_lock);
    lb_cond_init(&pool.wake);
    lb_atomic_store(&pool.state, 0);
    lb_atomic_store(&pool.sleepers, 0);
    pool.n_workers = 0;
    pool.solo_until = 0;
    pool.solo_ns = FIRST_SOLO_NS;
}

void lb_pool_after_fork(void) { lb_atomic_store(&pool_ready, 0); }

static void run_job(lb_work_fn *work, void *context, int32_t n_units, int32_t chunk, int32_t n_threads) {
    if (n_threads > LB_MAX_THREADS) n_threads = LB_MAX_THREADS;
    if (n_threads <= 1 || n_units <= chunk || inside) {
        if (n_units > 0) work(context, 0, n_units);
        return;
    }
    while (lb_atomic_load(&pool_ready) != 2) {
        if (lb_atomic_swap_if(&pool_ready, 0, 1)) {
            start_pool();
            lb_atomic_store(&pool_ready, 2);
        } else {
            lb_yield();
        }
    }
    if (!lb_mutex_try_lock(&pool.job_lock)) {
        work(context, 0, n_units);
        return;
    }
    if (pool.solo_until && lb_nanoseconds() < pool.solo_until) {
        lb_mutex_unlock(&pool.job_lock);
        work(context, 0, n_units);
        return;
    }
    while (pool.n_workers < n_threads - 1) {
        if (!lb_thread_start(worker_main, (void *)(intptr_t)pool.n_workers)) break;
        pool.n_workers++;
    }

    pool.work = work;
    pool.context = context;
    pool.n_threads = n_threads;
    pool.chunk = chunk;
    for (int32_t i = 0; i < n_threads; i++) {
        shares[i].end = (int32_t)((int64_t)n_units * (i + 1) / n_threads);
        lb_atomic_store(&shares[i].next, (int32_t)((int64_t)n_units * i / n_threads));
    }
    lb_atomic_store(&pool.limit, n_threads - 1);
    const int32_t job =
        (int32_t)(((uint32_t)lb_atomic_load(&pool.state) & ~(uint32_t)INSIDE & ~(uint32_t)OPEN) + NEXT_JOB);
    lb_atomic_store(&pool.state, job | OPEN);
    if (lb_atomic_add(&pool.sleepers, 0) > 0) {
        lb_mutex_lock(&pool.sleep_lock);
        lb_cond_wake_all(&pool.wake);
        lb_mutex_unlock(&pool.sleep_lock);
    }
    inside = 1;
    take_units(0);
    inside = 0;

    lb_atomic_and(&pool.state, ~OPEN);
    if (lb_atomic_load(&pool.state) & INSIDE) {
        const int64_t start = lb_nanoseconds();
        int32_t rounds = 0;
        int64_t waited = 0;
        while (lb_atomic_load(&pool.state) & INSIDE) {
            lb_cpu_relax();
            if (++rounds % 64 == 0) {
                waited = lb_nanoseconds() - start;
                if (waited > SPIN_NS) lb_yield();
            }
        }
        if (waited > LONG_WAIT_NS) {
            pool.solo_until = start + waited + pool.solo_ns;
            if (pool.solo_ns < LONGEST_SOLO_NS) pool.solo_ns *= 2;
        } else if (pool.solo_until && start > pool.solo_until + pool.solo_ns) {
            pool.solo_until = 0; /* undisturbed for as long as it was set aside */
            pool.solo_ns = FIRST_SOLO_NS;
        }
    }
    lb_mutex_unlock(&pool.job_lock);
}

void lb_parallel(lb_work_fn *work, void *context, int32_t n_units, int32_t chunk, int32_t n_threads) {
    const lb_float_mode mode = lb_begin_floats();
    run_job(work, context, n_units, chunk, n_threads);
    lb_end_floats(mode);
}
