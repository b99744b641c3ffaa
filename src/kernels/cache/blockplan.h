/* How a block cache divides its memory. */
#ifndef LB_BLOCKPLAN_H
#define LB_BLOCKPLAN_H

#include <stdint.h>

/* What becomes of a block: see blockcache.h. */
enum { LB_PINNED, LB_RING, LB_LRU };

typedef struct {
    int64_t pinned_bytes, ring_slot_bytes, lru_slot_bytes;
    int32_t ring_slots, lru_slots;
    int64_t smallest; /* bytes that such blocks need at least */
} lb_block_plan;

/*
 * Divides `room` bytes. Block b takes spans[b] bytes, and is at positions[b] of the order of n blocks, or at -1: not in
 * it. Writes the kind of each block; returns 0 if there is not enough room.
 */
int lb_plan_blocks(const int64_t *spans, const int32_t *positions, int32_t n_blocks, const int32_t *order, int32_t n,
                   int64_t room, int64_t lru_bytes, uint8_t *kinds, lb_block_plan *plan);

#endif
