/*
 * Preloaded into a process: makes one allocation fail, the n-th of those that count. Counted are those of lowbit's own
 * modules, and of NumPy where it holds the GIL (NumPy 2.4 crashes when it has to report a lack of memory without it).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern int PyGILState_Check(void) __attribute__((weak));

static atomic_int left; /* until one fails; 0: none will */

void fail_at(int n) { left = n; }
int fails_after(void) { return left; }

static int fails(const void *caller) {
    Dl_info of;
    if (left <= 0 || !dladdr(caller, &of) || of.dli_fname == NULL) return 0;
    if (!strstr(of.dli_fname, "/lowbit/_kernels/") &&
        !(strstr(of.dli_fname, "/_multiarray_umath") && PyGILState_Check()))
        return 0;
    if (atomic_fetch_sub(&left, 1) != 1) return 0;
    errno = ENOMEM;
    return 1;
}
#define FAILS() fails(__builtin_return_address(0))

void *malloc(size_t bytes) { return FAILS() ? NULL : __libc_malloc(bytes); }
void *calloc(size_t n, size_t bytes) { return FAILS() ? NULL : __libc_calloc(n, bytes); }
void *realloc(void *old, size_t bytes) { return FAILS() ? NULL : __libc_realloc(old, bytes); }
void *aligned_alloc(size_t alignment, size_t bytes) { return FAILS() ? NULL : __libc_memalign(alignment, bytes); }

int posix_memalign(void **memory, size_t alignment, size_t bytes) {
    if (FAILS()) return ENOMEM;
    *memory = __libc_memalign(alignment, bytes);
    return *memory == NULL ? ENOMEM : 0;
}

void *mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset) {
    static void *(*real)(void *, size_t, int, int, int, off_t);
    if (real == NULL) *(void **)&real = dlsym(RTLD_NEXT, "mmap");
    return FAILS() ? MAP_FAILED : real(at, bytes, protection, flags, file, offset);
}
