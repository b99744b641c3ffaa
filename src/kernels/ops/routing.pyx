"""Which experts work for a row: what becomes of the router's products, and rows in the order of their experts."""
from libc.math cimport INFINITY
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from lowbit._kernels.dispatch cimport table

cdef float LEAST_SUM = 6.103515625e-5   # what weights are divided by at least, as in llama.cpp


cdef void choose(const float *score, int32_t n, int32_t k, int32_t *chosen) noexcept nogil:
    """The k largest, the largest first; of equal ones the lower index first. NaN is the smallest."""
    cdef float best[MAX_CHOSEN]
    cdef float s
    cdef int32_t i, j, count = 0
    for i in range(n):
        s = score[i]
        if s != s:
            s = -INFINITY
        if count < k:
            j = count
            count += 1
        elif s > best[k - 1]:
            j = k - 1
        else:
            continue
        while j > 0 and best[j - 1] < s:
            best[j] = best[j - 1]
            chosen[j] = chosen[j - 1]
            j -= 1
        best[j] = s
        chosen[j] = i


cdef void leave_groups(float *score, int32_t n, int32_t groups, int32_t top_groups, bint by_two) noexcept nogil:
    """Set the scores in all but the best groups to -infinity. A group counts by its best, or its two best."""
    cdef float sums[MAX_CHOSEN]
    cdef int32_t best[MAX_CHOSEN]
    cdef int32_t size = n // groups, g, i, r
    cdef float first, second, s
    cdef bint stays
    for g in range(groups):
        first = second = -INFINITY
        for i in range(g * size, (g + 1) * size):
            s = score[i]
            if s > first:
                second = first
                first = s
            elif s > second:
                second = s
        sums[g] = first + second if by_two else first
    choose(sums, groups, top_groups, best)
    for g in range(groups):
        stays = False
        for r in range(top_groups):
            stays = stays or best[r] == g
        if not stays:
            for i in range(g * size, (g + 1) * size):
                score[i] = -INFINITY


cdef void soften(float *p, int32_t n) noexcept nogil:
    """Softmax."""
    cdef float top = p[0], total = 0
    cdef int32_t j
    for j in range(1, n):
        top = p[j] if p[j] > top else top
    table.exp(p, top, 1, n, p)
    for j in range(n):
        total = total + p[j]
    for j in range(n):
        p[j] = p[j] / total


cdef void route_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef RouteWork *c = <RouteWork *>context
    cdef int32_t n = c.n, k = c.top_k, j
    cdef int64_t i
    cdef float *p
    cdef float *scores
    cdef float *weights
    cdef int32_t *chosen
    cdef float total
    for i in range(begin, end):
        p, scores, weights, chosen = c.logits + i * n, c.scores + i * n, c.weights + i * k, c.chosen + i * k
        if c.logit_bias != NULL:
            table.add(p, c.logit_bias, n)
        if c.chosen_only:
            pass
        elif c.sigmoid:
            table.exp(p, 0, -1, n, p)
            for j in range(n):
                p[j] = 1 / (1 + p[j])
        else:
            soften(p, n)
        if c.bias == NULL and c.groups == 1:
            choose(p, n, k, chosen)
        else:
            for j in range(n):
                scores[j] = p[j] + c.bias[j] if c.bias != NULL else p[j]
            if c.groups > 1:
                leave_groups(scores, n, c.groups, c.top_groups, c.by_two)
            choose(scores, n, k, chosen)
        for j in range(k):
            weights[j] = p[chosen[j]]
        if c.chosen_only:
            soften(weights, k)
        total = 0
        for j in range(k):
            total = total + weights[j]
        if c.normalized:
            total = total if total > LEAST_SUM else LEAST_SUM
            for j in range(k):
                weights[j] = weights[j] / total
        if c.scale != 1:
            for j in range(k):
                weights[j] = weights[j] * c.scale


cdef void sort_rows(const int32_t *chosen, int32_t rows, int32_t k, int32_t n, int32_t *starts, int32_t *slot,
                    int32_t *row, int32_t *expert) noexcept nogil:
    """Give every (row, expert) a slot: expert after expert, and the rows of an expert as they come."""
    cdef int32_t i, j, e, at
    memset(starts, 0, sizeof(int32_t) * <size_t>(n + 1))
    for i in range(rows * k):
        starts[chosen[i] + 1] += 1
    for e in range(n):
        starts[e + 1] += starts[e]
    for i in range(rows):
        for j in range(k):
            e = chosen[i * k + j]
            at = starts[e]
            starts[e] += 1
            slot[i * k + j] = at
            row[at] = i
            expert[at] = e
    for e in range(n, 0, -1):       # each points to the end of its own slots, which is where the next begin
        starts[e] = starts[e - 1]
    starts[0] = 0
