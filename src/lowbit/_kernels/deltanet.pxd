from libc.stdint cimport int32_t, int64_t


# A recurrent layer's numbers, and where its part of a sequence's state lies, in floats.
cdef struct Delta:
    int32_t n_key_heads
    int32_t n_value_heads
    int32_t dim                     # of a head
    int32_t taps                    # of the convolution
    int32_t channels                # of queries, keys and values together
    const float *conv               # (taps, channels), the current token's last
    const float *dt                 # (n_value_heads,), like the next
    const float *log_decay
    const float *norm               # (dim,)
    const float *ones               # (channels,)
    const float *key_scale          # (dim,): dim**-0.5
    const float *query_scale        # (dim,): 1 / dim
    bint grouped                    # value heads of one key head stand side by side, and so do their rates
    bint fused                      # so do queries, keys, values and gates, as they come from the projection
    int64_t window_at               # (taps - 1, channels): the last inputs of the convolution
    int64_t matrix_at               # (n_value_heads, dim, dim padded to 16): by key, then by value


# The rows of one sequence in a pass: its state before them is read, and the one after them written.
cdef struct Segment:
    const float *before
    float *after
    int32_t first
    int32_t rows


cdef struct DeltaWork:
    Delta *layer
    const Segment *segments
    const int32_t *segment_of       # (n_rows,)
    float *wide                     # (n_rows, stride): channels; the output's gate; decay and rate per value head
    int64_t stride
    float *mixed                    # (n_rows, channels): after the convolution
    float eps


cdef void mix(DeltaWork *work, int32_t n_rows, int32_t n_segments, int32_t threads) noexcept nogil
