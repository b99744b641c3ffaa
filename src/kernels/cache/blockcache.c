/* What others call: acquire and release, the order, and a cache's beginning and end. Its insides: blockslots.h. */
#include "blockslots.h"

#include <string.h>

enum {
    READER_BYTES = 16 << 10, /* of a reader's stack */
    PATIENCE_NS = 100000000  /* between two questions whether to give up */
};

static lb_atomic forks;

void lb_cache_after_fork(void) { lb_atomic_add(&forks, 1); }

static int is_forked(const lb_cache *c) { return lb_atomic_load(&forks) != c->forks; }

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
    if (c->n_order && b->position >= 0 && !c->closing) lb_advance(c, b->position);
    for (;;) {
        if (c->closing) {
            *error = LB_CACHE_CLOSED;
            break;
        }
        slot = b->slot >= 0 ? &c->slots[b->slot] : NULL;
        if (slot && slot->state == READY && !c->pausing) {
            if (slot->refs == 0 && slot->kind != LB_PINNED) unlink_slot(c, b->slot);
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
            const int32_t s = lb_take_slot(c, b, DEMAND);
            if (s >= 0) {
                slot = &c->slots[s];
                *error = lb_fill_slot(c, block, s, DEMAND);
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
        if (slot->refs++ == 0) lb_count_use(c, b);
        slot->ahead = 0;
        c->refs++;
        c->stats.hits += !missed;
        c->stats.misses += missed;
        c->stats.late += late;
    }
    if (missed) {
        c->stats.wait_ns += lb_nanoseconds() - start;
        lb_wake_reader(c); /* readers make way for those who wait for a slot */
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
        append_slot(c, s);
        if (c->pools[slot->kind].starving)
            lb_cond_wake_all(&c->changed);
        else
            lb_wake_reader(c);
    }
    lb_mutex_unlock(&c->lock);
}

void lb_cache_forget(lb_cache *c, int32_t block) {
    if (is_forked(c)) return;
    lb_mutex_lock(&c->lock);
    block_t *b = &c->blocks[block];
    slot_t *slot = b->slot >= 0 ? &c->slots[b->slot] : NULL;
    if (b->kind == LB_LRU && slot && slot->state == READY && slot->refs == 0) {
        unlink_slot(c, b->slot);
        slot->state = EMPTY;
        append_slot(c, b->slot);
        lb_count_memory(c, -slot_bytes(c, slot));
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
        begin_doing(c, &pausing);
        c->pausing = 1;
        while (c->in_flight && !result) {
            lb_cond_wait_for(&c->changed, &c->lock, PATIENCE_NS);
            result = ask(c, &asked);
        }
        /* A read that was under way may have become a reference. */
        if (!result)
            result = c->closing ? LB_CACHE_CLOSED
                     : c->refs  ? LB_CACHE_BUSY
                                : lb_lay_out_slots(c, order, n, lru_bytes, smallest);
        c->pausing = 0;
        end_doing(c, &pausing);
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
    *error = lb_lay_out_slots(c, NULL, 0, 0, smallest);
    if (*error) {
        free_parts(c);
        return NULL;
    }
    lb_count_memory(c, 0);
    c->forks = lb_atomic_load(&forks);
    c->asked = lb_nanoseconds();
    lb_mutex_init(&c->lock);
    lb_cond_init(&c->changed);
    lb_cond_init(&c->work);
    while (c->n_readers < n_readers && lb_thread_run(&c->readers[c->n_readers], lb_reader_main, c)) c->n_readers++;
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
    if (!result) lb_free_arena(c);
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
    lb_free_arena(c);
    free_parts(c);
}
