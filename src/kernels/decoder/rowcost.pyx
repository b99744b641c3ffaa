"""What one more row of a pass costs, learned from the passes that were made: least squares of time over rows."""
from libc.stdint cimport int32_t, int64_t

cdef enum:
    MOST_ROWS = 64      # of a pass that is looked at: larger ones are those of prompts

cdef double DECAY = 0.985
cdef double GUESS = 0.15    # of a row, in passes of one row, before passes of several sizes were made
cdef double PRIOR = 0.5     # what the guess counts as, in rows squared of the variance
cdef double LEAST = 0.01


cdef void note_pass(RowCosts *costs, int32_t rows, int64_t nanoseconds) noexcept nogil:
    """Learn from a pass."""
    cdef double time = <double>nanoseconds, base, slope
    if rows > MOST_ROWS:
        return
    fit(costs, &base, &slope)
    if costs.passes > 8:    # the machine may have been busy with something else
        time = min(time, 3 * (base + slope * rows))
    costs.passes = DECAY * costs.passes + 1
    costs.rows = DECAY * costs.rows + rows
    costs.squares = DECAY * costs.squares + <double>rows * rows
    costs.time = DECAY * costs.time + time
    costs.products = DECAY * costs.products + rows * time


cdef void fit(const RowCosts *costs, double *base, double *slope) noexcept nogil:
    """Nanoseconds of a pass: `base`, and `slope` for each row; 0 if there was none."""
    cdef double n = costs.passes, rows, time, guess
    base[0], slope[0] = 0, 0
    if n == 0:
        return
    rows, time = costs.rows / n, costs.time / n
    guess = GUESS * time / (1 + GUESS * rows)
    slope[0] = (costs.products / n - rows * time + PRIOR * guess) / (costs.squares / n - rows * rows + PRIOR)
    slope[0] = max(slope[0], LEAST * time / rows)
    base[0] = max(time - slope[0] * rows, 0.0)


cdef double text_seconds(const RowCosts *costs, int32_t texts) noexcept nogil:
    """One text's share of a pass of a row of each of so many texts, in seconds; 0 if none was made."""
    cdef double base, slope
    fit(costs, &base, &slope)
    return 1e-9 * (base / texts + slope)


cdef double row_cost(const RowCosts *costs, int32_t texts) noexcept nogil:
    """What one more row of one of them costs, in such shares."""
    cdef double base, slope
    fit(costs, &base, &slope)
    return slope / (base / texts + slope) if slope > 0 else GUESS
