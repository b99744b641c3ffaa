"""What is done to rows between the products of a pass, as work units of the pool."""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memmove

from lowbit._kernels.dispatch cimport LB_KV_SPAN, LB_PIECE, lb_attention_args, parallel, table
from lowbit._kernels.matrix cimport padded_cols
from lowbit._kernels.topk cimport count_magnitudes, keep_from, keep_largest


cdef void scale_by(float *x, float factor, int64_t n) noexcept nogil:
    cdef int64_t i
    for i in range(n if factor != 1 else 0):
        x[i] = x[i] * factor


cdef void rotate(const Rotation *c, const float *x, int32_t n, float *out) noexcept nogil:
    cdef int32_t heads, ratio, h, j
    cdef float *group
    if c.head_dim:
        heads = n // c.head_dim
        ratio = heads // c.key_heads
        for h in range(heads):
            group = out + (h // c.key_heads + h % c.key_heads * ratio) * c.head_dim
            memcpy(group, x + h * c.head_dim, sizeof(float) * <size_t>c.head_dim)
        x = out
    for j in range(n):
        out[j] = x[j] * c.factors[j]
    table.hadamard(out, n, c.block)


cdef void unrotate(const Rotation *rotation, float *x, int32_t n) noexcept nogil:
    """x = factors * (H x), which is the inverse."""
    cdef int32_t j
    table.hadamard(x, n, rotation.block)
    for j in range(n):
        x[j] = x[j] * rotation.factors[j]


cdef void norm_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef NormWork *c = <NormWork *>context
    cdef int64_t i
    cdef const float *x
    for i in range(begin, end):
        x = c.x + i * c.x_stride
        if c.weight != NULL:
            table.rms_norm(x, c.weight, c.n, c.eps, c.out + i * c.n)
            x = c.out + i * c.n
        if c.rotation.factors != NULL:
            rotate(&c.rotation, x, c.n, c.rotated + i * c.n)
            x = c.rotated + i * c.n
        if c.histogram != NULL:
            count_magnitudes(x, c.n, c.histogram)
        if c.keep > 0 and c.sparse[i]:      # what is not normalised is scratch memory too
            keep_largest(<float *>x, c.n, c.keep)
        if c.threshold > 0 and c.sparse[i]:
            keep_from(<float *>x, c.n, c.threshold)
        if c.reader != NULL:
            table.quantize(x, c.n, c.reader.group_cols, c.per_token, padded_cols(c.reader), c.q + i * c.q_stride,
                           c.scale + i * c.n_groups, c.sum + i * c.n_groups)


cdef void attend(const lb_attention_args *args, int32_t n_rows, int64_t work, int32_t threads) noexcept nogil:
    """Attention of all rows. A row that comes alone is shared out by pieces of its positions too, if there is `parts`.

    Heads of a unit lie together in each block, so that it reads few streams.
    """
    cdef AttentionWork c
    cdef int32_t heads = args.n_kv_heads, seen = args.positions[0] + 1, i
    c.args, c.n_rows, c.piece = args[0], n_rows, 0
    c.tiles = (n_rows + ATTENTION_ROWS - 1) // ATTENTION_ROWS
    if work <= ATTENTION_GRAIN:
        threads = 1
    if args.window and seen > args.window:
        c.piece = (seen - args.window) // LB_PIECE
    if n_rows > 1 or threads == 1 or (seen - 1) // LB_PIECE == c.piece:
        c.args.parts = NULL
    if c.args.parts != NULL:
        c.tiles = (seen - 1) // LB_PIECE - c.piece + 1
    c.run = max(1, min(heads, heads * c.tiles // (2 * threads)))
    parallel(attention_work, &c, c.tiles * ((heads + c.run - 1) // c.run), 1, threads)
    if c.args.parts != NULL:
        for i in range(args.n_heads):
            table.attention_sum(&c.args, i)


cdef void attention_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef AttentionWork *c = <AttentionWork *>context
    cdef int32_t heads = c.args.n_kv_heads, runs = (heads + c.run - 1) // c.run, unit, tile, row = 0, head
    for unit in range(begin, end):
        tile = unit // runs
        if c.args.parts == NULL:    # the last rows of a prompt have the most positions, so they come first
            row = (c.tiles - 1 - tile) * ATTENTION_ROWS
        head = unit % runs * c.run
        table.attention(&c.args, row, min(<int32_t>ATTENTION_ROWS, c.n_rows - row), head, min(c.run, heads - head),
                        c.piece + tile)


cdef void add_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef AddWork *c = <AddWork *>context
    cdef int64_t i
    for i in range(begin, end if c.bias != NULL else begin):
        table.add(c.y + i * c.n, c.bias, c.n)
    for i in range(begin, end if c.norm != NULL else begin):
        table.rms_norm(c.y + i * c.n, c.norm, c.n, c.eps, c.y + i * c.n)
    scale_by(c.y + <int64_t>begin * c.n, c.scale, <int64_t>(end - begin) * c.n)
    table.add(c.x + <int64_t>begin * c.n, c.y + <int64_t>begin * c.n, (end - begin) * c.n)


cdef void glu_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef GluWork *c = <GluWork *>context
    cdef int64_t i
    for i in range(begin, end):
        table.glu(c.gate_up + 2 * i * c.n, c.gate_up + (2 * i + 1) * c.n, c.n, c.activation)


cdef void gate_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef GateWork *c = <GateWork *>context
    cdef float *x = c.x + <int64_t>begin * c.n
    cdef float *gate = c.gate + <int64_t>begin * c.n
    cdef int32_t n = (end - begin) * c.n, i
    table.exp(gate, 0.0, -1.0, n, gate)
    for i in range(n):
        x[i] = x[i] / (1 + gate[i])


cdef void turn(float *head, int32_t dim, bint halves, const float *cos, const float *sin) noexcept nogil:
    cdef int32_t half = dim // 2, j
    cdef float a, b
    if halves:
        for j in range(half):
            a = head[j]
            b = head[j + half]
            head[j] = a * cos[j] - b * sin[j]
            head[j + half] = a * sin[j] + b * cos[j]
    else:
        for j in range(half):
            a = head[2 * j]
            b = head[2 * j + 1]
            head[2 * j] = a * cos[j] - b * sin[j]
            head[2 * j + 1] = a * sin[j] + b * cos[j]


cdef void rope_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef RopeWork *c = <RopeWork *>context
    cdef int32_t dim = c.shape.head_dim, n_heads = c.shape.n_heads, n_kv = c.shape.n_kv_heads, h, j
    cdef int32_t position
    cdef int64_t i, at
    cdef float *q
    cdef float *k
    cdef const float *norm
    for i in range(begin, end):
        q = c.qkv + i * c.n_out
        k = q + n_heads * dim
        if c.gates != NULL:
            for h in range(n_heads):
                memcpy(c.gates + (i * n_heads + h) * dim, q + (2 * h + 1) * dim, sizeof(float) * <size_t>dim)
                memmove(q + h * dim, q + 2 * h * dim, sizeof(float) * <size_t>dim)
            memmove(k, k + n_heads * dim, sizeof(float) * <size_t>(2 * n_kv * dim))
        position = c.shape.positions[i]
        at = <int64_t>position * (c.rope_dim // 2)
        if c.bias != NULL:
            table.add(q, c.bias, c.n_out)
        if c.whole_norm:
            table.rms_norm(q, c.q_norm, n_heads * dim, c.eps, q)
            table.rms_norm(k, c.k_norm, n_kv * dim, c.eps, k)
        for h in range(n_heads + n_kv):
            norm = NULL if c.whole_norm else c.q_norm if h < n_heads else c.k_norm
            if norm != NULL and not c.norm_after:
                table.rms_norm(q + h * dim, norm, dim, c.eps, q + h * dim)
            if c.rope_dim:
                turn(q + h * dim, c.rope_dim, c.halves, c.cos + at, c.sin + at)
            if norm != NULL and c.norm_after:
                table.rms_norm(q + h * dim, norm, dim, c.eps, q + h * dim)
        for j in range(n_heads * dim):
            q[j] = q[j] * c.q_scale
        table.kv_store(k, k + n_kv * dim, c.shape.blocks[i][position // <int32_t>LB_KV_SPAN], &c.shape, position)
