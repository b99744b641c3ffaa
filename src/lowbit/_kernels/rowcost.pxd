from libc.stdint cimport int32_t, int64_t


# Sums over passes of few rows, of which older ones count less.
cdef struct RowCosts:
    double passes
    double rows
    double squares          # of rows
    double time             # nanoseconds
    double products         # of rows and times


cdef void note_pass(RowCosts *costs, int32_t rows, int64_t nanoseconds) noexcept nogil
cdef double text_seconds(const RowCosts *costs, int32_t texts) noexcept nogil
cdef double row_cost(const RowCosts *costs, int32_t texts) noexcept nogil
