/*
 * Chunks of address space are handed out from front to back. What is freed in a chunk goes back to the system at once,
 * its addresses when nothing in the chunk is left, so a chunk is for what ends at one time: the weights of a model. Its
 * first chunk has small pages as long as it is the only one: the last large page is on average half empty, which a
 * model of a few megabytes would notice, and such a model lies in the cache anyway. Sanitizers see each matrix alone,
 * to find what is read beyond it.
 */
#include "os.h" /* first: it asks the system headers for what is not in the C standard */

#include "arena.h"

#if defined(__linux__) && defined(MADV_HUGEPAGE) && UINTPTR_MAX > 0xffffffffu && !defined(__SANITIZE_ADDRESS__)

enum {
    PAGE = 2 << 20,
    FIRST = 16 << 20,  /* a chunk is addresses only: memory is taken by pages, when they are written */
    CHUNK = 64 << 20,
    SMALLEST = 4096,   /* what is smaller would not fill a page */
    LARGEST = 8 << 20, /* what is larger has large pages of its own */
    LINE = 64
};

typedef struct {
    char *begin; /* of a large page */
    size_t size, used;
    int64_t live;
    int has_holes; /* where something was freed; a large page over a hole would fill it again */
} chunk;

/* Stands in the line before each piece. */
typedef struct {
    size_t bytes;
    chunk *home; /* NULL: it was not taken from a chunk */
} label;

static chunk *current; /* the one that is handed out from; NULL: none yet */
static int users;      /* how many have opened the arena, and not closed it */
static lb_atomic taken;

static void lock(void) {
    while (!lb_atomic_swap_if(&taken, 0, 1)) lb_yield();
}

static void unlock(void) { lb_atomic_store(&taken, 0); }

static char *map_chunk(size_t size) {
    char *p = mmap(NULL, size + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return NULL;
    char *begin = (char *)(((uintptr_t)p + PAGE - 1) / PAGE * PAGE);
    if (begin > p) munmap(p, (size_t)(begin - p));
    if (begin < p + PAGE) munmap(begin + size, (size_t)(p + PAGE - begin));
    return begin;
}

/* What the kernel does not know, or does not want, it ignores. */
static void use_large_pages(chunk *c) {
    madvise(c->begin, c->size, MADV_HUGEPAGE); /* what is written from now on */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif
    madvise(c->begin, c->used / PAGE * PAGE, MADV_COLLAPSE); /* what was written */
}

/* A piece of a chunk, or NULL if no chunk can be had. */
static char *take(size_t bytes) {
    if (current == NULL || current->used + bytes > current->size) {
        const size_t size = current == NULL ? FIRST : CHUNK;
        chunk *c = malloc(sizeof *c);
        if (c == NULL) return NULL;
        *c = (chunk){map_chunk(size), size, 0, 0, 0};
        if (c->begin == NULL) {
            free(c);
            return NULL;
        }
        if (current != NULL) use_large_pages(c);
        if (current != NULL && current->size == FIRST && !current->has_holes) use_large_pages(current);
        current = c;
    }
    char *p = current->begin + current->used;
    current->used += bytes;
    current->live++;
    ((label *)(void *)p)->home = current;
    return p;
}

void lb_open_arena(void) {
    lock();
    users++;
    unlock();
}

void lb_close_arena(void) {
    lock();
    if (--users == 0) current = NULL;
    unlock();
}

void *lb_alloc_weights(size_t bytes) {
    char *p = NULL;
    if (bytes > SIZE_MAX - 2 * LINE) return NULL;
    bytes = (bytes + 2 * LINE - 1) / LINE * LINE;
    if (bytes >= SMALLEST && bytes <= LARGEST) {
        lock();
        p = users ? take(bytes) : NULL;
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
        if (current == home) current = NULL;
        munmap(home->begin, home->size);
        free(home);
    } else if (begin < end) {
        madvise(begin, (size_t)(end - begin), MADV_DONTNEED);
        madvise(begin, (size_t)(end - begin), MADV_NOHUGEPAGE);
        home->has_holes = 1;
    }
    unlock();
}

#else

void lb_open_arena(void) {}
void lb_close_arena(void) {}
void *lb_alloc_weights(size_t bytes) { return lb_alloc_huge(bytes); }
void lb_free_weights(void *p) { lb_free_aligned(p); }

#endif
