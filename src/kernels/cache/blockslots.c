/*
 * Which block gets which memory: the plan's slots in one arena, the account of the bytes, and whose slot is taken for a
 * block that is not resident.
 */
#include "blockslots.h"

enum {
    USE = 2,           /* what one use counts: half of it is left over when counts are halved, and so on */
    USES_PER_SLOT = 16 /* after which all counts are halved */
};

/* Whether the block is among the last used, half as many uses as there are slots: it may well be used again at once. */
static int32_t is_recent(const lb_cache *c, const slot_t *slot) {
    return c->counting && c->uses - c->blocks[slot->block].used_at < (uint32_t)c->stats.lru_slots / 2;
}

/* The slot of a pool whose block was used least, and of those the one unused for longest; a recent one only where all
 * are recent. -1: all are referenced. */
static int32_t least_used(const lb_cache *c, const pool_t *pool) {
    int32_t least = -1;
    for (int32_t uses = 0; uses <= MOST_USES; uses++) {
        const int32_t s = pool->used[uses].first;
        if (s >= 0 && !is_recent(c, &c->slots[s])) return s;
        if (least < 0) least = s;
    }
    return least;
}

void lb_count_use(lb_cache *c, block_t *b) {
    if (!c->counting || b->kind != LB_LRU) return;
    b->uses = (uint8_t)(b->uses < MOST_USES - USE ? b->uses + USE : MOST_USES);
    b->used_at = ++c->uses;
    if (++c->counted < (int64_t)USES_PER_SLOT * c->stats.lru_slots) return;
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

void lb_count_memory(lb_cache *c, int64_t bytes) {
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
        append_slot(c, c->n_slots++);
    }
    return n;
}

void lb_free_arena(lb_cache *c) {
    if (c->arena) lb_free_pages(c->arena, (size_t)c->arena_bytes);
    c->arena = NULL;
}

/* Replaces the slots by those of a plan. */
static int32_t move_in(lb_cache *c, const lb_block_plan *plan, const int32_t *positions, const uint8_t *kinds,
                       const int32_t *order, int32_t n) {
    /* The old memory goes first: both together would exceed the budget. */
    lb_free_arena(c);
    c->arena_bytes =
        plan->pinned_bytes + plan->ring_slots * plan->ring_slot_bytes + plan->lru_slots * plan->lru_slot_bytes;
    c->arena = (uint64_t)c->arena_bytes > SIZE_MAX / 2 ? NULL : lb_alloc_pages((size_t)c->arena_bytes);
    if (!c->arena) {
        c->arena_bytes = 0;
        c->closing = 1; /* without memory nothing works any more */
        return LB_CACHE_NO_MEMORY;
    }
    lb_count_memory(c, -c->slots_in_use);
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
        c->blocks[b].used_at = c->uses;
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

int32_t lb_lay_out_slots(lb_cache *c, const int32_t *order, int32_t n, int64_t lru_bytes, int64_t *smallest) {
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

int32_t lb_take_slot(lb_cache *c, const block_t *b, int why) {
    if (b->kind == LB_PINNED) return b->slot;
    pool_t *pool = &c->pools[b->kind];
    int32_t s = pool->free.first;
    if (why == AHEAD && pool->starving) return -1;
    if (s < 0) s = least_used(c, pool);
    if (s < 0 && (b->kind == LB_RING ? is_stale(c) : why == DEMAND)) s = pool->ahead.first;
    if (s < 0 && b->kind == LB_RING && why == DEMAND && pool->ahead.last >= 0) {
        s = pool->ahead.last; /* what is needed last, and to be read again before anything later */
        const int64_t position = c->position + uses_until(c, s);
        if (c->read_position > position) c->read_position = position;
    }
    if (s < 0) return -1;
    slot_t *slot = &c->slots[s];
    unlink_slot(c, s);
    if (slot->state == READY) {
        c->blocks[slot->block].slot = -1;
        c->stats.evictions++;
        c->stats.wasted += slot->ahead;
        lb_count_memory(c, -slot_bytes(c, slot));
    }
    return s;
}
