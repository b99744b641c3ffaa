from libc.stdint cimport int32_t

cdef enum:
    MAX_CHOSEN = 64         # experts of a token, and groups of them


cdef struct RouteWork:
    float *logits           # (rows, n) -> probabilities
    float *scores           # (rows, n)
    int32_t *chosen
    float *weights
    const float *logit_bias
    const float *bias
    int32_t n, top_k, groups, top_groups
    bint sigmoid, chosen_only, normalized       # probabilities of each alone, or over the chosen; else over all
    bint by_two             # groups count by the sum of their two best, and not by their best
    float scale


# For rows begin to end: probabilities of the logits, the experts that work, the best first, and their weights.
cdef void route_work(void *context, int32_t begin, int32_t end) noexcept nogil
# Gives every (row, expert) a slot: expert after expert, and the rows of an expert as they come. `row` and `expert` are
# those of each slot.
cdef void sort_rows(const int32_t *chosen, int32_t rows, int32_t k, int32_t n, int32_t *starts, int32_t *slot,
                    int32_t *row, int32_t *expert) noexcept nogil
