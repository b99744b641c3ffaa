/*
 * Reading blocks into their slots: for a thread that waits for one, or ahead of the use by threads of the cache's own,
 * which follow the order, and before that what was asked for.
 */
#include "blockslots.h"

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

int32_t lb_fill_slot(lb_cache *c, int32_t block, int32_t s, int why) {
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
    begin_doing(c, &reading);
    lb_count_memory(c, slot_bytes(c, slot));
    lb_mutex_unlock(&c->lock);
    const int32_t error = read_block(c, b, slot->memory, &transferred);
    lb_mutex_lock(&c->lock);
    c->in_flight--;
    end_doing(c, &reading);
    c->stats.bytes_read += transferred;
    if (error) {
        c->stats.errors++;
        lb_count_memory(c, -slot_bytes(c, slot));
        slot->state = EMPTY;
        if (slot->kind != LB_PINNED) {
            b->slot = -1;
            append_slot(c, s);
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
        if (!is_resident(c, b) && (*s = lb_take_slot(c, b, AHEAD)) >= 0) return block;
    }
    const int32_t block = seek(c);
    if (block < 0 || (*s = lb_take_slot(c, &c->blocks[block], AHEAD)) < 0) return -1;
    c->read_position++;
    return block;
}

void lb_wake_reader(lb_cache *c) {
    if (!c->n_hints) {
        const int32_t block = seek(c);
        if (block < 0) return;
        const pool_t *ring = &c->pools[LB_RING];
        const int has_slot = ring->free.first >= 0 || ring->used[0].first >= 0 || is_stale(c);
        if (c->blocks[block].kind == LB_RING && (ring->starving || !has_slot)) return;
    }
    lb_cond_wake_one(&c->work);
}

LB_THREAD_RESULT lb_reader_main(void *argument) {
    lb_cache *c = argument;
    int32_t s;
    lb_mutex_lock(&c->lock);
    while (!c->closing) {
        const int32_t block = c->pausing ? -1 : next_to_read(c, &s);
        if (block < 0) {
            lb_cond_wait(&c->work, &c->lock);
            continue;
        }
        lb_wake_reader(c);
        const int32_t error = lb_fill_slot(c, block, s, AHEAD); /* whoever needs the block meets the error again */
        if (!error && c->slots[s].kind != LB_PINNED) append_slot(c, s);
    }
    lb_mutex_unlock(&c->lock);
    return 0;
}

/* Several threads may use neighbours in another order, so a little behind is no jump. */
void lb_advance(lb_cache *c, int32_t position) {
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
    lb_wake_reader(c);
}
