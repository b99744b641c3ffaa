"""The one forward pass, for a batch of rows: a row is one token at one position of one sequence.

1. Prefill is many rows of one sequence, decode is one row, batched decode is one row of each sequence: the same code.
   A row's result does not depend on the other rows, so all of these give the same bits.
2. A family is data: norms that are there or not, the pairing of RoPE, the activation, and how activations become int8.
3. All memory is taken before the first token: scratch for a batch of rows, and a cache per sequence that is only
   committed as it fills. Between tokens there is no allocation and no Python.
4. Rows that decode may be sparse: of the inputs of a linear layer, after its norm and before they become int8, only
   the largest count. Matrices for these are channel-major (`topk.pyx`), and inputs that are 0 cost nothing.
5. Work is handed to the pool in row groups (products), rows (norms) and (row, head) pairs (attention). Small work
   stays on the calling thread, where it is done sooner than a thread wakes up.
"""
from libc.math cimport sqrt
from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, int64_t, uint32_t
from libc.string cimport memcpy, memset

from lowbit._kernels.dispatch cimport (
    LB_KV_F16, LB_KV_F32, LB_KV_I8, LB_MAX_HEAD_DIM, Interrupts, alloc_aligned, begin_doubles, checked, end_floats,
    free_aligned, lb_activations, lb_float_mode, lb_kv, lb_kv_layout, lb_lay_out_kv, lb_matrix, lb_plus, lb_times,
    parallel,
)
from lowbit._kernels.matrix cimport PackedMatrix, is_float, matrix_row, padded_cols, row_stride
from lowbit._kernels.paged_channels cimport PagedChannels
from lowbit._kernels.paging cimport PagedMatrix, Pager
from lowbit._kernels.products cimport multiply
from lowbit._kernels.sampler cimport Sampler
from lowbit._kernels.steps cimport (
    ATTENTION_ROWS, AddWork, AttentionWork, GluWork, NormWork, RopeWork, add_work, attention_work, glu_work, norm_work,
    rope_work,
)
from lowbit._kernels.topk cimport SparseScratch

import numpy as np

from lowbit.errors import ContextLengthError, FormatError

KV_TYPES = {"f32": LB_KV_F32, "f16": LB_KV_F16, "int8": LB_KV_I8}

cdef enum:
    ATTENTION_GRAIN = 1 << 18       # products of scores and values below which attention stays on one thread
    CHANNEL_ROWS = 2                # rows up to which channels in a file are read one by one
    MAX_DRAFT = 8                   # tokens proposed at a time by prompt look-up
    INTERRUPTED = -1                # status of a pass that Ctrl-C ended


# One sequence that is being decoded.
cdef struct Sequence:
    void *cache
    void *sampler
    int32_t pending
    int32_t n               # tokens to make
    int32_t made
    bint done
    int32_t *out
    int32_t *said           # all tokens so far, if some may be proposed from them
    int64_t n_said


cdef class KVCache:
    """Keys and values of one sequence, for up to `capacity` positions."""

    def __cinit__(self, Transformer model not None, int32_t capacity):
        cdef size_t element = 4 if model.kv_type == LB_KV_F32 else 2 if model.kv_type == LB_KV_F16 else 1
        if not 1 <= capacity <= model.context:
            raise ContextLengthError(f"a cache of {capacity} positions does not fit a context of {model.context}")
        self.capacity = capacity
        self.layout = lb_lay_out_kv(element, model.n_kv_heads, model.head_dim, capacity, model.n_layers)
        self.nbytes = checked(self.layout.nbytes, f"keys and values of {capacity} tokens")
        self.memory = <char *>alloc_aligned(self.nbytes)
        if self.memory == NULL:
            raise MemoryError(f"no memory for a context of {capacity} tokens ({self.nbytes} bytes)")

    def __dealloc__(self):
        free_aligned(self.memory)

    cdef lb_kv layer(self, int32_t index) noexcept nogil:
        cdef lb_kv kv
        cdef const lb_kv_layout *at = &self.layout
        cdef char *base = self.memory + at.layer_bytes * index
        kv.keys, kv.values = base, base + at.values_at
        kv.key_scales, kv.value_scales = <float *>(base + at.key_scales_at), <float *>(base + at.value_scales_at)
        kv.key_stride, kv.value_stride, kv.scale_stride = at.key_stride, at.value_stride, at.scale_stride
        return kv

    cdef void advance(self) noexcept nogil:
        self.length += 1

    def truncate(self, int32_t length) -> None:
        """Forget the positions from `length` on, if there are any."""
        self.length = min(self.length, max(length, 0))


cdef class Transformer:
    """Weights and scratch memory of one model.

    Parameters
    ----------
    config : lowbit.ModelConfig
    layers : list of dict
        Per layer: ``attn_norm``, ``ffn_norm`` and, where the family has them, ``attn_sub_norm``, ``ffn_sub_norm``,
        ``attn_q_norm``, ``attn_k_norm``, ``qkv_bias`` (float32 arrays); ``qkv``, ``attn_output``, ``gate_up``,
        ``ffn_down`` (lists of PackedMatrix or PagedMatrix whose outputs lie side by side).
    token_embd, output : PackedMatrix or PagedMatrix
        (vocab_size, hidden_size); the same object if tied.
    output_norm : ndarray of float32, shape (hidden_size,)
    context : int
        Longest sequence, in tokens.
    threads : int
    batch : int
        Most rows that one pass takes.
    kv_type : str
        ``f32``, ``f16`` or ``int8``.
    pager : Pager, optional
        That of the paged matrices, if there are any; to be started before the first pass.
    """
    cdef readonly int32_t n_layers, n_heads, n_kv_heads, head_dim, hidden, intermediate, vocab, context, batch
    cdef public int32_t threads, most_logits     # most_logits: rows whose logits `decode` may hold
    cdef int32_t kv_type, rope_dim, q_stride, n_groups, logits_rows
    cdef bint halves, relu2, per_token
    cdef readonly bint sparse_decode        # not all inputs count in rows that decode
    cdef public bint sparse_prefill         # nor in those of prompts
    cdef bint sparse_rows
    cdef SparseScratch sparse
    cdef float eps
    cdef Layer *layers
    cdef Part token_embd
    cdef readonly Pager pager
    cdef int failed             # INTERRUPTED, or status of a paged matrix that could not be read; 0 if all is well
    cdef Interrupts interrupts
    cdef Linear output
    cdef const float *output_norm
    cdef const float *cos
    cdef const float *sin
    cdef list keep              # owners of all that is pointed to
    cdef readonly size_t scratch_bytes, weight_bytes
    cdef size_t embedding_bytes
    cdef float *x
    cdef float *h
    cdef float *wide            # q, k and v; or gate and up
    cdef float *attended
    cdef float *logits
    cdef object logits_owner
    cdef int8_t *q8
    cdef float *scales
    cdef int32_t *sums
    cdef lb_kv *kv
    cdef int32_t *positions
    cdef int32_t *tokens

    def __cinit__(self, config, list layers, token_embd, output, output_norm,
                  int32_t context, int32_t threads, int32_t batch=256, str kv_type="f32", Pager pager=None):
        cdef int32_t i, wide
        cdef size_t rows = batch
        self.keep = []
        self.interrupts = Interrupts()
        if len(layers) != config.n_layers or config.n_layers < 1:
            raise FormatError(f"{len(layers)} layers given for a model of {config.n_layers}")
        if kv_type not in KV_TYPES:
            raise ValueError(f"kv_type must be one of {', '.join(KV_TYPES)}, not {kv_type!r}")
        if not 1 <= config.head_dim <= LB_MAX_HEAD_DIM:
            raise FormatError(f"heads of {config.head_dim} channels are not supported")
        self.kv_type = KV_TYPES[kv_type]
        self.n_layers, self.n_heads, self.n_kv_heads = config.n_layers, config.n_heads, config.n_kv_heads
        self.head_dim, self.hidden, self.intermediate = config.head_dim, config.hidden_size, config.intermediate_size
        self.vocab, self.context, self.batch, self.threads = config.vocab_size, context, batch, threads
        self.rope_dim = config.rope_dim or config.head_dim
        if self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads or self.rope_dim % 2 or self.rope_dim > self.head_dim:
            raise FormatError("the numbers of heads and rotated channels do not fit together")
        self.halves = config.rope_pairing == "halves"
        self.relu2 = config.activation == "relu2"
        self.per_token = config.activation_quant == "token"
        self.eps = config.norm_eps
        self._make_rope(config)

        self.sparse = SparseScratch()
        self.q_stride = self.n_groups = 1
        self.layers = <Layer *>alloc_aligned(sizeof(Layer) * <size_t>self.n_layers)
        if self.layers == NULL:
            raise MemoryError("no memory for the layers")
        q_size, kv_size = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        for i, layer in enumerate(layers):
            one = &self.layers[i]
            one.attn_norm = self._vector(layer["attn_norm"], self.hidden)
            one.ffn_norm = self._vector(layer["ffn_norm"], self.hidden)
            one.attn_sub_norm = self._vector(layer.get("attn_sub_norm"), q_size)
            one.ffn_sub_norm = self._vector(layer.get("ffn_sub_norm"), self.intermediate)
            one.q_norm = self._vector(layer.get("attn_q_norm"), self.head_dim)
            one.k_norm = self._vector(layer.get("attn_k_norm"), self.head_dim)
            one.qkv = self._linear(layer["qkv"], self.hidden, q_size + 2 * kv_size)
            one.qkv.bias = self._vector(layer.get("qkv_bias"), q_size + 2 * kv_size)
            one.attn_output = self._linear(layer["attn_output"], q_size, self.hidden)
            one.gate_up = self._linear(layer["gate_up"], self.hidden, 2 * self.intermediate)
            one.ffn_down = self._linear(layer["ffn_down"], self.intermediate, self.hidden)
            for name in ("qkv", "attn_output", "gate_up", "ffn_down"):
                channels = layer.get(name + "_channels")
                if channels is not None:
                    self._named(i, name).channels = <void *>(<PagedChannels?>channels)
                    self.keep.append(channels)
        self.pager = pager
        self.output = self._linear([output], self.hidden, self.vocab)
        self.token_embd = self.output.parts[0]
        if token_embd is not output:
            self.token_embd = self._linear([token_embd], self.hidden, self.vocab).parts[0]
            self.embedding_bytes = token_embd.nbytes
        self.output_norm = self._vector(output_norm, self.hidden)

        wide = max(q_size + 2 * kv_size, 2 * self.intermediate, self.hidden)
        self.x = <float *>self._scratch(rows, <size_t>self.hidden * 4)
        self.h = <float *>self._scratch(rows, <size_t>max(self.hidden, q_size, self.intermediate) * 4)
        self.wide = <float *>self._scratch(rows, <size_t>wide * 4)
        self.attended = <float *>self._scratch(rows, <size_t>max(q_size, self.hidden) * 4)
        self.most_logits = batch
        self._need_logits(1)
        self.q8 = <int8_t *>self._scratch(rows, self.q_stride)
        self.scales = <float *>self._scratch(rows, <size_t>self.n_groups * 4)
        self.sums = <int32_t *>self._scratch(rows, <size_t>self.n_groups * 4)
        self.kv = <lb_kv *>self._scratch(rows, self.n_layers * sizeof(lb_kv))
        self.positions = <int32_t *>self._scratch(rows, 4)
        self.tokens = <int32_t *>self._scratch(rows, 4)
        self.scratch_bytes += self.sparse.nbytes

    def __dealloc__(self):
        free_aligned(self.layers)

    def _make_rope(self, config):
        """rope_scale times cos and sin of position * theta**(-2j/d) / factor, made in double."""
        cdef const float[:, ::1] view
        checked(lb_times(<size_t>self.context, <size_t>self.rope_dim * 2), f"rotations of {self.context} positions")
        inverse = config.rope_theta ** (-np.arange(0, self.rope_dim, 2, dtype=np.float64) / self.rope_dim)
        if config.rope_factors:
            if len(config.rope_factors) != len(inverse):
                raise FormatError(f"{len(config.rope_factors)} RoPE factors for {len(inverse)} pairs of channels")
            inverse = inverse / np.asarray(config.rope_factors, np.float64)
        for name, function in (("cos", np.cos), ("sin", np.sin)):
            values = np.empty((self.context, len(inverse)), np.float32)
            for start in range(0, self.context, 256):  # doubles of all positions would take four times the table
                positions = np.arange(start, min(start + 256, self.context), dtype=np.float64)
                values[start:start + 256] = function(positions[:, None] * inverse) * config.rope_scale
            self.keep.append(values)
            view = values
            if name == "cos":
                self.cos = &view[0, 0]
            else:
                self.sin = &view[0, 0]

    cdef const float *_vector(self, values, int32_t size) except? NULL:
        cdef const float[::1] view
        if values is None:
            return NULL
        values = np.require(values, np.float32, "CA")  # a file's floats can begin at any byte
        if values.shape != (size,):
            raise FormatError(f"a vector of shape {values.shape} stands where {size} values belong")
        self.keep.append(values)
        self.weight_bytes += values.nbytes
        view = values
        return &view[0]

    cdef Linear _linear(self, list parts, int32_t n_in, int32_t n_out) except *:
        cdef Linear linear
        cdef const lb_matrix *m
        linear.n_parts, linear.n_out, linear.bias = len(parts), n_out, NULL
        linear.keep, linear.threshold, linear.histogram, linear.channels = 0, 0, NULL, NULL
        if not 1 <= len(parts) <= MAX_PARTS or sum(part.shape[0] for part in parts) != n_out:
            raise FormatError(f"matrices {parts} do not have {n_out} rows together")
        for i, matrix in enumerate(parts):
            linear.parts[i].paged = NULL
            if isinstance(matrix, PagedMatrix):
                m = &(<PagedMatrix>matrix).m
                linear.parts[i].paged = <void *>matrix
            else:
                m = &(<PackedMatrix?>matrix).m
            if m.n_cols != n_in:
                raise FormatError(f"{matrix!r} stands where {n_in} inputs belong")
            linear.parts[i].m = m
            self.keep.append(matrix)
            self.weight_bytes += matrix.nbytes
            if m.tiles:
                self.sparse.reserve(m, self.threads)
            if not is_float(m.format):
                self.q_stride = max(self.q_stride, row_stride(m))
                self.n_groups = max(self.n_groups, m.n_groups)
        return linear

    cdef void *_scratch(self, size_t rows, size_t row_bytes) except NULL:
        owner = scratch(rows, row_bytes)
        self.keep.append(owner)
        self.scratch_bytes += rows * row_bytes
        return address(owner)

    cdef Linear *_named(self, int32_t layer, str name) except NULL:
        cdef Layer *one = &self.layers[layer]
        if name == "qkv":
            return &one.qkv
        if name == "attn_output":
            return &one.attn_output
        if name == "gate_up":
            return &one.gate_up
        if name == "ffn_down":
            return &one.ffn_down
        raise ValueError(f"there is no linear layer {name!r}")

    def sparsify(self, list rules):
        """Say which inputs of the linear layers count in rows that decode.

        Parameters
        ----------
        rules : list of dict
            Per layer of the model: name of a linear layer to (keep, threshold). Of its n inputs those of the `keep`
            largest magnitudes count (0: all), if their magnitude is at least `threshold`.
        """
        cdef int32_t i
        cdef Linear *linear
        self.sparse_decode = True
        for i, named in enumerate(rules):
            for name, (keep, threshold) in named.items():
                linear = self._named(i, name)
                linear.keep, linear.threshold = keep, threshold

    @property
    def skipping(self):
        """Names of the linear layers that read only the weights of the inputs that count."""
        cdef Linear *linear
        names = []
        for name in ("qkv", "attn_output", "gate_up", "ffn_down"):
            linear = self._named(0, name)
            if linear.channels != NULL or linear.parts[0].m.tiles:
                names.append(name)
        return names

    def observe(self, const int32_t[::1] tokens not None, dict histograms not None):
        """Count how large the inputs of linear layers are, over a text.

        Parameters
        ----------
        tokens : ndarray of int32, shape (n,)
        histograms : dict of str to ndarray of uint32, shape (n_layers, 65536)
            Per linear layer; a magnitude counts at the upper 16 bits of its float32, without the sign. Added to.
        """
        cdef uint32_t[:, ::1] view
        cdef int32_t i, threads = self.threads
        for name, counts in histograms.items():
            view = counts
            for i in range(self.n_layers):
                self._named(i, name).histogram = &view[i, 0]
        self.threads = 1            # the counters are not shared
        try:
            self.prefill(KVCache(self, len(tokens)), tokens)
        finally:
            self.threads = threads
            for name in histograms:
                for i in range(self.n_layers):
                    self._named(i, name).histogram = NULL

    # --- the pass ---

    cdef void _apply(self, Linear *linear, const float *x, int64_t x_stride, int32_t n_in, const float *norm,
                     int32_t n_rows, float *y) noexcept nogil:
        """y = linear(norm(x)); the input is quantised once for all parts that read it alike."""
        cdef NormWork work
        cdef lb_activations a
        cdef const lb_matrix *m
        cdef const lb_matrix *before = NULL
        cdef int32_t part, chunk = 1 if n_rows < 4 * self.threads else 4
        cdef float *out = y
        work.x, work.x_stride, work.n, work.weight, work.out, work.eps = x, x_stride, n_in, norm, self.h, self.eps
        work.q, work.scale, work.sum, work.per_token = self.q8, self.scales, self.sums, self.per_token
        work.keep = linear.keep if self.sparse_rows else 0
        work.threshold = linear.threshold if self.sparse_rows else 0
        work.histogram = linear.histogram
        for part in range(linear.n_parts):
            m = linear.parts[part].m
            work.reader = NULL if is_float(m.format) else m
            work.q_stride = 0 if is_float(m.format) else row_stride(m)
            work.n_groups = m.n_groups
            if before == NULL or (work.reader != NULL and not same_input(before, m)):
                parallel(norm_work, &work, n_rows, chunk, self.threads)
            if norm != NULL:
                work.x, work.x_stride, work.weight = self.h, n_in, NULL
            work.keep, work.threshold, work.histogram = 0, 0, NULL
            a.q, a.scale, a.sum, a.n_groups, a.n_tokens = self.q8, self.scales, self.sums, m.n_groups, n_rows
            a.x = work.x
            a.stride = <int32_t>(work.x_stride if is_float(m.format) else work.q_stride)
            if linear.channels != NULL and self.sparse_rows and n_rows <= CHANNEL_ROWS:
                if not self.failed:
                    self.failed = (<PagedChannels>linear.channels).multiply_channels(
                        &a, out, linear.n_out, self.threads)
                return
            if m.tiles:
                self.sparse.multiply(m, &a, out, NULL, linear.n_out, self.threads)
            elif linear.parts[part].paged == NULL:
                multiply(m, &a, out, NULL, linear.n_out, self.threads)
            elif not self.failed:
                self.failed = (<PagedMatrix>linear.parts[part].paged).multiply_paged(
                    &a, out, linear.n_out, self.threads)
            out += m.n_rows
            before = m

    cdef void _layer(self, int32_t index, int32_t n_rows) noexcept nogil:
        cdef Layer *layer = &self.layers[index]
        cdef RopeWork rope
        cdef AttentionWork attention
        cdef GluWork glu
        cdef AddWork add
        cdef int32_t q_size = self.n_heads * self.head_dim, chunk = 1 if n_rows < 4 * self.threads else 4, i
        cdef int32_t tiles = (n_rows + ATTENTION_ROWS - 1) // ATTENTION_ROWS
        cdef int64_t work = 0
        cdef const lb_kv *kv = self.kv + <size_t>index * self.batch

        self._apply(&layer.qkv, self.x, self.hidden, self.hidden, layer.attn_norm, n_rows, self.wide)

        attention.args.q_stride = layer.qkv.n_out
        attention.args.q, attention.args.out = self.wide, self.attended
        attention.args.kv, attention.args.positions = kv, self.positions
        attention.args.n_heads, attention.args.n_kv_heads = self.n_heads, self.n_kv_heads
        attention.args.head_dim, attention.args.kv_type = self.head_dim, self.kv_type
        attention.n_rows = n_rows
        rope.qkv, rope.positions, rope.kv = self.wide, self.positions, kv
        rope.bias, rope.q_norm, rope.k_norm = layer.qkv.bias, layer.q_norm, layer.k_norm
        rope.cos, rope.sin, rope.shape, rope.n_out = self.cos, self.sin, attention.args, layer.qkv.n_out
        rope.rope_dim, rope.halves, rope.eps = self.rope_dim, self.halves, self.eps
        rope.q_scale = <float>(1.0 / sqrt(<double>self.head_dim))
        parallel(rope_work, &rope, n_rows, chunk, self.threads)
        for i in range(n_rows):
            work += <int64_t>(self.positions[i] + 1) * q_size
        parallel(attention_work, &attention, tiles * self.n_kv_heads, 1,
                 self.threads if work > ATTENTION_GRAIN else 1)

        self._apply(&layer.attn_output, self.attended, q_size, q_size, layer.attn_sub_norm, n_rows, self.wide)
        add.x, add.y, add.n = self.x, self.wide, self.hidden
        parallel(add_work, &add, n_rows, chunk, self.threads)

        self._apply(&layer.gate_up, self.x, self.hidden, self.hidden, layer.ffn_norm, n_rows, self.wide)
        glu.gate_up, glu.n, glu.relu2 = self.wide, self.intermediate, self.relu2
        parallel(glu_work, &glu, n_rows, chunk, self.threads)
        self._apply(&layer.ffn_down, self.wide, 2 * self.intermediate, self.intermediate, layer.ffn_sub_norm, n_rows,
                    self.attended)
        add.y = self.attended
        parallel(add_work, &add, n_rows, chunk, self.threads)

    cdef void _row(self, int32_t row, int32_t token, KVCache cache, int32_t position) noexcept nogil:
        """Set one row of the batch."""
        cdef int32_t layer
        self.tokens[row], self.positions[row] = token, position
        for layer in range(self.n_layers):
            self.kv[<size_t>layer * self.batch + row] = cache.layer(layer)

    cdef void _forward(self, int32_t n_rows) noexcept nogil:
        """Take the rows that were set through all layers; the result is in x."""
        cdef int32_t i
        cdef lb_float_mode mode = begin_doubles()
        self.failed = 0
        for i in range(n_rows):
            self._embed(self.tokens[i], self.x + <size_t>i * self.hidden)
        for i in range(self.n_layers):
            if not self.failed and self.interrupts.wanted():
                self.failed = INTERRUPTED
            if not self.failed:
                self._layer(i, n_rows)
        end_floats(mode)

    cdef int32_t _next(self, KVCache cache, const int32_t[::1] tokens, int64_t start) noexcept nogil:
        """Take as many tokens as fit at once, from tokens[start] on, through all layers; returns how many."""
        cdef int32_t i, rows = <int32_t>min(tokens.shape[0] - start, <int64_t>self.batch)
        for i in range(rows):
            self._row(i, tokens[start + i], cache, cache.length + i)
        self._forward(rows)
        return rows

    cdef _keep(self, KVCache cache, int32_t rows):
        """Count the rows of `_next` as part of the sequence, unless the pass has failed."""
        self._check_failed()
        cache.length += rows

    cdef int _check_failed(self) except -1:
        if self.failed == INTERRUPTED:
            self.interrupts.check()
        elif self.failed:
            self.pager.check(self.failed)
        return 0

    cdef void _embed(self, int32_t token, float *out) noexcept nogil:
        if self.token_embd.paged == NULL:
            matrix_row(self.token_embd.m, token, out)
        elif not self.failed:
            self.failed = (<PagedMatrix>self.token_embd.paged).row(token, out)

    cdef void _head(self, int32_t row, int32_t n_rows, float *logits) noexcept nogil:
        self._apply(&self.output, self.x + <size_t>row * self.hidden, self.hidden, self.hidden, self.output_norm,
                    n_rows, logits)

    def _check(self, KVCache cache not None, const int32_t[::1] tokens):
        cdef int64_t i
        if cache.length + tokens.shape[0] > cache.capacity:
            raise ContextLengthError(
                f"{cache.length + tokens.shape[0]} tokens do not fit into a context of {cache.capacity}")
        for i in range(tokens.shape[0]):
            if not 0 <= tokens[i] < self.vocab:
                raise ValueError(f"token {tokens[i]} is not in a vocabulary of {self.vocab}")

    def prefill(self, KVCache cache not None, const int32_t[::1] tokens not None, bint every=False):
        """Append tokens to a sequence.

        Parameters
        ----------
        cache : KVCache
        tokens : ndarray of int32, shape (n,)
        every : bool
            Return the logits after each token, which are then computed as those of decoded tokens are; otherwise only
            the last ones are computed, and kept for `decode`.

        Returns
        -------
        ndarray of float32, shape (n, vocab_size), or None

        Raises
        ------
        ContextLengthError
            If the sequence becomes longer than the cache.
        ValueError
            If a token is not in the vocabulary.
        """
        cdef int64_t start = 0, n = tokens.shape[0]
        cdef int32_t rows
        cdef float[:, ::1] out
        self._check(cache, tokens)
        checked(lb_times(n, <size_t>self.vocab * 4), "logits")
        result = np.empty((n, self.vocab), np.float32) if every else None
        if every and n:
            out = result
        self.sparse_rows = every or self.sparse_prefill
        while start < n:
            with nogil:
                rows = self._next(cache, tokens, start)
                if self.failed:
                    pass
                elif every:
                    self._head(0, rows, &out[start, 0])
                elif start + rows == n:
                    self._head(rows - 1, 1, self.logits)
            self._keep(cache, rows)
            start += rows
        return result

    def hidden_states(self, KVCache cache not None, const int32_t[::1] tokens not None):
        """Append tokens to a sequence, and return what the output head would read.

        Parameters
        ----------
        cache : KVCache
        tokens : ndarray of int32, shape (n,)

        Returns
        -------
        ndarray of float32, shape (n, hidden_size)
            After the last RMSNorm.

        Raises
        ------
        ContextLengthError, ValueError
            As from `prefill`.
        """
        cdef int64_t start = 0, n = tokens.shape[0]
        cdef int32_t rows
        cdef float[:, ::1] out
        cdef NormWork work
        self._check(cache, tokens)
        result = np.empty((n, self.hidden), np.float32)
        if n:
            out = result
        self.sparse_rows = self.sparse_prefill
        memset(&work, 0, sizeof(work))
        work.x, work.x_stride, work.n = self.x, self.hidden, self.hidden
        work.weight, work.eps = self.output_norm, self.eps
        while start < n:
            with nogil:
                rows = self._next(cache, tokens, start)
                work.out = &out[start, 0]
                parallel(norm_work, &work, rows, 1, self.threads)
            self._keep(cache, rows)
            start += rows
        return result

    def decode(self, list caches not None, list samplers not None, const int32_t[::1] pending not None, int32_t n,
               const int32_t[::1] stop not None, history=None):
        """Generate up to n tokens of each of several sequences, without Python between them.

        Parameters
        ----------
        caches : list of KVCache
        samplers : list of Sampler
        pending : ndarray of int32, shape (n_sequences,)
            The last token of each, if it is not in its cache yet; -1 right after `prefill`, for one sequence alone.
        n : int
        stop : ndarray of int32
            Tokens that end a sequence; the one that was found is returned as its last.
        history : ndarray of int32, optional
            All tokens of one sequence so far, the pending one included. Given these, the tokens that followed the last
            two or three the last time are proposed as the next ones, and proposals are checked in one pass. The result
            is the same as without.

        Returns
        -------
        list of list of int
        """
        cdef int32_t count = len(caches), i, draft = 0
        cdef int32_t[:, ::1] out
        cdef int32_t[::1] said
        cdef Sequence *all
        cdef KVCache cache
        cdef Sampler sampler
        if not 1 <= count <= min(self.batch, self.most_logits) or count != len(samplers) or count != pending.shape[0]:
            raise ValueError(f"{count} sequences do not fit together, or not into a batch of {self.most_logits}")
        if history is not None:
            draft = min(<int32_t>MAX_DRAFT, min(self.batch, self.most_logits) - 1)
            said_owner = np.empty(len(history) + n + 1, np.int32)
            said_owner[:len(history)] = history
            said = said_owner
        self._need_logits(max(count, draft + 1))
        result = np.empty((count, max(n, 1)), np.int32)
        out = result
        owner = np.zeros(count * sizeof(Sequence), np.int8)
        cdef char[::1] memory = owner
        all = <Sequence *>&memory[0]
        for i in range(count):
            cache, sampler = caches[i], samplers[i]
            if pending[i] >= self.vocab or sampler.vocab_size != self.vocab or (pending[i] < 0 and count > 1):
                raise ValueError("the token or the sampler does not fit the sequence")
            all[i].cache, all[i].sampler = <void *>cache, <void *>sampler
            all[i].pending, all[i].out = pending[i], &out[i, 0]
            all[i].n = min(n, cache.capacity - cache.length + (1 if pending[i] < 0 else 0))
            all[i].done = all[i].n <= 0
        if history is not None and count == 1:
            all[0].said, all[0].n_said = &said[0], len(history)
        self.sparse_rows = True
        self.failed = 0
        with nogil:
            while self._step(all, count, &stop[0] if stop.shape[0] else NULL, stop.shape[0], draft):
                pass
        self._check_failed()
        return [result[i, :all[i].made].tolist() for i in range(count)]

    cdef bint _step(self, Sequence *all, int32_t count, const int32_t *stop, int64_t n_stop,
                    int32_t draft) noexcept nogil:
        """One pass for all sequences that are not done; False if there is none."""
        cdef int32_t i, j, rows = 0, token, first, proposed = 0
        cdef int32_t proposal[MAX_DRAFT]
        cdef Sequence *s
        cdef const float *logits = self.logits
        for i in range(count):
            s = &all[i]
            if s.done or s.pending < 0:
                continue
            self._row(rows, s.pending, <KVCache>s.cache, (<KVCache>s.cache).length)
            rows += 1
            if s.said != NULL:
                proposed = look_up(s.said, s.n_said, proposal, min(draft, s.n - s.made - 1))
                for j in range(proposed):
                    self._row(rows, proposal[j], <KVCache>s.cache, (<KVCache>s.cache).length + 1 + j)
                    rows += 1
        if rows > 0:
            self._forward(rows)
            self._head(0, rows, self.logits)
            if self.failed:
                return False
        first = 0
        for i in range(count):
            s = &all[i]
            if s.done:
                continue
            for j in range(proposed + 1):
                if s.pending >= 0:
                    (<KVCache>s.cache).advance()
                token = (<Sampler>s.sampler).sample(logits + <size_t>(first + j) * self.vocab)
                (<Sampler>s.sampler).remember(token)
                s.pending = token
                s.out[s.made] = token
                s.made += 1
                if s.said != NULL:
                    s.said[s.n_said] = token
                    s.n_said += 1
                s.done = s.made == s.n or contains(stop, n_stop, token)
                if s.done or (j < proposed and token != proposal[j]):
                    break
            first += 1
        for i in range(count):
            if not all[i].done:
                return True
        return False

    cdef int _need_logits(self, int32_t rows) except -1:
        """Make room for the logits of so many rows; those of the first one stay."""
        cdef size_t row_bytes = <size_t>self.vocab * 4
        if rows > self.logits_rows:
            owner = scratch(rows, row_bytes)    # if this fails, all is as it was
            if self.logits != NULL:
                memcpy(address(owner), self.logits, row_bytes)
            self.scratch_bytes += (rows - self.logits_rows) * row_bytes
            self.logits, self.logits_rows, self.logits_owner = <float *>address(owner), rows, owner
        return 0

    @property
    def bytes_per_token(self):
        """Bytes of weights that decoding one token reads: all but the rows of the embedding that are not looked up."""
        unread = 0 if self.token_embd.m == self.output.parts[0].m else self.embedding_bytes
        return self.weight_bytes - unread

    def cache_stats(self):
        """What the caches of paged weights did so far (`BlockCache.stats`); empty if all is resident.

        Where there are blocks of channels, names that begin with ``channel_`` are theirs, and the others count both.
        """
        if self.pager is None:
            return {}
        stats = self.pager.cache.stats()
        if self.pager.channels is not None:
            for name, value in self.pager.channels.cache.stats().items():
                stats["channel_" + name] = value
                if not name.endswith("slot_bytes"):
                    stats[name] += value
        return stats

    def last_logits(self):
        """Return a copy of the logits that the next token is chosen from, float32, shape (vocab_size,)."""
        cdef const float[::1] view = <float[:self.vocab]>self.logits
        return np.array(view)


cdef scratch(size_t rows, size_t row_bytes):
    """Memory for rows of a batch, whose `address` is that of a cache line."""
    return np.empty(checked(lb_plus(lb_times(rows, row_bytes), 64), "scratch memory"), np.int8)


cdef void *address(owner) except NULL:
    cdef char[::1] view = owner
    return <void *>((<size_t>&view[0] + 63) // 64 * 64)


cdef bint contains(const int32_t *tokens, int64_t n, int32_t token) noexcept nogil:
    cdef int64_t i
    for i in range(n):
        if tokens[i] == token:
            return True
    return False


cdef int32_t look_up(const int32_t *said, int64_t n, int32_t *proposal, int32_t most) noexcept nogil:
    """Propose what followed the last three tokens, or else the last two, when they last occurred together."""
    cdef int64_t at
    cdef int32_t size, i
    for size in range(3, 1, -1):
        for at in range(n - size - 1, -1, -1):
            i = 0
            while i < size and said[at + i] == said[n - size + i]:
                i += 1
            if i == size:
                i = 0
                while i < most and at + size + i < n:
                    proposal[i] = said[at + size + i]
                    i += 1
                return i
    return 0


cdef bint same_input(const lb_matrix *a, const lb_matrix *b) noexcept nogil:
    """Whether the int8 activations made for one matrix serve the other."""
    return (not is_float(a.format) and a.group_cols == b.group_cols and padded_cols(a) == padded_cols(b))
