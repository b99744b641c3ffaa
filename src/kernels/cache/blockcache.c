/*
 * One mutex guards everything but the bytes of the blocks. A slot that is being read belongs to the thread that reads
 * it, and nobody else touches its memory before the state says READY.
 *
 *     EMPTY --take_slot--> READING --finish--> READY, referenced <--> READY, in a list --take_slot (eviction)-->
 * READING |  error
 *                             +--------> EMPTY
 *
 * An unreferenced slot is in one list of its pool: `free`, `used` (the one released first in front; one list for each
 * number of uses that is counted, see `lb_cache_count_uses`), or `ahead` (read ahead and not asked for yet, in the
 * order of reading). Slots of pinned blocks are in no list.
 */
#include "os.h" /* first: it asks the system headers for more than standard C */
#include "blockcache.h"
#include "blockplan.h"

#include <assert.h>
#include <string.h>

enum { EMPTY, READING, READY };
enum { DEMAND, AHEAD };

enum {
    PAGE = 4096, /* what direct reads are aligned to */
    MAX_READERS = 16,
    READER_BYTES = 16 << 10, /* of a reader's stack */
    PATIENCE_NS = 100000000, /* between two questions whether to give up */
    USE = 8,                 /* what one use counts: half of it is left over when counts are halved, and so on */
    MOST_USES = 63,          /* that a block has counted */
    USES_PER_SLOT = 2,       /* after which all counts are halved */
    STRAGGLERS = 16,         /* neighbours in the order that threads may use the other way round */
    RING_BYTES = 8 << 20     /* enough to keep a disk busy */
};

typedef struct {
    int64_t offset, length;
    int32_t source;
    int32_t slot;     /* -1: not resident; fixed for pinned blocks */
    int32_t position; /* in the order, -1: not in it */
    uint8_t kind, hinted;
    uint8_t uses; /* counted, if they are */
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

static lb_atomic forks;

void lb_cache_after_fork(void) { lb_atomic_add(&forks, 1); }

static int is_forked(const lb_cache *c) { return lb_atomic_load(&forks) != c->forks; }

/* --- waiting ---------------------------------------------------------------------------------------------------- */

static void begin(lb_cache *c, doing_t *what) {
    *what = (doing_t){lb_this_thread(), c->doing};
    c->doing = what;
}

static void end(lb_cache *c, const doing_t *what) {
    doing_t **at = &c->doing;
    while (*at != what) at = &(*at)->next;
    *at = what->next;
}

/* Whether this thread is in the middle of something that it would wait for. */
static int is_doing(const lb_cache *c) {
    for (const doing_t *d = c->doing; d; d = d->next)
        if (lb_same_thread(d->thread, lb_this_thread())) return 1;
    return 0;
}

/* LB_CACHE_INTERRUPTED if a wait is to end, else 0. The lock may have been released meanwhile. */
static int32_t ask(lb_cache *c, int64_t *asked) {
    const int64_t now = lb_nanoseconds();
    if (!c->interrupted || now - *asked < PATIENCE_NS) return 0;
    *asked = now;
    lb_mutex_unlock(&c->lock);
    const int32_t result = c->interrupted(c->interrupted_context) ? LB_CACHE_INTERRUPTED : 0;
    lb_mutex_lock(&c->lock);
    return result;
}

/* --- lists ------------------------------------------------------------------------------------------------------ */

static void append(lb_cache *c, list_t *list, int32_t s) {
    c->slots[s].previous = list->last;
    c->slots[s].next = -1;
    if (list->last >= 0)
        c->slots[list->last].next = s;
    else
        list->first = s;
    list->last = s;
}

static void unlink_slot(lb_cache *c, list_t *list, int32_t s) {
    const slot_t *slot = &c->slots[s];
    if (slot->previous >= 0)
        c->slots[slot->previous].next = slot->next;
    else
        list->first = slot->next;
    if (slot->next >= 0)
        c->slots[slot->next].previous = slot->previous;
    else
        list->last = slot->previous;
}

/* The list that an unreferenced slot is in. */
static list_t *list_of(lb_cache *c, const slot_t *slot) {
    pool_t *pool = &c->pools[slot->kind];
    return slot->state == EMPTY ? &pool->free : slot->ahead ? &pool->ahead : &pool->used[c->blocks[slot->block].uses];
}

/* The slot of a pool whose block was used least, and of those the one unused for longest; -1: all are referenced. */
static int32_t least_used(const pool_t *pool) {
    for (int32_t uses = 0; uses <= MOST_USES; uses++)
        if (pool->used[uses].first >= 0) return pool->used[uses].first;
    return -1;
}

/* Counts one more use of an lru block, which is in no list. */
static void count_use(lb_cache *c, block_t *b) {
    if (!c->counting || b->kind != LB_LRU) return;
    b->uses = (uint8_t)(b->uses < MOST_USES - USE ? b->uses + USE : MOST_USES);
    if (++c->counted < USES_PER_SLOT * c->stats.lru_slots) return;
    c->counted = 0;
    for (int32_t i = 0; i < c->n_blocks; i++) c->blocks[i].uses /= 2;
    for (int32_t uses = 1; uses <= MOST_USES; uses++) { /* each list joins the one of half as many uses */
        list_t *from = &c->pools[LB_LRU].used[uses], *to = &c->pools[LB_LRU].used[uses / 2];
        if (from->first < 0) continue;
        if (to->last >= 0) {
            c->slots[to->last].next = from->first;
            c->slots[from->first].previous = to->last;
        } else {
            to->first = from->first;
        }
        to->last = from->last;
        *from = (list_t){-1, -1};
    }
}

/* --- memory ----------------------------------------------------------------------------------------------------- */

/* Bytes from the first to the last page that the block touches. */
static int64_t span(const block_t *b) {
    const int64_t lead = b->offset % PAGE;
    return (lead + b->length + PAGE - 1) / PAGE * PAGE;
}

static int64_t slot_bytes(const lb_cache *c, const slot_t *slot) {
    return slot->kind == LB_PINNED ? span(&c->blocks[slot->block]) : c->pools[slot->kind].slot_bytes;
}

static void count_memory(lb_cache *c, int64_t bytes) {
    c->slots_in_use += bytes;
    c->stats.memory = c->bookkeeping + c->slots_in_use;
    if (c->stats.memory > c->stats.peak_memory) c->stats.peak_memory = c->stats.memory;
    assert(c->slots_in_use >= 0 && c->slots_in_use <= c->arena_bytes && c->stats.memory <= c->stats.budget);
}

static int32_t add_slots(lb_cache *c, int kind, int32_t n, int64_t bytes, int64_t *used) {
    pool_t *pool = &c->pools[kind];
    pool->slot_bytes = bytes;
    for (int32_t i = 0; i < n; i++, *used += bytes) {
        slot_t *slot = &c->slots[c->n_slots];
        *slot = (slot_t){.memory = c->arena + *used, .block = -1, .kind = (uint8_t)kind};
        append(c, &pool->free, c->n_slots++);
    }
    return n;
}

static void free_arena(lb_cache *c) {
    if (c->arena) lb_free_pages(c->arena, (size_t)c->arena_bytes);
    c->arena = NULL;
}

/* Replaces the slots by those of a plan. */
static int32_t move_in(lb_cache *c, const lb_block_plan *plan, const int32_t *positions, const uint8_t *kinds,
                       const int32_t *order, int32_t n) {
    /* The old memory goes first: both together would exceed the budget. */
    free_arena(c);
    c->arena_bytes =
        plan->pinned_bytes + plan->ring_slots * plan->ring_slot_bytes + plan->lru_slots * plan->lru_slot_bytes;
    c->arena = (uint64_t)c->arena_bytes > SIZE_MAX / 2 ? NULL : lb_alloc_pages((size_t)c->arena_bytes);
    if (!c->arena) {
        c->arena_bytes = 0;
        c->closing = 1; /* without memory nothing works any more */
        return LB_CACHE_NO_MEMORY;
    }
    count_memory(c, -c->slots_in_use);
    c->n_slots = 0;
    c->n_order = n;
    c->position = c->read_position = 0;
    c->n_hints = 0;
    for (int32_t b = 0; b < c->n_blocks; b++) {
        c->blocks[b].slot = -1;
        c->blocks[b].position = positions[b];
        c->blocks[b].kind = kinds[b];
        c->blocks[b].hinted = 0;
        c->blocks[b].uses = 0;
    }
    for (int kind = 0; kind < 3; kind++) {
        pool_t *pool = &c->pools[kind];
        pool->free = pool->ahead = (list_t){-1, -1};
        for (int32_t uses = 0; uses <= MOST_USES; uses++) pool->used[uses] = (list_t){-1, -1};
    }
    int64_t used = 0;
    for (int32_t i = 0; i < n; i++) {
        block_t *b = &c->blocks[order[i]];
        c->order[i] = order[i];
        if (b->kind != LB_PINNED) continue;
        b->slot = c->n_slots;
        c->slots[c->n_slots++] = (slot_t){.memory = c->arena + used, .block = order[i], .kind = LB_PINNED};
        used += span(b);
    }
    c->stats.pinned_blocks = c->n_slots;
    c->stats.pinned_bytes = plan->pinned_bytes;
    c->stats.ring_slots = add_slots(c, LB_RING, plan->ring_slots, plan->ring_slot_bytes, &used);
    c->stats.lru_slots = add_slots(c, LB_LRU, plan->lru_slots, plan->lru_slot_bytes, &used);
    c->stats.ring_slot_bytes = plan->ring_slot_bytes;
    c->stats.lru_slot_bytes = plan->lru_slot_bytes;
    assert(used == c->arena_bytes);
    return 0;
}

/* Drops what is resident and divides the memory anew. */
static int32_t lay_out(lb_cache *c, const int32_t *order, int32_t n, int64_t lru_bytes, int64_t *smallest) {
    const size_t n_blocks = (size_t)c->n_blocks;
    int64_t *spans = malloc(n_blocks * sizeof *spans);
    int32_t *positions = malloc(n_blocks * sizeof *positions);
    uint8_t *kinds = malloc(n_blocks);
    lb_block_plan plan = {0};
    int32_t result = spans && positions && kinds ? 0 : LB_CACHE_NO_MEMORY;
    if (!result) {
        for (int32_t b = 0; b < c->n_blocks; b++) {
            spans[b] = span(&c->blocks[b]);
            positions[b] = -1;
        }
        for (int32_t i = 0; i < n && !result; i++) {
            if (order[i] < 0 || order[i] >= c->n_blocks || positions[order[i]] >= 0)
                result = LB_CACHE_NO_BLOCK;
            else
                positions[order[i]] = i;
        }
    }
    if (!result) {
        const int64_t room = (c->stats.budget - c->bookkeeping) / PAGE * PAGE;
        if (!lb_plan_blocks(spans, positions, c->n_blocks, order, n, room, lru_bytes, kinds, &plan)) {
            *smallest = c->bookkeeping + plan.smallest;
            result = LB_CACHE_BUDGET;
        }
    }
    if (!result) result = move_in(c, &plan, positions, kinds, order, n);
    free(spans);
    free(positions);
    free(kinds);
    return result;
}

/* --- reading ---------------------------------------------------------------------------------------------------- */

/* Reads `bytes` bytes, of which the first `needed` must come. */
static int32_t read_fully(const lb_source *source, int direct, uint8_t *memory, int64_t bytes, int64_t needed,
                          int64_t offset, int64_t *transferred) {
    int64_t got = 0;
    while (got < needed) {
        int64_t n;
        if (source->read)
            n = source->read(source->context, memory + got, bytes - got, offset + got);
        else
            n = lb_read_at(direct ? source->direct_fd : source->fd, memory + got, (size_t)(bytes - got), offset + got);
        if (n < 0) return (int32_t)-n;
        *transferred += n;
        /* Direct reads go on at a page; what is left over of one is the end of the file. */
        if (direct && got + n < needed) n = n / PAGE * PAGE;
        if (n == 0) return LB_CACHE_TRUNCATED;
        got += n;
    }
    return 0;
}

/* Fills the slot's memory, without the lock. The block begins `offset % PAGE` into it. */
static int32_t read_block(const lb_cache *c, const block_t *b, uint8_t *memory, int64_t *transferred) {
    const lb_source *source = &c->sources[b->source];
    const int64_t lead = b->offset % PAGE, needed = lead + b->length, bytes = span(b);
    int32_t error = EINVAL;
    if (!source->read && source->direct_fd >= 0) {
        error = read_fully(source, 1, memory, bytes, needed, b->offset - lead, transferred);
        if (error != EINVAL || source->fd < 0) return error; /* EINVAL: this file system cannot */
    }
    error = read_fully(source, 0, memory + lead, b->length, b->length, b->offset, transferred);
    if (!source->read) lb_forget_cached(source->fd, b->offset - lead, bytes);
    return error;
}

/* How many blocks of the order come before the next use of the one in this slot. */
static int64_t uses_until(const lb_cache *c, int32_t s) {
    const int64_t n = c->n_order, distance = c->blocks[c->slots[s].block].position - c->position;
    return (distance % n + n) % n;
}

/* Whether what was read ahead first is past its use: whoever was to use it has jumped over it. */
static int is_stale(const lb_cache *c) {
    const int32_t s = c->pools[LB_RING].ahead.first;
    const int64_t behind = s < 0 ? 0 : c->n_order - uses_until(c, s);
    return behind > STRAGGLERS && behind <= c->n_order / 2;
}

/* A slot for a block that is not resident, or -1. Readers leave alone what was read ahead and is yet to be used. */
static int32_t take_slot(lb_cache *c, const block_t *b, int why) {
    if (b->kind == LB_PINNED) return b->slot;
    pool_t *pool = &c->pools[b->kind];
    int32_t s = pool->free.first;
    if (why == AHEAD && pool->starving) return -1;
    if (s < 0) s = least_used(pool);
    if (s < 0 && (b->kind == LB_RING ? is_stale(c) : why == DEMAND)) s = pool->ahead.first;
    if (s < 0 && b->kind == LB_RING && why == DEMAND && pool->ahead.last >= 0) {
        s = pool->ahead.last; /* what is needed last, and to be read again before anything later */
        const int64_t position = c->position + uses_until(c, s);
        if (c->read_position > position) c->read_position = position;
    }
    if (s < 0) return -1;
    slot_t *slot = &c->slots[s];
    unlink_slot(c, list_of(c, slot), s);
    if (slot->state == READY) {
        c->blocks[slot->block].slot = -1;
        c->stats.evictions++;
        c->stats.wasted += slot->ahead;
        count_memory(c, -slot_bytes(c, slot));
    }
    return s;
}

/* Reads a block into the slot; the lock is released meanwhile. The slot comes back READY and in no list, or EMPTY. */
static int32_t fill_slot(lb_cache *c, int32_t block, int32_t s, int why) {
    slot_t *slot = &c->slots[s];
    block_t *b = &c->blocks[block];
    int64_t transferred = 0;
    doing_t reading;
    slot->block = block;
    slot->state = READING;
    slot->ahead = why == AHEAD;
    slot->mark = 0;
    b->slot = s;
    c->in_flight++;
    begin(c, &reading);
    count_memory(c, slot_bytes(c, slot));
    lb_mutex_unlock(&c->lock);
    const int32_t error = read_block(c, b, slot->memory, &transferred);
    lb_mutex_lock(&c->lock);
    c->in_flight--;
    end(c, &reading);
    c->stats.bytes_read += transferred;
    if (error) {
        c->stats.errors++;
        count_memory(c, -slot_bytes(c, slot));
        slot->state = EMPTY;
        if (slot->kind != LB_PINNED) {
            b->slot = -1;
            append(c, &c->pools[slot->kind].free, s);
        }
    } else {
        slot->state = READY;
        c->stats.reads++;
        c->stats.prefetched += why == AHEAD;
    }
    lb_cond_wake_all(&c->changed);
    return error;
}

/* --- reading ahead ---------------------------------------------------------------------------------------------- */

static int is_resident(const lb_cache *c, const block_t *b) { return b->slot >= 0 && c->slots[b->slot].state != EMPTY; }

static int32_t at_position(const lb_cache *c, int64_t position) {
    return c->order[(position % c->n_order + c->n_order) % c->n_order];
}

/* Moves the read position to a block that is not resident, and returns that; -1: all are. */
static int32_t seek(lb_cache *c) {
    for (; c->read_position < c->position + c->n_order; c->read_position++) {
        const int32_t block = at_position(c, c->read_position);
        if (!is_resident(c, &c->blocks[block])) return block;
    }
    return -1;
}

/* The next block to read ahead and a slot for it, or -1. */
static int32_t next_to_read(lb_cache *c, int32_t *s) {
    while (c->n_hints) {
        const int32_t block = c->hints[c->first_hint];
        block_t *b = &c->blocks[block];
        c->first_hint = (c->first_hint + 1) % c->n_blocks;
        c->n_hints--;
        b->hinted = 0;
        if (!is_resident(c, b) && (*s = take_slot(c, b, AHEAD)) >= 0) return block;
    }
    const int32_t block = seek(c);
    if (block < 0 || (*s = take_slot(c, &c->blocks[block], AHEAD)) < 0) return -1;
    c->read_position++;
    return block;
}

/* Wakes a reader if it would find something to do: where all blocks are resident they sleep on. */
static void wake_reader(lb_cache *c) {
    if (!c->n_hints) {
        const int32_t block = seek(c);
        if (block < 0) return;
        const pool_t *ring = &c->pools[LB_RING];
        const int has_slot = ring->free.first >= 0 || ring->used[0].first >= 0 || is_stale(c);
        if (c->blocks[block].kind == LB_RING && (ring->starving || !has_slot)) return;
    }
    lb_cond_wake_one(&c->work);
}

static LB_THREAD_RESULT reader_main(void *argument) {
    lb_cache *c = argument;
    int32_t s;
    lb_mutex_lock(&c->lock);
    while (!c->closing) {
        const int32_t block = c->pausing ? -1 : next_to_read(c, &s);
        if (block < 0) {
            lb_cond_wait(&c->work, &c->lock);
            continue;
        }
        wake_reader(c);
        const int32_t error = fill_slot(c, block, s, AHEAD); /* whoever needs the block meets the error again */
        if (!error && c->slots[s].kind != LB_PINNED) append(c, list_of(c, &c->slots[s]), s);
    }
    lb_mutex_unlock(&c->lock);
    return 0;
}

/*
 * The block at `position` of the order is being used. Several threads may use neighbours in another order, so a
 * little behind is no jump.
 */
static void advance(lb_cache *c, int32_t position) {
    const int64_t n = c->n_order, ahead = ((position - c->position) % n + n) % n;
    if (ahead <= n / 2) {
        c->position += ahead + 1;
        if (c->read_position < c->position) c->read_position = c->position;
    } else if (n - ahead > STRAGGLERS) {
        c->position += ahead + 1 - n;
        c->read_position = c->position;
    } else {
        return;
    }
    wake_reader(c);
}

/* --- the interface ---------------------------------------------------------------------------------------------- */

/* As `ask`, by a thread in acquire: what it runs meanwhile may close the cache. */
static int32_t ask_outside(lb_cache *c, int64_t *asked) {
    c->inside--;
    const int32_t result = ask(c, asked);
    c->inside++;
    return result;
}

const void *lb_cache_acquire(lb_cache *c, int32_t block, int64_t timeout_ns, int32_t *error) {
    int64_t start = 0, asked = 0;
    int missed = 0, late = 0;
    *error = 0;
    if (is_forked(c)) return *error = LB_CACHE_FORKED, NULL;
    if (block < 0 || block >= c->n_blocks) return *error = LB_CACHE_NO_BLOCK, NULL;
    block_t *b = &c->blocks[block];
    slot_t *slot = NULL;
    lb_mutex_lock(&c->lock);
    c->inside++;
    if (c->n_order && b->position >= 0 && !c->closing) advance(c, b->position);
    for (;;) {
        if (c->closing) {
            *error = LB_CACHE_CLOSED;
            break;
        }
        slot = b->slot >= 0 ? &c->slots[b->slot] : NULL;
        if (slot && slot->state == READY && !c->pausing) {
            if (slot->refs == 0 && slot->kind != LB_PINNED) unlink_slot(c, list_of(c, slot), b->slot);
            break;
        }
        const int reading = slot && slot->state == READING;
        if (!missed) {
            missed = 1;
            late = reading;
            start = asked = lb_nanoseconds();
            if (is_doing(c)) {
                *error = LB_CACHE_OWN_WAIT;
                break;
            }
            if ((*error = ask_outside(c, &c->asked))) break;
            continue;
        }
        if (!reading && !c->pausing) {
            const int32_t s = take_slot(c, b, DEMAND);
            if (s >= 0) {
                slot = &c->slots[s];
                *error = fill_slot(c, block, s, DEMAND);
                if (!*error && c->closing) *error = LB_CACHE_CLOSED;
                break;
            }
        }
        const int64_t left = timeout_ns < 0 ? 0 : timeout_ns - (lb_nanoseconds() - start);
        if (timeout_ns >= 0 && left <= 0) {
            *error = LB_CACHE_BUSY;
            break;
        }
        int32_t *starving = &c->pools[b->kind].starving;
        *starving += !reading;
        lb_cond_wait_for(&c->changed, &c->lock, timeout_ns < 0 || left > PATIENCE_NS ? PATIENCE_NS : left);
        *starving -= !reading;
        if ((*error = ask_outside(c, &asked))) break;
    }
    const uint8_t *memory = NULL;
    if (!*error) {
        memory = slot->memory + b->offset % PAGE;
        if (slot->refs++ == 0) count_use(c, b);
        slot->ahead = 0;
        c->refs++;
        c->stats.hits += !missed;
        c->stats.misses += missed;
        c->stats.late += late;
    }
    if (missed) {
        c->stats.wait_ns += lb_nanoseconds() - start;
        wake_reader(c); /* readers make way for those who wait for a slot */
    }
    if (--c->inside == 0 && c->closing) lb_cond_wake_all(&c->changed);
    lb_mutex_unlock(&c->lock);
    return memory;
}

void lb_cache_release(lb_cache *c, int32_t block) {
    if (is_forked(c)) return;
    lb_mutex_lock(&c->lock);
    const int32_t s = c->blocks[block].slot;
    slot_t *slot = &c->slots[s];
    assert(slot->refs > 0 && slot->state == READY);
    c->refs--;
    if (--slot->refs == 0 && slot->kind != LB_PINNED) {
        append(c, list_of(c, slot), s);
        if (c->pools[slot->kind].starving)
            lb_cond_wake_all(&c->changed);
        else
            wake_reader(c);
    }
    lb_mutex_unlock(&c->lock);
}

void lb_cache_forget(lb_cache *c, int32_t block) {
    if (is_forked(c)) return;
    lb_mutex_lock(&c->lock);
    block_t *b = &c->blocks[block];
    slot_t *slot = b->slot >= 0 ? &c->slots[b->slot] : NULL;
    if (b->kind == LB_LRU && slot && slot->state == READY && slot->refs == 0) {
        unlink_slot(c, list_of(c, slot), b->slot);
        slot->state = EMPTY;
        append(c, &c->pools[LB_LRU].free, b->slot);
        count_memory(c, -slot_bytes(c, slot));
        c->stats.evictions++;
        b->slot = -1;
    }
    lb_mutex_unlock(&c->lock);
}

int32_t lb_cache_prefetch(lb_cache *c, const int32_t *blocks, int32_t n) {
    int32_t resident = 0;
    if (is_forked(c)) return 0;
    lb_mutex_lock(&c->lock);
    for (int32_t i = 0; i < n; i++) {
        if (blocks[i] < 0 || blocks[i] >= c->n_blocks) continue;
        block_t *b = &c->blocks[blocks[i]];
        const int there = is_resident(c, b);
        resident += there && c->slots[b->slot].state == READY;
        if (b->hinted || b->kind == LB_RING || there) continue;
        b->hinted = 1; /* so that the queue, which holds every block once, never overflows */
        c->hints[(c->first_hint + c->n_hints++) % c->n_blocks] = blocks[i];
    }
    if (c->n_hints) lb_cond_wake_all(&c->work);
    lb_mutex_unlock(&c->lock);
    return resident;
}

int32_t lb_cache_set_order(lb_cache *c, const int32_t *order, int32_t n, int64_t lru_bytes, int64_t *smallest) {
    if (is_forked(c)) return LB_CACHE_FORKED;
    lb_mutex_lock(&c->lock);
    int32_t result = c->closing ? LB_CACHE_CLOSED : c->refs || c->pausing ? LB_CACHE_BUSY : 0;
    if (!result && is_doing(c)) result = LB_CACHE_OWN_WAIT;
    if (!result) {
        int64_t asked = lb_nanoseconds();
        doing_t pausing;
        begin(c, &pausing);
        c->pausing = 1;
        while (c->in_flight && !result) {
            lb_cond_wait_for(&c->changed, &c->lock, PATIENCE_NS);
            result = ask(c, &asked);
        }
        /* A read that was under way may have become a reference. */
        if (!result)
            result = c->closing ? LB_CACHE_CLOSED : c->refs ? LB_CACHE_BUSY : lay_out(c, order, n, lru_bytes, smallest);
        c->pausing = 0;
        end(c, &pausing);
        lb_cond_wake_all(&c->changed);
        lb_cond_wake_all(&c->work);
    }
    lb_mutex_unlock(&c->lock);
    return result;
}

void lb_cache_count_uses(lb_cache *c) {
    if (is_forked(c)) return;
    lb_mutex_lock(&c->lock);
    c->counting = 1;
    lb_mutex_unlock(&c->lock);
}

/* The slot of a referenced block does not change, so this needs no lock. */
uint8_t *lb_cache_mark(lb_cache *c, int32_t block) { return &c->slots[c->blocks[block].slot].mark; }

int32_t lb_cache_passes_through(const lb_cache *c, int32_t block) { return c->blocks[block].kind == LB_RING; }

lb_cache_stats lb_cache_get_stats(lb_cache *c) {
    if (is_forked(c)) return c->stats;
    lb_mutex_lock(&c->lock);
    const lb_cache_stats stats = c->stats;
    lb_mutex_unlock(&c->lock);
    return stats;
}

static void free_parts(lb_cache *c) {
    free(c->sources);
    free(c->blocks);
    free(c->slots);
    free(c->order);
    free(c->hints);
    free(c);
}

lb_cache *lb_cache_new(const lb_source *sources, int32_t n_sources, const int64_t *table, int32_t n_blocks,
                       int64_t budget, int32_t n_readers, int32_t *error, int64_t *smallest) {
    const size_t n = (size_t)n_blocks;
    lb_cache *c = calloc(1, sizeof *c);
    *error = LB_CACHE_NO_MEMORY;
    if (!c) return NULL;
    c->sources = malloc((size_t)n_sources * sizeof *sources);
    c->blocks = calloc(n, sizeof *c->blocks);
    c->slots = calloc(n, sizeof *c->slots);
    c->order = malloc(n * sizeof *c->order);
    c->hints = malloc(n * sizeof *c->hints);
    if (!c->sources || !c->blocks || !c->slots || !c->order || !c->hints) return free_parts(c), NULL;
    memcpy(c->sources, sources, (size_t)n_sources * sizeof *sources);
    for (int32_t i = 0; i < n_sources; i++)
        if (!sources[i].read && sources[i].fd >= 0) lb_expect_no_reuse(sources[i].fd);
    c->n_blocks = n_blocks;
    for (int32_t b = 0; b < n_blocks; b++) {
        c->blocks[b].source = (int32_t)table[3 * b];
        c->blocks[b].offset = table[3 * b + 1];
        c->blocks[b].length = table[3 * b + 2];
    }
    if (n_readers > MAX_READERS) n_readers = MAX_READERS;
    c->bookkeeping =
        (int64_t)(sizeof *c + (size_t)n_sources * sizeof *sources + n * (sizeof(block_t) + sizeof(slot_t) + 8)) +
        n_readers * READER_BYTES;
    c->stats.budget = budget;
    *error = lay_out(c, NULL, 0, 0, smallest);
    if (*error) {
        free_parts(c);
        return NULL;
    }
    count_memory(c, 0);
    c->forks = lb_atomic_load(&forks);
    c->asked = lb_nanoseconds();
    lb_mutex_init(&c->lock);
    lb_cond_init(&c->changed);
    lb_cond_init(&c->work);
    while (c->n_readers < n_readers && lb_thread_run(&c->readers[c->n_readers], reader_main, c)) c->n_readers++;
    return c;
}

void lb_cache_on_wait(lb_cache *c, lb_interrupted *interrupted, void *context) {
    c->interrupted = interrupted;
    c->interrupted_context = context;
}

/* Ends all use but that of the referenced blocks; with the lock, which is released meanwhile. */
static int32_t end_use(lb_cache *c, int interruptible) {
    int64_t asked = lb_nanoseconds();
    c->closing = 1;
    lb_cond_wake_all(&c->work);
    lb_cond_wake_all(&c->changed);
    while (c->inside || c->in_flight) {
        lb_cond_wait_for(&c->changed, &c->lock, PATIENCE_NS);
        if (interruptible && ask(c, &asked)) return LB_CACHE_INTERRUPTED;
    }
    const int32_t n_readers = c->n_readers;
    c->n_readers = 0;
    lb_mutex_unlock(&c->lock);
    for (int32_t i = 0; i < n_readers; i++) lb_thread_join(c->readers[i]);
    lb_mutex_lock(&c->lock);
    return 0;
}

int32_t lb_cache_close(lb_cache *c) {
    if (is_forked(c)) return 0;
    lb_mutex_lock(&c->lock);
    int32_t result = c->refs ? LB_CACHE_BUSY : is_doing(c) ? LB_CACHE_OWN_WAIT : 0;
    if (!result) result = end_use(c, 1);
    if (!result) free_arena(c);
    lb_mutex_unlock(&c->lock);
    return result;
}

void lb_cache_end(lb_cache *c) {
    if (is_forked(c)) return;
    lb_mutex_lock(&c->lock);
    end_use(c, 0);
    lb_mutex_unlock(&c->lock);
}

void lb_cache_free(lb_cache *c) {
    if (!c) return;
    if (!is_forked(c)) {
        lb_cache_end(c);
        if (c->refs) return; /* lost, but not taken from under somebody's eyes */
        lb_cond_destroy(&c->work);
        lb_cond_destroy(&c->changed);
        lb_mutex_destroy(&c->lock);
    }
    free_arena(c);
    free_parts(c);
}
