/*
 * A cache of file blocks under a hard budget of memory.
 *
 * Blocks are stretches of files. `lb_cache_acquire` returns a block's bytes, reading them where they are not resident,
 * and keeps them in place until `lb_cache_release`. Any number of threads may do so.
 *
 * Every block belongs to one of three kinds:
 *
 *     pinned   has memory of its own; once read it stays
 *     ring     used in a known cyclic order: reader threads fetch it ahead of its use into one of a few slots, and
 *              the slot is free again as soon as it is released
 *     lru      anything else: slots in the order of last use, the one unused for longest is evicted first; or by
 *              frequency of use, if `lb_cache_count_uses` says so
 *
 * At first all blocks are lru. `lb_cache_set_order` makes the blocks of an order pinned or ring: in a cyclic scan the
 * block used last is the one needed again last, so what LRU would evict is just what comes next, and the best that any
 * policy can do is to keep a fixed part and to stream the rest. The pinned blocks are spread evenly over the order, so
 * that the disk works while they are computed with.
 *
 * Waiting: a thread that asks for a block while all slots of its kind are referenced waits for a release. If no
 * thread holds more than h blocks at once, T threads need at least T * (h - 1) + 1 slots, or they can wait for each
 * other for ever. With one block per thread any number of slots will do. A source that asks its own cache would wait
 * for itself: it is told so.
 */
#ifndef LB_BLOCKCACHE_H
#define LB_BLOCKCACHE_H

#include <stddef.h>
#include <stdint.h>

typedef struct lb_cache lb_cache;

/* Reads like pread: returns the bytes read, fewer only at the end, or minus errno. */
typedef int64_t lb_source_read(void *context, void *buffer, int64_t bytes, int64_t offset);

/* Where blocks come from: a function, or else file descriptors, which stay the caller's. */
typedef struct {
    lb_source_read *read; /* NULL for a file */
    void *context;
    int fd;        /* -1: there is only the direct one */
    int direct_fd; /* opened to bypass the page cache; -1: there is none */
} lb_source;

/* Asked without the lock by threads that wait, about every 100 ms: whether to give up. */
typedef int lb_interrupted(void *context);

/* What acquire reports beside errno values, which are positive. */
enum {
    LB_CACHE_TRUNCATED = -1, /* the file ends before the block does */
    LB_CACHE_CLOSED = -2,
    LB_CACHE_FORKED = -3, /* made in the parent process, whose reader threads this one lacks */
    LB_CACHE_NO_BLOCK = -4,
    LB_CACHE_BUSY = -5, /* blocks are referenced, or the time is up */
    LB_CACHE_BUDGET = -6,
    LB_CACHE_NO_MEMORY = -7,
    LB_CACHE_OWN_WAIT = -8,   /* would wait for what this very thread is in the middle of */
    LB_CACHE_INTERRUPTED = -9 /* somebody said so: see lb_cache_on_wait */
};

typedef struct {
    int64_t hits;       /* acquired, and the bytes were there */
    int64_t misses;     /* acquired, and waited for a read: an own one, or one that was under way */
    int64_t late;       /* those of the misses whose read was under way */
    int64_t reads;      /* blocks read, in whatever way */
    int64_t prefetched; /* those of them that were read before they were asked for */
    int64_t wasted;     /* those of them that were evicted without having been asked for */
    int64_t evictions;
    int64_t errors;
    int64_t bytes_read; /* as transferred: whole pages with direct reads */
    int64_t wait_ns;    /* time spent in acquire, waiting for bytes or slots */
    int64_t memory;     /* bytes in use now: bookkeeping, and slots that hold something */
    int64_t peak_memory;
    int64_t budget;
    int64_t pinned_blocks, pinned_bytes;
    int64_t ring_slots, ring_slot_bytes;
    int64_t lru_slots, lru_slot_bytes;
} lb_cache_stats;

/*
 * Makes a cache of n_blocks blocks; row b of the table is source, offset and length of block b. Sources and table are
 * copied. Returns NULL with *error set; for LB_CACHE_BUDGET, *smallest is the smallest budget that works.
 */
lb_cache *lb_cache_new(const lb_source *sources, int32_t n_sources, const int64_t *table, int32_t n_blocks,
                       int64_t budget, int32_t n_readers, int32_t *error, int64_t *smallest);

/* Says whom to ask while waiting: in acquire, between reads that are waited for, in set_order and in close. */
void lb_cache_on_wait(lb_cache *c, lb_interrupted *interrupted, void *context);

/*
 * Ends the reader threads and frees the blocks' memory: 0. LB_CACHE_BUSY, and nothing done, while blocks are
 * referenced; LB_CACHE_INTERRUPTED once it has begun, and it goes on when called again.
 */
int32_t lb_cache_close(lb_cache *c);

/* Ends the reader threads, and every use but that of the blocks that are referenced: their memory stays. */
void lb_cache_end(lb_cache *c);

/* Ends and frees; no thread may be inside. A cache with referenced blocks keeps its memory for ever instead. */
void lb_cache_free(lb_cache *c);

/*
 * Says in which order the blocks are used, over and over; an empty order makes all blocks lru again. What was resident
 * is dropped. `lru_bytes` is memory for the blocks outside the order, which get two slots at least, and all that the
 * order leaves over. Returns 0, LB_CACHE_NO_BLOCK (unknown or repeated), LB_CACHE_BUSY, LB_CACHE_BUDGET with *smallest,
 * LB_CACHE_NO_MEMORY, LB_CACHE_OWN_WAIT or LB_CACHE_INTERRUPTED.
 */
int32_t lb_cache_set_order(lb_cache *c, const int32_t *order, int32_t n, int64_t lru_bytes, int64_t *smallest);

/* Asks for blocks to be read soon; returns how many are there. Those in the order are read in their turn anyway. */
int32_t lb_cache_prefetch(lb_cache *c, const int32_t *blocks, int32_t n);

/*
 * From now on the lru block that was used least is evicted, among equals the one unused for longest: for blocks of
 * which some are used more often than others. What was used within the last uses, half as many as there are slots, is
 * spared: it may be rare and still come again at once. Counts are halved now and then, so that what has become rare
 * goes in the end; they go on while a block is not resident.
 */
void lb_cache_count_uses(lb_cache *c);

/*
 * Returns the block's bytes, or NULL with *error set. Waits `timeout_ns` for a slot or for another thread's read; -1:
 * for ever. The address is as aligned as the offset of the block in its file, up to 4096, and the block has all of the
 * pages of 4096 bytes that it touches to itself.
 */
const void *lb_cache_acquire(lb_cache *c, int32_t block, int64_t timeout_ns, int32_t *error);
void lb_cache_release(lb_cache *c, int32_t block);

/*
 * Gives up the bytes of an lru block that nobody references, so that its slot is the next to be used: for those who
 * know better than the order of last use what is worth keeping. Does nothing to any other block.
 */
void lb_cache_forget(lb_cache *c, int32_t block);

/*
 * A byte that goes with the bytes of a block that is referenced: 0 after every read, and whatever its users make of it
 * until the block is read again. One that writes to a block, to change its form in place, notes it here.
 */
uint8_t *lb_cache_mark(lb_cache *c, int32_t block);

/* Whether a block is of the ring: it takes one of few slots, and is gone soon after its release. */
int32_t lb_cache_passes_through(const lb_cache *c, int32_t block);

lb_cache_stats lb_cache_get_stats(lb_cache *c);

/* To be called in a child process: caches of the parent answer LB_CACHE_FORKED there. */
void lb_cache_after_fork(void);

#endif
