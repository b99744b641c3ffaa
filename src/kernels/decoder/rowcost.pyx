"""What one more row of a pass costs, learned from the passes that were made: least squares of time over rows."""
from libc.stdint cimport int32_t, int64_t

cdef enum:
    MOST_ROWS = 64      # of a pass that is looked at: larger ones are those of prompts

cdef double DECAY = 0.98
cdef double GUESS = 0.15    # in passes of one row, before passes of several sizes were made
cdef double LEAST = 0.01


cdef void note_pass(RowCosts *costs, int32_t rows, int64_t nanoseconds) noexcept nogil:
    """Learn from a pass."""
    cdef double time = <double>nanoseconds
    if rows > MOST_ROWS:
        return
    if costs.passes > 8:    # the machine may have been busy with something else
        time = min(time, 4 * (rows + 1) * costs.time / costs.rows)
    costs.passes = DECAY * costs.passes + 1
    costs.rows = DECAY * costs.rows + rows
    costs.squares = DECAY * costs.squares + <double>rows * rows
    costs.time = DECAY * costs.time + time
    costs.products = DECAY * costs.products + rows * time


cdef void fit(const RowCosts *costs, double *base, double *slope) noexcept nogil:
    """Nanoseconds of a pass: `base`, and `slope` for each row."""
    cdef double n = costs.passes, spread = n * costs.squares - costs.rows * costs.rows
    if spread > 0.05 * n * n:
        slope[0] = max((n * costs.products - costs.rows * costs.time) / spread, LEAST * costs.time / costs.rows)
        base[0] = max((costs.time - slope[0] * costs.rows) / n, 0.0)
    elif n > 0:
        base[0] = costs.time / (n + GUESS * costs.rows)
        slope[0] = GUESS * base[0]
    else:
        base[0], slope[0] = 0, 0


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
