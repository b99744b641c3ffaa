"""What lies between the projections of a recurrent layer (gated delta net).

1. What one projection made for each key head is put in order. Decay and learning rate of every head, in double on the
   calling thread: few numbers, and the same bits on every set.
2. The convolution over the last tokens, SiLU, and the lengths of queries and keys: a unit is a row.
3. The delta rule: a unit is a head of a sequence, whose rows come one after the other. A state is read from one memory
   and written to another, so that a pass that fails, or whose proposed tokens were wrong, has changed nothing.
4. RMSNorm of what the heads gave, and its gate: a unit is a row. The result stands in the gate's place.

A row's bits depend on the rows before it in its sequence, and on no others, whatever pieces these came in.
"""
from libc.math cimport exp, log1p
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memmove

from lowbit._kernels.dispatch cimport LB_SILU, parallel, table


cdef void mix(DeltaWork *work, int32_t n_rows, int32_t n_segments, int32_t threads) noexcept nogil:
    """Take all rows from the inputs of the convolution to those of the output projection."""
    cdef int32_t chunk = 1 if n_rows < 4 * threads else 4
    if work.layer.fused:
        parallel(order_work, work, n_rows, chunk, threads)
    rates(work, n_rows)
    parallel(convolve_work, work, n_rows, chunk, threads)
    parallel(delta_work, work, n_segments * work.layer.n_value_heads, 1, threads)
    parallel(gate_work, work, n_rows, chunk, threads)


cdef void order_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    """From queries, keys, values and gates of each key head to those of all."""
    cdef DeltaWork *work = <DeltaWork *>context
    cdef const Delta *d = work.layer
    cdef float *x
    cdef float *y
    cdef const float *own
    cdef int32_t i, g, keys = d.n_key_heads * d.dim, shared = d.n_value_heads // d.n_key_heads * d.dim
    cdef size_t key_bytes = 4 * <size_t>d.dim, shared_bytes = 4 * <size_t>shared
    for i in range(begin, end):
        x, y = work.wide + i * work.stride, work.mixed + <int64_t>i * d.channels
        for g in range(d.n_key_heads - 1, -1, -1):      # a gate moves up, to where none of a lower key head begins
            own = x + g * 2 * (d.dim + shared)
            memcpy(y + g * d.dim, own, key_bytes)
            memcpy(y + keys + g * d.dim, own + d.dim, key_bytes)
            memcpy(y + 2 * keys + g * shared, own + 2 * d.dim, shared_bytes)
            memmove(x + d.channels + g * shared, own + 2 * d.dim + shared, shared_bytes)
        memcpy(x, y, 4 * <size_t>d.channels)


cdef int32_t decay_at(const Delta *d, int32_t h) noexcept nogil:
    """Where the decay of a value head stands among the rates of a row."""
    cdef int32_t r = d.n_value_heads // d.n_key_heads
    return (h // r * 2 + 1) * r + h % r if d.grouped else h


cdef int32_t beta_at(const Delta *d, int32_t h) noexcept nogil:
    """The same of its learning rate."""
    cdef int32_t r = d.n_value_heads // d.n_key_heads
    return h // r * 2 * r + h % r if d.grouped else d.n_value_heads + h


cdef void rates(DeltaWork *work, int32_t n_rows) noexcept nogil:
    cdef const Delta *d = work.layer
    cdef int32_t i, h, heads = d.n_value_heads
    cdef float *rate
    cdef float *decay
    cdef float *beta
    cdef double a
    for i in range(n_rows):
        rate = work.wide + i * work.stride + d.channels + heads * d.dim
        for h in range(heads):
            decay, beta = rate + decay_at(d, h), rate + beta_at(d, h)
            a = <double>decay[0] + d.dt[h]
            a = a + log1p(exp(-a)) if a > 0 else log1p(exp(a))
            decay[0] = <float>exp(d.log_decay[h] * a)
            beta[0] = <float>(1.0 / (1.0 + exp(-<double>beta[0])))


cdef void convolve_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef DeltaWork *work = <DeltaWork *>context
    cdef const Delta *d = work.layer
    cdef const Segment *s
    cdef const float *x
    cdef const float *w
    cdef float *y
    cdef int32_t i, k, c, h, back, channels = d.channels
    for i in range(begin, end):
        s = &work.segments[work.segment_of[i]]
        y = work.mixed + <int64_t>i * channels
        for k in range(d.taps):
            back = i - s.first - (d.taps - 1) + k       # of the sequence's rows in this pass
            if back >= 0:
                x = work.wide + (s.first + back) * work.stride
            else:
                x = s.before + d.window_at + <int64_t>(back + d.taps - 1) * channels
            w = d.conv + <int64_t>k * channels
            if k == 0:
                for c in range(channels):
                    y[c] = w[c] * x[c]
            else:
                for c in range(channels):
                    y[c] = y[c] + w[c] * x[c]
        table.glu(y, d.ones, channels, LB_SILU)
        for h in range(2 * d.n_key_heads):              # x / sqrt(sum x**2 + eps), by the mean of the squares
            table.rms_norm(y + h * d.dim, d.query_scale if h < d.n_key_heads else d.key_scale, d.dim,
                           work.eps / d.dim, y + h * d.dim)


cdef void delta_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef DeltaWork *work = <DeltaWork *>context
    cdef const Delta *d = work.layer
    cdef const Segment *s
    cdef const float *rate
    cdef const float *before
    cdef float *after
    cdef float *y
    cdef int32_t unit, h, i, back, key, decay, beta, keys = d.n_key_heads * d.dim
    cdef int64_t size = <int64_t>d.dim * ((d.dim + 15) // 16 * 16)
    for unit in range(begin, end):
        s = &work.segments[unit // d.n_value_heads]
        h = unit % d.n_value_heads
        key = (h // (d.n_value_heads // d.n_key_heads) if d.grouped else h % d.n_key_heads) * d.dim
        decay, beta = decay_at(d, h), beta_at(d, h)
        before = s.before + d.matrix_at + h * size
        after = s.after + d.matrix_at + h * size
        for i in range(s.first, s.first + s.rows):
            y = work.mixed + <int64_t>i * d.channels
            rate = work.wide + i * work.stride + d.channels + d.n_value_heads * d.dim
            table.delta(before, after, y + key, y + keys + key, y + 2 * keys + h * d.dim, rate[decay], rate[beta],
                        d.dim, y + 2 * keys + h * d.dim)
            before = after
        if h == 0:
            for i in range(d.taps - 1):
                back = s.rows - (d.taps - 1) + i
                before = (work.wide + (s.first + back) * work.stride if back >= 0
                          else s.before + d.window_at + <int64_t>(back + d.taps - 1) * d.channels)
                memcpy(s.after + d.window_at + <int64_t>i * d.channels, before, 4 * <size_t>d.channels)


cdef void gate_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef DeltaWork *work = <DeltaWork *>context
    cdef const Delta *d = work.layer
    cdef float *y
    cdef int32_t i, h
    for i in range(begin, end):
        y = work.mixed + <int64_t>i * d.channels + 2 * d.n_key_heads * d.dim
        for h in range(d.n_value_heads):
            table.rms_norm(y + h * d.dim, d.norm, d.dim, work.eps, y + h * d.dim)
        table.glu(work.wide + i * work.stride + d.channels, y, d.n_value_heads * d.dim, LB_SILU)
