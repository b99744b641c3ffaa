"""The one forward pass: rows through all layers of a graph.

1. Rows may be sparse: of the inputs of a linear layer, after its norm and before they become int8, only the largest
   count. Where weights read rotated inputs, the choice is among these, and weights beside them that do not read all.
   Matrices for sparse rows are channel-major (`sparse.pyx`), and inputs that are 0 cost nothing.
2. Work is handed to the pool in row groups (products), rows (norms) and (row, head) pairs (attention). Small work
   stays on the calling thread, where it is done sooner than a thread wakes up.
"""
from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t

from lowbit._kernels.dispatch cimport (
    LB_KV_F16, LB_KV_F32, LB_PIECE, Buffers, Interrupts, begin_doubles, end_floats, lb_activations, lb_attention_args,
    lb_float_mode, lb_matrix, parallel,
)
from lowbit._kernels.deltanet cimport DeltaWork, Segment, mix
from lowbit._kernels.filling cimport matrix_row
from lowbit._kernels.graph cimport Graph, Layer, Linear
from lowbit._kernels.kvpool cimport KVPool
from lowbit._kernels.latent cimport LatentLayer, LatentRows, LatentScratch
from lowbit._kernels.matrix cimport is_float, padded_cols, row_stride
from lowbit._kernels.moe cimport ExpertLayer, ExpertScratch, Rows
from lowbit._kernels.ops cimport (
    ATTENTION_ROWS, AddWork, GateWork, GluWork, NormWork, RopeWork, add_work, attend, gate_work, glu_work, norm_work,
    rope_work, scale_by, unrotate,
)
from lowbit._kernels.paging cimport PagedMatrix
from lowbit._kernels.profile cimport ADD, ATTENTION, EMBED, EXPERTS, GLU, HEAD, MIX, NORM, ROPE
from lowbit._kernels.products cimport multiply
from lowbit._kernels.shortlist cimport Shortlist


cdef enum:
    LOOK_ROWS = 8                   # of a pass in which Ctrl-C is looked for before every layer


cdef class ForwardPass:
    """The walk through a graph, with the scratch memory that it needs and the rows that it takes; see `Decoder`."""

    def __cinit__(self, Graph graph not None, KVPool pool not None, int32_t threads, int32_t batch=256):
        cdef size_t rows = batch
        cdef int32_t q_size = graph.q_size, wide
        cdef Buffers scratch = Buffers()
        self.graph, self.pool, self.threads, self.batch = graph, pool, threads, batch
        self.scratch, self.interrupts = scratch, Interrupts()
        wide = max(graph.qkv_size, 2 * graph.intermediate, graph.hidden)
        self.x = <float *>scratch.take(rows, <size_t>graph.hidden * 4)
        self.h = <float *>scratch.take(rows, <size_t>max(graph.hidden, q_size, graph.intermediate) * 4)
        self.normed = <float *>scratch.take(rows, <size_t>graph.inner * 4)
        self.wide = <float *>scratch.take(rows, <size_t>wide * 4)
        self.attended = <float *>scratch.take(rows, <size_t>max(q_size, graph.hidden) * 4)
        self.gates = <float *>scratch.take(rows, <size_t>(q_size if graph.gated else 0) * 4)
        self.n_parts = (graph.context + LB_PIECE - 1) // LB_PIECE
        self.parts = <float *>scratch.take(self.n_parts, <size_t>graph.part_floats * 4) if self.n_parts > 1 else NULL
        self.mixed = <float *>scratch.take(rows, <size_t>graph.channels * 4)
        self.segments = <Segment *>scratch.take(rows, sizeof(Segment))
        self.segment_of = <int32_t *>scratch.take(rows, 4)
        self.q8 = <int8_t *>scratch.take(rows, graph.q_stride)
        self.scales = <float *>scratch.take(rows, <size_t>graph.n_groups * 4)
        self.sums = <int32_t *>scratch.take(rows, <size_t>graph.n_groups * 4)
        self.prepared = scratch.take(1, graph.prepared)
        self.tokens = <int32_t *>scratch.take(rows, 4)
        self.positions = <int32_t *>scratch.take(rows, 4)
        self.blocks = <char ***>scratch.take(rows, sizeof(char **))
        self.sparse = <uint8_t *>scratch.take(rows, 1)
        self.few = <int32_t *>scratch.take(rows, 4)
        self.experts = ExpertScratch(graph.experts, rows) if graph.experts else None
        self.latents = LatentScratch(graph.latents, rows) if graph.latents else None
        self.scratch_bytes = scratch.nbytes + graph.sparse.nbytes + (self.experts.nbytes if graph.experts else 0)
        self.scratch_bytes += self.latents.nbytes if graph.latents else 0

    def shorten(self, head not None):
        """From now on make only the logits that matter, where it is known which do: with a `Shortlist` of the head."""
        self.shortlist = Shortlist(head)
        self.scratch_bytes += self.shortlist.nbytes

    cdef void _forward(self) noexcept nogil:
        """Take the rows through all layers; the result is in x."""
        cdef int32_t i
        cdef bint look = self.n_rows >= LOOK_ROWS or self.graph.pager is not None
        cdef lb_float_mode mode = begin_doubles()
        for i in range(self.n_rows):
            self._embed(self.tokens[i], self.x + <size_t>i * self.graph.hidden)
        scale_by(self.x, self.graph.embedding_scale, <int64_t>self.n_rows * self.graph.hidden)
        self._lap(EMBED)
        for i in range(self.graph.n_layers):
            if self.status == 0 and (lb_atomic_load(self.given_up) or ((look or i == 0) and self.interrupts.wanted())):
                self.status = INTERRUPTED
            if self.status == 0:
                self._layer(i)
        end_floats(mode)

    cdef void _lap(self, int32_t operation) noexcept nogil:
        """Tell the profile what was done since the last lap."""
        if self.profile is not None:
            self.profile.lap(operation)

    cdef void _embed(self, int32_t token, float *out) noexcept nogil:
        if self.graph.token_embd.paged == NULL:
            matrix_row(self.graph.token_embd.m, token, out)
        elif self.status == 0:
            self.status = (<PagedMatrix>self.graph.token_embd.paged).row(token, out)
        if self.graph.latent.factors != NULL:
            unrotate(&self.graph.latent, out, self.graph.hidden)

    cdef void _apply(self, Linear *linear, const float *x, int64_t x_stride, int32_t n_in, const float *norm,
                     int32_t n_rows, float *y) noexcept nogil:
        """y = linear(norm(x)); the input is rotated and quantised once for all parts that read it alike."""
        cdef NormWork work, inner
        cdef lb_activations a
        cdef const lb_matrix *m
        cdef const float *own
        cdef const lb_matrix *before = NULL
        cdef bint counts, rotated, turns
        cdef uint32_t *histogram = linear.histogram
        cdef int32_t part, chunk = 1 if n_rows < 4 * self.threads else 4
        cdef float *out = y
        work.x, work.x_stride, work.n, work.weight, work.out, work.eps = x, x_stride, n_in, norm, self.h, self.graph.eps
        work.q, work.scale, work.sum, work.per_token = self.q8, self.scales, self.sums, self.graph.per_token
        work.rotation.factors, work.rotated, work.sparse = NULL, self.normed, self.sparse
        for part in range(linear.n_parts):
            m = linear.parts[part].m
            own = linear.parts[part].norm
            work.reader = NULL if is_float(m.format) or own != NULL else m
            work.q_stride = 0 if is_float(m.format) else row_stride(m)
            work.n_groups = m.n_groups
            rotated = linear.parts[part].rotation.factors != NULL
            turns = rotated != (work.rotation.factors != NULL)
            work.rotation = linear.parts[part].rotation
            if before == NULL or turns or (work.reader != NULL and not same_input(before, m)):
                counts = rotated == linear.rotates and (rotated or before == NULL)
                work.keep, work.threshold = linear.keep if counts else 0, linear.threshold if counts else 0
                work.histogram = histogram if counts else NULL
                parallel(norm_work, &work, n_rows, chunk, self.threads)
                self._lap(NORM)
                histogram = NULL if counts else histogram
            if norm != NULL:
                work.x, work.x_stride, work.weight = self.h, n_in, NULL
            a.q, a.scale, a.sum, a.n_groups, a.n_tokens = self.q8, self.scales, self.sums, m.n_groups, n_rows
            a.x, a.stride = work.x, <int32_t>work.x_stride
            if rotated:
                a.x, a.stride = self.normed, n_in
            if own != NULL:
                inner = work
                inner.keep, inner.threshold, inner.histogram = 0, 0, NULL
                inner.weight, inner.out, inner.reader = own, self.normed, NULL if is_float(m.format) else m
                parallel(norm_work, &inner, n_rows, chunk, self.threads)
                self._lap(NORM)
                a.x, a.stride = self.normed, n_in
            if not is_float(m.format):
                a.stride = <int32_t>work.q_stride
            if m.tiles:
                self.graph.sparse.multiply(m, &a, out, NULL, linear.n_out, self.threads)
            elif self.shortlist is not None and linear.operation == HEAD:
                self.shortlist.multiply(m, &a, out, linear.n_out, self.few)
            elif linear.parts[part].paged == NULL:
                multiply(m, &a, out, NULL, linear.n_out, self.threads, self.prepared,
                         self.graph.prepared)
            elif self.status == 0:
                self.status = (<PagedMatrix>linear.parts[part].paged).multiply_paged(
                    &a, out, linear.n_out, self.threads)
            if self.profile is not None:
                self.profile.read(m, n_rows)
            self._lap(linear.operation)
            out += m.n_rows
            before = m

    cdef void _layer(self, int32_t index) noexcept nogil:
        cdef Layer *layer = &self.graph.layers[index]
        cdef AddWork add
        cdef int32_t n_rows = self.n_rows, hidden = self.graph.hidden
        cdef int32_t chunk = 1 if n_rows < 4 * self.threads else 4

        add.x, add.n, add.eps, add.scale = self.x, hidden, self.graph.eps, self.graph.residual_scale
        self._apply(&layer.qkv, self.x, hidden, hidden, layer.attn_norm, n_rows, self.wide)
        add.bias = layer.attn_output.bias
        if layer.recurrent:
            self._recur(layer)
            add.y = self.attended
        else:
            if layer.latent == NULL:
                self._attend(layer)
            else:
                self._attend_latents(layer, <LatentLayer>layer.latent)
            add.y = self.wide
        add.norm = layer.attn_post_norm
        parallel(add_work, &add, n_rows, chunk, self.threads)
        self._lap(ADD)

        if layer.experts != NULL:
            self._experts(layer)
            self._lap(EXPERTS)
            return
        self._dense(layer, self.x, layer.ffn_norm)
        add.y, add.bias, add.norm = self.attended, NULL, layer.ffn_post_norm
        parallel(add_work, &add, n_rows, chunk, self.threads)
        self._lap(ADD)

    cdef void _attend(self, Layer *layer) noexcept nogil:
        """From queries, keys and values in `wide` to what is added to the residual stream, in `wide` too."""
        cdef RopeWork rope
        cdef lb_attention_args attention
        cdef GateWork gate
        cdef int32_t n_rows = self.n_rows, q_size = layer.n_heads * layer.head_dim, seen, i
        cdef int32_t chunk = 1 if n_rows < 4 * self.threads else 4
        cdef int64_t work = 0
        attention.q_stride = layer.qkv.n_out
        attention.q, attention.out = self.wide, self.attended
        attention.blocks, attention.positions = self.blocks, self.positions
        attention.kv = self.pool.layer(layer.kv_index)
        attention.n_heads, attention.n_kv_heads = layer.n_heads, layer.n_kv_heads
        attention.head_dim, attention.kv_type = layer.head_dim, self.pool.kv_type
        attention.value_dim = layer.head_dim
        attention.window, attention.sinks = layer.window, layer.sinks
        attention.parts, attention.n_parts = self.parts, self.n_parts
        rope.qkv, rope.gates = self.wide, self.gates if layer.gated else NULL
        rope.bias, rope.q_norm, rope.k_norm = layer.qkv.bias, layer.q_norm, layer.k_norm
        rope.cos, rope.sin, rope.shape, rope.n_out = layer.cos, layer.sin, attention, layer.qkv.n_out
        rope.rope_dim, rope.halves, rope.norm_after = layer.rope_dim, layer.halves, layer.norm_after_rope
        rope.eps, rope.q_scale = self.graph.eps, layer.q_scale
        rope.whole_norm = layer.whole_norm
        parallel(rope_work, &rope, n_rows, chunk, self.threads)
        self._lap(ROPE)
        for i in range(n_rows):
            seen = self.positions[i] + 1
            work += <int64_t>(min(seen, layer.window) if layer.window else seen) * q_size
        attend(&attention, n_rows, work, self.threads)
        if layer.gated:
            gate.x, gate.gate, gate.n = self.attended, self.gates, q_size
            parallel(gate_work, &gate, n_rows, chunk, self.threads)
        if self.profile is not None:
            self.profile.open.products = 2 * work
            self.profile.open.bytes = self._kv_bytes(layer)
        self._lap(ATTENTION)
        self._apply(&layer.attn_output, self.attended, q_size, q_size, layer.attn_sub_norm, n_rows, self.wide)

    cdef int64_t _kv_bytes(self, Layer *layer) noexcept nogil:
        """Bytes of keys and values that a layer reads for one sequence: rows of a tile share them."""
        cdef int32_t size = 4 if self.pool.kv_type == LB_KV_F32 else 2 if self.pool.kv_type == LB_KV_F16 else 1
        cdef int32_t i, seen
        cdef int64_t positions = 0
        for i in range(self.n_rows):
            if (i == self.n_rows - 1 or i % ATTENTION_ROWS == ATTENTION_ROWS - 1
                    or self.blocks[i] != self.blocks[i + 1]):
                seen = self.positions[i] + 1
                positions += min(seen, layer.window) if layer.window else seen
        return 2 * positions * layer.n_kv_heads * (size * layer.head_dim + (4 if size == 1 else 0))

    cdef void _attend_latents(self, Layer *layer, LatentLayer latent) noexcept nogil:
        """The same for latent attention: `wide` has queries, or what they are made of, and latents."""
        cdef LatentRows rows
        cdef int32_t size = latent.n_heads * latent.value_size
        rows.q, rows.q_stride = self.wide, layer.qkv.n_out
        if latent.q_rank:
            rows.q, rows.q_stride = self.latents.queries, layer.q_b.n_out
            self._apply(&layer.q_b, self.wide, layer.qkv.n_out, latent.q_rank, layer.q_a_norm, self.n_rows, rows.q)
        rows.kv, rows.kv_stride = self.wide + layer.qkv.n_out - latent.rank - latent.rope, layer.qkv.n_out
        rows.out, rows.blocks, rows.positions = self.attended, self.blocks, self.positions
        rows.cos, rows.sin, rows.halves = layer.cos, layer.sin, layer.halves
        rows.place, rows.kv_type = self.pool.layer(layer.kv_index), self.pool.kv_type
        rows.n, rows.threads, rows.per_token = self.n_rows, self.threads, self.graph.per_token
        rows.eps, rows.q_scale = self.graph.eps, layer.q_scale
        self.latents.run(latent, &rows)
        self._lap(ATTENTION)
        self._apply(&layer.attn_output, self.attended, size, size, NULL, self.n_rows, self.wide)

    cdef void _recur(self, Layer *layer) noexcept nogil:
        """From the inputs of a recurrent layer in `wide` to what is added to the residual stream, in `attended`."""
        cdef DeltaWork work
        work.layer, work.segments, work.segment_of = &layer.delta, self.segments, self.segment_of
        work.wide, work.stride, work.mixed, work.eps = self.wide, layer.qkv.n_out, self.mixed, self.graph.eps
        mix(&work, self.n_rows, self.n_segments, self.threads)
        self._lap(MIX)
        self._apply(&layer.attn_output, self.wide + layer.delta.channels, layer.qkv.n_out,
                    layer.delta.n_value_heads * layer.delta.dim, NULL, self.n_rows, self.attended)

    cdef void _dense(self, Layer *layer, const float *x, const float *norm) noexcept nogil:
        """attended = the gated feed-forward, or the shared expert, of norm(x)."""
        cdef GluWork glu
        cdef int32_t n_rows = self.n_rows, hidden = self.graph.hidden, wide = layer.wide
        self._apply(&layer.gate_up, x, hidden, hidden, norm, n_rows, self.wide)
        glu.gate_up, glu.n, glu.activation = self.wide, wide, layer.activation
        parallel(glu_work, &glu, n_rows, 1 if n_rows < 4 * self.threads else 4, self.threads)
        self._lap(GLU)
        self._apply(&layer.ffn_down, self.wide, 2 * wide, wide, layer.ffn_sub_norm, n_rows, self.attended)

    cdef void _experts(self, Layer *layer) noexcept nogil:
        """x += the experts of norm(x), which the router's product leaves in h."""
        cdef Rows rows
        cdef int32_t hidden = self.graph.hidden
        self._apply(&layer.router, self.x, hidden, hidden, layer.ffn_norm, self.n_rows, self.experts.logits)
        rows.x, rows.out, rows.shared, rows.gates = self.h, self.x, NULL, NULL
        rows.q8, rows.scales, rows.sums = self.q8, self.scales, self.sums
        rows.n, rows.threads, rows.per_token = self.n_rows, self.threads, self.graph.per_token
        if layer.wide:
            self._dense(layer, self.h, NULL)
            rows.shared = self.attended
        if layer.shared_gate.n_parts:
            self._apply(&layer.shared_gate, self.h, hidden, hidden, NULL, self.n_rows, self.experts.gates)
            rows.gates = self.experts.gates
        if self.status == 0:
            self.status = self.experts.run(<ExpertLayer>layer.experts, &rows)


cdef bint same_input(const lb_matrix *a, const lb_matrix *b) noexcept nogil:
    """Whether the int8 activations made for one matrix serve the other."""
    return (not is_float(a.format) and a.group_cols == b.group_cols and padded_cols(a) == padded_cols(b))
