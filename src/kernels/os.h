/* The few operating-system primitives that lowbit uses: threads, a clock, the number of cores. POSIX and Windows. */
#ifndef LB_OS_H
#define LB_OS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdint.h>
#include <stdlib.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <intrin.h>
#include <malloc.h>
#include <windows.h>

typedef CRITICAL_SECTION lb_mutex;
typedef CONDITION_VARIABLE lb_cond;
#define LB_THREAD_RESULT DWORD WINAPI
static inline void lb_mutex_init(lb_mutex *m) { InitializeCriticalSection(m); }
static inline void lb_mutex_lock(lb_mutex *m) { EnterCriticalSection(m); }
static inline int lb_mutex_try_lock(lb_mutex *m) { return TryEnterCriticalSection(m) != 0; }
static inline void lb_mutex_unlock(lb_mutex *m) { LeaveCriticalSection(m); }
static inline void lb_cond_init(lb_cond *c) { InitializeConditionVariable(c); }
static inline void lb_cond_wait(lb_cond *c, lb_mutex *m) { SleepConditionVariableCS(c, m, INFINITE); }
static inline void lb_cond_wake_all(lb_cond *c) { WakeAllConditionVariable(c); }
static inline int lb_thread_start(DWORD(WINAPI *f)(void *), void *arg) {
    HANDLE h = CreateThread(NULL, 0, f, arg, 0, NULL);
    if (h) CloseHandle(h);
    return h != NULL;
}
static inline void lb_yield(void) { SwitchToThread(); }
static inline int32_t lb_cores(void) {
    DWORD_PTR mine, all;
    int32_t n = 0;
    if (!GetProcessAffinityMask(GetCurrentProcess(), &mine, &all)) return 1;
    for (; mine; mine &= mine - 1) n++;
    return n ? n : 1;
}
static inline int64_t lb_nanoseconds(void) {
    LARGE_INTEGER t, f;
    QueryPerformanceCounter(&t);
    QueryPerformanceFrequency(&f);
    return (int64_t)((double)t.QuadPart * 1e9 / (double)f.QuadPart);
}
static inline void *lb_alloc_aligned(size_t bytes) { return _aligned_malloc(bytes ? bytes : 1, 64); }
static inline void *lb_alloc_huge(size_t bytes) { return lb_alloc_aligned(bytes); }
static inline void lb_free_aligned(void *p) { _aligned_free(p); }

typedef volatile LONG lb_atomic;
static inline int32_t lb_atomic_load(lb_atomic *a) { return InterlockedOr(a, 0); }
static inline void lb_atomic_store(lb_atomic *a, int32_t v) { InterlockedExchange(a, v); }
static inline int32_t lb_atomic_add(lb_atomic *a, int32_t v) { return InterlockedExchangeAdd(a, v); }
static inline int32_t lb_atomic_and(lb_atomic *a, int32_t v) { return InterlockedAnd(a, v); }
static inline int lb_atomic_swap_if(lb_atomic *a, int32_t expected, int32_t v) {
    return InterlockedCompareExchange(a, v, expected) == expected;
}

#else
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

typedef pthread_mutex_t lb_mutex;
typedef pthread_cond_t lb_cond;
#define LB_THREAD_RESULT void *
static inline void lb_mutex_init(lb_mutex *m) { pthread_mutex_init(m, NULL); }
static inline void lb_mutex_lock(lb_mutex *m) { pthread_mutex_lock(m); }
static inline int lb_mutex_try_lock(lb_mutex *m) { return pthread_mutex_trylock(m) == 0; }
static inline void lb_mutex_unlock(lb_mutex *m) { pthread_mutex_unlock(m); }
static inline void lb_cond_init(lb_cond *c) { pthread_cond_init(c, NULL); }
static inline void lb_cond_wait(lb_cond *c, lb_mutex *m) { pthread_cond_wait(c, m); }
static inline void lb_cond_wake_all(lb_cond *c) { pthread_cond_broadcast(c); }
static inline int lb_thread_start(void *(*f)(void *), void *arg) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, f, arg) != 0) return 0;
    pthread_detach(thread);
    return 1;
}
static inline void lb_yield(void) { sched_yield(); }
/* The cores that this process may use, which can be fewer than the machine has. */
static inline int32_t lb_cores(void) {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int32_t)n : 1;
}
static inline int64_t lb_nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
static inline void *lb_alloc_aligned(size_t bytes) {
    void *p = NULL;
    return posix_memalign(&p, 64, bytes ? bytes : 1) == 0 ? p : NULL;
}
/* For memory that is written once and read in order ever after: large pages, where there are any, save page walks. */
static inline void *lb_alloc_huge(size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const size_t page = (size_t)2 << 20;
    if (bytes >= 2 * page) {
        void *p = NULL;
        if (posix_memalign(&p, page, bytes) != 0) return NULL;
        madvise(p, bytes / page * page, MADV_HUGEPAGE); /* advice: the kernel may ignore it */
        return p;
    }
#endif
    return lb_alloc_aligned(bytes);
}
static inline void lb_free_aligned(void *p) { free(p); }

typedef volatile int32_t lb_atomic;
static inline int32_t lb_atomic_load(lb_atomic *a) { return __atomic_load_n(a, __ATOMIC_ACQUIRE); }
static inline void lb_atomic_store(lb_atomic *a, int32_t v) { __atomic_store_n(a, v, __ATOMIC_RELEASE); }
static inline int32_t lb_atomic_add(lb_atomic *a, int32_t v) { return __atomic_fetch_add(a, v, __ATOMIC_ACQ_REL); }
static inline int32_t lb_atomic_and(lb_atomic *a, int32_t v) { return __atomic_fetch_and(a, v, __ATOMIC_ACQ_REL); }
static inline int lb_atomic_swap_if(lb_atomic *a, int32_t expected, int32_t v) {
    return __atomic_compare_exchange_n(a, &expected, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}
#endif

/* Tells the core that this is a waiting loop. */
static inline void lb_cpu_relax(void) {
#if defined(_MSC_VER)
    YieldProcessor();
#elif defined(__i386__) || defined(__x86_64__)
    __asm__ volatile("rep; nop"); /* pause; a plain nop on CPUs before SSE2 */
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
