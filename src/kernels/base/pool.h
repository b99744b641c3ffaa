/* One pool of threads for the whole process. */
#ifndef LB_POOL_H
#define LB_POOL_H

#include <stdint.h>

#define LB_MAX_THREADS 256

/* Does the work units [begin, end). */
typedef void lb_work_fn(void *context, int32_t begin, int32_t end);

/*
 * Runs all units on up to n_threads threads, the calling one among them, and returns when they are done. Each has a
 * share of neighbouring units and takes up to `chunk` of them at a time, fewer towards the end; who is through helps
 * the others, so a thread that is held up by other programs leaves its rest to them. If the pool is busy with the work
 * of another caller, or the caller is itself such work, this one does all of its own work. Floats are computed in the
 * mode of floats.h.
 */
void lb_parallel(lb_work_fn *work, void *context, int32_t n_units, int32_t chunk, int32_t n_threads);

/* Forgets the threads, which a child process does not inherit. */
void lb_pool_after_fork(void);

#endif
