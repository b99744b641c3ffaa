/*
 * Chunks of address space are handed out from front to back. What is freed in a chunk goes back to the system at once,
 * its addresses when nothing in the chunk is left. Sanitizers see each matrix alone, to find what is read beyond it.
 */
#include "os.h" /* first: it asks the system headers for what is not in the C standard */

#include "arena.h"

#if defined(__linux__) && defined(MADV_HUGEPAGE) && UINTPTR_MAX > 0xffffffffu && !defined(__SANITIZE_ADDRESS__)

enum {
    PAGE = 2 << 20,
    CHUNK = 32 << 20,  /* addresses only: memory is taken by pages, when they are written */
    SMALLEST = 4096,   /* what is smaller would not fill a page */
    LARGEST = 8 << 20, /* what is larger has large pages of its own */
    LINE = 64
};

typedef struct chunk {
    struct chunk *next;
    char *begin; /* of a large page */
    size_t used;
    int64_t live;
} chunk;

/* Stands in the line before each piece. */
typedef struct {
    size_t bytes;
    chunk *home; /* NULL: it was not taken from a chunk */
} label;

static chunk *chunks; /* the newest is the one that is handed out from */
static lb_atomic taken;

static void lock(void) {
    while (!lb_atomic_swap_if(&taken, 0, 1)) lb_yield();
}

static void unlock(void) { lb_atomic_store(&taken, 0); }

static char *map_chunk(void) {
    char *p = mmap(NULL, CHUNK + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return NULL;
    char *begin = (char *)(((uintptr_t)p + PAGE - 1) / PAGE * PAGE);
    if (begin > p) munmap(p, (size_t)(begin - p));
    if (begin < p + PAGE) munmap(begin + CHUNK, (size_t)(p + PAGE - begin));
    madvise(begin, CHUNK, MADV_HUGEPAGE); /* advice: the kernel may ignore it */
    return begin;
}

/* A piece of a chunk, or NULL if no chunk can be had. */
static char *take(size_t bytes) {
    if (chunks == NULL || chunks->used + bytes > CHUNK) {
        chunk *c = malloc(sizeof *c);
        if (c == NULL) return NULL;
        *c = (chunk){chunks, map_chunk(), 0, 0};
        if (c->begin == NULL) {
            free(c);
            return NULL;
        }
        chunks = c;
    }
    char *p = chunks->begin + chunks->used;
    chunks->used += bytes;
    chunks->live++;
    ((label *)(void *)p)->home = chunks;
    return p;
}

void *lb_alloc_weights(size_t bytes) {
    char *p = NULL;
    if (bytes > SIZE_MAX - 2 * LINE) return NULL;
    bytes = (bytes + 2 * LINE - 1) / LINE * LINE;
    if (bytes >= SMALLEST && bytes <= LARGEST) {
        lock();
        p = take(bytes);
        unlock();
    }
    if (p == NULL) {
        p = lb_alloc_huge(bytes);
        if (p == NULL) return NULL;
        ((label *)(void *)p)->home = NULL;
    }
    ((label *)(void *)p)->bytes = bytes;
    return p + LINE;
}

void lb_free_weights(void *memory) {
    if (memory == NULL) return;
    char *p = (char *)memory - LINE;
    chunk *home = ((label *)(void *)p)->home;
    if (home == NULL) {
        lb_free_aligned(p);
        return;
    }
    const size_t small = 4096;
    char *begin = (char *)(((uintptr_t)p + small - 1) / small * small);
    char *end = (char *)((uintptr_t)(p + ((label *)(void *)p)->bytes) / small * small);
    lock();
    if (--home->live == 0) {
        chunk **at = &chunks;
        while (*at != home) at = &(*at)->next;
        *at = home->next;
        munmap(home->begin, CHUNK);
        free(home);
    } else if (begin < end) {
        madvise(begin, (size_t)(end - begin), MADV_DONTNEED);
    }
    unlock();
}

#else

void *lb_alloc_weights(size_t bytes) { return lb_alloc_huge(bytes); }
void lb_free_weights(void *p) { lb_free_aligned(p); }

#endif
