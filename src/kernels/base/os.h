/* The few operating-system primitives that lowbit uses: threads, a clock, cores, memory, files. POSIX and Windows. */
#ifndef LB_OS_H
#define LB_OS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <intrin.h>
#include <io.h>
#include <malloc.h>
#include <windows.h>

#define LB_PER_THREAD __declspec(thread)

/* Gives memory that was freed back to the system, where the C library keeps it. */
static inline void lb_trim_heap(void) {}

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
static inline void lb_cond_wake_one(lb_cond *c) { WakeConditionVariable(c); }
/* Waits for a time at most; may wake early. */
static inline void lb_cond_wait_for(lb_cond *c, lb_mutex *m, int64_t nanoseconds) {
    SleepConditionVariableCS(c, m, (DWORD)(nanoseconds / 1000000 + 1));
}
static inline void lb_mutex_destroy(lb_mutex *m) { DeleteCriticalSection(m); }
static inline void lb_cond_destroy(lb_cond *c) { (void)c; }
static inline int lb_thread_start(DWORD(WINAPI *f)(void *), void *arg) {
    HANDLE h = CreateThread(NULL, 0, f, arg, 0, NULL);
    if (h) CloseHandle(h);
    return h != NULL;
}
/* A thread that is waited for. */
typedef HANDLE lb_thread;
static inline int lb_thread_run(lb_thread *thread, DWORD(WINAPI *f)(void *), void *arg) {
    *thread = CreateThread(NULL, 0, f, arg, 0, NULL);
    return *thread != NULL;
}
static inline void lb_thread_join(lb_thread thread) {
    WaitForSingleObject(thread, INFINITE);
    CloseHandle(thread);
}
typedef DWORD lb_thread_id;
static inline lb_thread_id lb_this_thread(void) { return GetCurrentThreadId(); }
static inline int lb_same_thread(lb_thread_id a, lb_thread_id b) { return a == b; }
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
/* Whole pages of zeros, which cost memory only once they are written; they go back to the system at once. */
static inline void *lb_alloc_pages(size_t bytes) {
    return VirtualAlloc(NULL, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
}
static inline void lb_free_pages(void *p, size_t bytes) {
    (void)bytes;
    VirtualFree(p, 0, MEM_RELEASE);
}
/* Reads from a place in a file, leaving its position alone. Returns the bytes read, 0 at the end, or minus errno. */
static inline int64_t lb_read_at(int fd, void *buffer, size_t bytes, int64_t offset) {
    OVERLAPPED at = {0};
    DWORD got = 0;
    at.Offset = (DWORD)offset;
    at.OffsetHigh = (DWORD)(offset >> 32);
    if (ReadFile((HANDLE)_get_osfhandle(fd), buffer, bytes > 1 << 30 ? 1 << 30 : (DWORD)bytes, &got, &at)) return got;
    return GetLastError() == ERROR_HANDLE_EOF ? 0 : -EIO;
}
static inline void lb_expect_no_reuse(int fd) { (void)fd; }
static inline void lb_forget_cached(int fd, int64_t offset, int64_t bytes) { (void)fd, (void)offset, (void)bytes; }

typedef volatile LONG lb_atomic;
static inline int32_t lb_atomic_load(lb_atomic *a) { return InterlockedOr(a, 0); }
static inline void lb_atomic_store(lb_atomic *a, int32_t v) { InterlockedExchange(a, v); }
static inline int32_t lb_atomic_add(lb_atomic *a, int32_t v) { return InterlockedExchangeAdd(a, v); }
static inline int32_t lb_atomic_and(lb_atomic *a, int32_t v) { return InterlockedAnd(a, v); }
static inline int lb_atomic_swap_if(lb_atomic *a, int32_t expected, int32_t v) {
    return InterlockedCompareExchange(a, v, expected) == expected;
}

#else
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#define LB_PER_THREAD __thread

/* Gives memory that was freed back to the system, where the C library keeps it. */
static inline void lb_trim_heap(void) {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

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
static inline void lb_cond_wake_one(lb_cond *c) { pthread_cond_signal(c); }
/* Waits for a time at most; may wake early. */
static inline void lb_cond_wait_for(lb_cond *c, lb_mutex *m, int64_t nanoseconds) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    nanoseconds += until.tv_nsec;
    until.tv_sec += (time_t)(nanoseconds / 1000000000);
    until.tv_nsec = (long)(nanoseconds % 1000000000);
    pthread_cond_timedwait(c, m, &until);
}
static inline void lb_mutex_destroy(lb_mutex *m) { pthread_mutex_destroy(m); }
static inline void lb_cond_destroy(lb_cond *c) { pthread_cond_destroy(c); }
/* musl gives a thread 128 KB, which attention alone may take. */
enum { LB_STACK = 1 << 20 };
static inline int lb_thread_start(void *(*f)(void *), void *arg) {
    pthread_t thread;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return 0;
    pthread_attr_setstacksize(&attributes, LB_STACK);
    const int failed = pthread_create(&thread, &attributes, f, arg);
    pthread_attr_destroy(&attributes);
    if (failed) return 0;
    pthread_detach(thread);
    return 1;
}
/* A thread that is waited for. */
typedef pthread_t lb_thread;
static inline int lb_thread_run(lb_thread *thread, void *(*f)(void *), void *arg) {
    return pthread_create(thread, NULL, f, arg) == 0;
}
static inline void lb_thread_join(lb_thread thread) { pthread_join(thread, NULL); }
typedef pthread_t lb_thread_id;
static inline lb_thread_id lb_this_thread(void) { return pthread_self(); }
static inline int lb_same_thread(lb_thread_id a, lb_thread_id b) { return pthread_equal(a, b); }
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
/* For weights, keys and values, which are written once and read in order ever after: large pages, where there are any,
 * save page walks. */
static inline void *lb_alloc_huge(size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const size_t page = (size_t)2 << 20;
    if (bytes >= page) {
        void *p = NULL;
        if (posix_memalign(&p, page, bytes) != 0) return NULL;
        madvise(p, bytes / page * page, MADV_HUGEPAGE); /* advice: the kernel may ignore it */
        return p;
    }
#endif
    return lb_alloc_aligned(bytes);
}
static inline void lb_free_aligned(void *p) { free(p); }
/* Whole pages of zeros, which cost memory only once they are written; they go back to the system at once. */
static inline void *lb_alloc_pages(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
#if defined(MADV_HUGEPAGE)
    madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return p;
}
static inline void lb_free_pages(void *p, size_t bytes) { munmap(p, bytes); }
/* Reads from a place in a file, leaving its position alone. Returns the bytes read, 0 at the end, or minus errno. */
static inline int64_t lb_read_at(int fd, void *buffer, size_t bytes, int64_t offset) {
    for (;;) {
        const ssize_t got = pread(fd, buffer, bytes, (off_t)offset);
        if (got >= 0 || errno != EINTR) return got < 0 ? -errno : got;
    }
}
/* Blocks of this file are kept by whoever reads them: the page cache need not read on, nor keep them. */
static inline void lb_expect_no_reuse(int fd) {
#if defined(POSIX_FADV_RANDOM)
    posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
#elif defined(F_NOCACHE)
    fcntl(fd, F_NOCACHE, 1);
#else
    (void)fd;
#endif
}
static inline void lb_forget_cached(int fd, int64_t offset, int64_t bytes) {
#if defined(POSIX_FADV_DONTNEED)
    posix_fadvise(fd, (off_t)offset, (off_t)bytes, POSIX_FADV_DONTNEED);
#else
    (void)fd, (void)offset, (void)bytes;
#endif
}

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
