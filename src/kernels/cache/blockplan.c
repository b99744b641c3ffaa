/*
 * In a cyclic scan the best any policy can do with room for B of N blocks is to hit B - 1 of N - 1 times: it keeps a
 * fixed part, and one block passes through what is left. Here r bytes are left, so that several reads can be under
 * way; that costs the pinned part r bytes, which are read once more per cycle. With m bytes that cannot be resident in
 * any case, r is at most 2 % of m, as far as two slots allow.
 */
#include "blockplan.h"

#define MOST_RING_BYTES ((int64_t)8 << 20) /* enough to keep a disk busy */

static int32_t clamp(int64_t x, int32_t low, int32_t high) { return x < low ? low : x > high ? high : (int32_t)x; }

/* Pins up to `most` of `total` bytes, spread evenly over the order: the disk works while pinned blocks are used. */
static int32_t pin(const int64_t *spans, const int32_t *order, int32_t n, int64_t most, int64_t total, uint8_t *kinds,
                   int64_t *pinned_bytes) {
    const double share = (double)most / (double)total;
    double passed = 0;
    int64_t pinned = 0;
    int32_t streamed = n;
    for (int32_t i = 0; i < n; i++) {
        const int64_t bytes = spans[order[i]];
        passed += (double)bytes;
        if (pinned + bytes <= most && (double)pinned + (double)bytes / 2 <= passed * share) {
            kinds[order[i]] = LB_PINNED;
            pinned += bytes;
            streamed--;
        }
    }
    for (int32_t i = 0; i < n; i++) { /* blocks that fit into what rounding left over */
        const int64_t bytes = spans[order[i]];
        if (kinds[order[i]] == LB_RING && pinned + bytes <= most) {
            kinds[order[i]] = LB_PINNED;
            pinned += bytes;
            streamed--;
        }
    }
    *pinned_bytes = pinned;
    return streamed;
}

int lb_plan_blocks(const int64_t *spans, const int32_t *positions, int32_t n_blocks, const int32_t *order, int32_t n,
                   int64_t room, int64_t lru_bytes, uint8_t *kinds, lb_block_plan *plan) {
    int64_t total = 0;
    *plan = (lb_block_plan){0};
    for (int32_t b = 0; b < n_blocks; b++) {
        int64_t *slot_bytes = positions[b] < 0 ? &plan->lru_slot_bytes : &plan->ring_slot_bytes;
        if (spans[b] > *slot_bytes) *slot_bytes = spans[b];
        if (positions[b] >= 0) total += spans[b];
        kinds[b] = positions[b] < 0 ? LB_LRU : LB_RING;
    }
    const int32_t n_lru = n_blocks - n, least_lru = n_lru < 2 ? n_lru : 2, least_ring = n < 2 ? n : 2;
    int64_t for_order = least_ring * plan->ring_slot_bytes;
    if (for_order > total) for_order = total;
    plan->smallest = least_lru * plan->lru_slot_bytes + for_order;
    if (room < plan->smallest) return 0;

    if (n_lru) {
        int64_t bytes = room - for_order;
        if (lru_bytes < room - total) lru_bytes = room - total;
        if (n > 0 && bytes > lru_bytes) bytes = lru_bytes;
        plan->lru_slots = clamp(bytes / plan->lru_slot_bytes, least_lru, n_lru);
        room -= plan->lru_slots * plan->lru_slot_bytes;
    }
    int64_t most = total;
    if (total > room) {
        int64_t ring = (total - room) * 2 / 100;
        if (ring > room / 2) ring = room / 2;
        if (ring > MOST_RING_BYTES) ring = MOST_RING_BYTES;
        plan->ring_slots = clamp(ring / plan->ring_slot_bytes, least_ring, n);
        most = room - plan->ring_slots * plan->ring_slot_bytes;
    }
    if (n) {
        const int32_t streamed = pin(spans, order, n, most, total, kinds, &plan->pinned_bytes);
        if (plan->ring_slots > streamed) plan->ring_slots = streamed;
    }
    return 1;
}
