/*
 * What a block cache (blockcache.h) consists of, for its own files: `blockslots.c` decides which block gets which
 * memory, `blockread.c` fills it, on demand and ahead, and `blockcache.c` is what others call.
 *
 * One mutex guards everything but the bytes of the blocks; functions are called with it. A slot that is being read
 * belongs to the thread that reads it, and nobody else touches its memory before the state says READY.
 *
 *     EMPTY --take, fill--> READING ----> READY, referenced <----> READY, in a list --take (evicted), fill--> READING
 *                              |  error
 *                              +--------> EMPTY
 *
 * An unreferenced slot is in one list of its pool: `free`, `used` (the one released first in front; one list for each
 * number of uses that is counted, see `lb_cache_count_uses`), or `ahead` (read ahead and not asked for yet, in the
 * order of reading). Slots of pinned blocks are in no list.
 */
#ifndef LB_BLOCKSLOTS_H
#define LB_BLOCKSLOTS_H

#include "os.h" /* first: it asks the system headers for more than standard C */
#include "blockcache.h"
#include "blockplan.h"

#include <assert.h>

enum { EMPTY, READING, READY };
enum { DEMAND, AHEAD };

enum {
    PAGE = 4096, /* what direct reads are aligned to */
    MAX_READERS = 16,
    MOST_USES = 255, /* that a block has counted */
    STRAGGLERS = 16 /* neighbours in the order that threads may use the other way round */
};

typedef struct {
    int64_t offset, length;
    int32_t source;
    int32_t slot;     /* -1: not resident; fixed for pinned blocks */
    int32_t position; /* in the order, -1: not in it */
    uint8_t kind, hinted;
    uint8_t uses; /* counted, if they are */
    uint32_t used_at; /* the last of all counted uses that was its own */
} block_t;

typedef struct {
    uint8_t *memory;
    int32_t block;
    int32_t refs;
    int32_t previous, next;
    uint8_t kind, state, ahead;
    uint8_t mark; /* of those who use the block */
} slot_t;

typedef struct {
    int32_t first, last;
} list_t;

typedef struct {
    int64_t slot_bytes;
    int32_t starving; /* threads that wait for a slot */
    list_t free, ahead, used[MOST_USES + 1];
} pool_t;

/* Something that others wait for, on the stack of the thread that is in the middle of it. */
typedef struct doing {
    lb_thread_id thread;
    struct doing *next;
} doing_t;

struct lb_cache {
    lb_mutex lock;
    lb_cond changed; /* for those who acquire: bytes have come, or a slot can be had */
    lb_cond work;    /* for readers */
    int32_t forks;
    int32_t closing, pausing;
    int32_t counting; /* uses of lru blocks decide which is evicted */
    int64_t counted;  /* since all counts were halved */
    uint32_t uses;    /* counted in all; may wrap around */
    int32_t inside; /* threads in acquire */
    int32_t in_flight;
    int64_t refs;
    doing_t *doing;
    lb_interrupted *interrupted;
    void *interrupted_context;
    int64_t asked; /* when somebody was asked at the beginning of a wait */

    lb_source *sources;
    block_t *blocks;
    slot_t *slots;
    int32_t *order, *hints;
    uint8_t *arena;
    int64_t arena_bytes, bookkeeping, slots_in_use;
    int32_t n_blocks, n_slots, n_order, n_readers;
    int32_t first_hint, n_hints; /* a circular queue in `hints` */
    int64_t position;            /* of the next use; positions count on from cycle to cycle */
    int64_t read_position;       /* of the next block to read ahead */
    pool_t pools[3];             /* by kind; that of pinned blocks is not used */
    lb_thread readers[MAX_READERS];
    lb_cache_stats stats;
};

/* The list that an unreferenced slot is in, or comes to. */
static inline list_t *list_of(lb_cache *c, const slot_t *slot) {
    pool_t *pool = &c->pools[slot->kind];
    return slot->state == EMPTY ? &pool->free : slot->ahead ? &pool->ahead : &pool->used[c->blocks[slot->block].uses];
}

static inline void append_slot(lb_cache *c, int32_t s) {
    list_t *list = list_of(c, &c->slots[s]);
    c->slots[s].previous = list->last;
    c->slots[s].next = -1;
    if (list->last >= 0)
        c->slots[list->last].next = s;
    else
        list->first = s;
    list->last = s;
}

static inline void unlink_slot(lb_cache *c, int32_t s) {
    const slot_t *slot = &c->slots[s];
    list_t *list = list_of(c, slot);
    if (slot->previous >= 0)
        c->slots[slot->previous].next = slot->next;
    else
        list->first = slot->next;
    if (slot->next >= 0)
        c->slots[slot->next].previous = slot->previous;
    else
        list->last = slot->previous;
}

/* Bytes from the first to the last page that the block touches. */
static inline int64_t span(const block_t *b) {
    const int64_t lead = b->offset % PAGE;
    return (lead + b->length + PAGE - 1) / PAGE * PAGE;
}

static inline int64_t slot_bytes(const lb_cache *c, const slot_t *slot) {
    return slot->kind == LB_PINNED ? span(&c->blocks[slot->block]) : c->pools[slot->kind].slot_bytes;
}

static inline int is_resident(const lb_cache *c, const block_t *b) {
    return b->slot >= 0 && c->slots[b->slot].state != EMPTY;
}

/* How many blocks of the order come before the next use of the one in this slot. */
static inline int64_t uses_until(const lb_cache *c, int32_t s) {
    const int64_t n = c->n_order, distance = c->blocks[c->slots[s].block].position - c->position;
    return (distance % n + n) % n;
}

/* Whether what was read ahead first is past its use: whoever was to use it has jumped over it. */
static inline int is_stale(const lb_cache *c) {
    const int32_t s = c->pools[LB_RING].ahead.first;
    const int64_t behind = s < 0 ? 0 : c->n_order - uses_until(c, s);
    return behind > STRAGGLERS && behind <= c->n_order / 2;
}

static inline void begin_doing(lb_cache *c, doing_t *what) {
    *what = (doing_t){lb_this_thread(), c->doing};
    c->doing = what;
}

static inline void end_doing(lb_cache *c, const doing_t *what) {
    doing_t **at = &c->doing;
    while (*at != what) at = &(*at)->next;
    *at = what->next;
}

/* --- blockslots.c ----------------------------------------------------------------------------------------------- */

/* Drops what is resident and divides the memory anew; what lb_cache_set_order returns. */
int32_t lb_lay_out_slots(lb_cache *c, const int32_t *order, int32_t n, int64_t lru_bytes, int64_t *smallest);
void lb_free_arena(lb_cache *c);

/* Adds to the memory in use, of which bytes may be fewer than 0. */
void lb_count_memory(lb_cache *c, int64_t bytes);

/* Counts one more use of an lru block, which is in no list. */
void lb_count_use(lb_cache *c, block_t *b);

/* A slot for a block that is not resident, or -1. Readers leave alone what was read ahead and is yet to be used. */
int32_t lb_take_slot(lb_cache *c, const block_t *b, int why);

/* --- blockread.c ------------------------------------------------------------------------------------------------ */

/* Reads a block into the slot; the lock is released meanwhile. The slot comes back READY and in no list, or EMPTY. */
int32_t lb_fill_slot(lb_cache *c, int32_t block, int32_t s, int why);

/* The block at `position` of the order is being used. */
void lb_advance(lb_cache *c, int32_t position);

/* Wakes a reader if it would find something to do: where all blocks are resident they sleep on. */
void lb_wake_reader(lb_cache *c);
LB_THREAD_RESULT lb_reader_main(void *argument);

#endif
