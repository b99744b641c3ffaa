"""The graph of a model: its layers with their weights, as the walk of the decoder reads them.

A family is data: norms that are there or not, the pairing of RoPE, the activation, and how activations become int8.
"""
from libc.stddef cimport size_t
from libc.stdint cimport int32_t
from libc.string cimport memset

from lowbit._kernels.dispatch cimport LB_MAX_HEAD_DIM, alloc_aligned, checked, free_aligned, lb_matrix, lb_times
from lowbit._kernels.matrix cimport PackedMatrix, is_float, row_stride
from lowbit._kernels.moe cimport ExpertLayer, Projection
from lowbit._kernels.paging cimport PagedMatrix, Pager
from lowbit._kernels.topk cimport SparseScratch

import numpy as np

from lowbit.errors import FormatError
from lowbit.plan import Experts


cdef class Graph:
    """The weights of one model.

    Parameters
    ----------
    config : what the numbers of the model are read from
    layers : list of dict
        Per layer: ``attn_norm``, ``ffn_norm`` and, where the family has them, ``attn_sub_norm``, ``ffn_sub_norm``,
        ``attn_q_norm``, ``attn_k_norm``, ``qkv_bias`` (float32 arrays); ``qkv``, ``attn_output``, ``gate_up``,
        ``ffn_down`` (lists of PackedMatrix or PagedMatrix whose outputs lie side by side). Where there are experts,
        ``router``, ``expert_gate_up``, ``expert_down`` and what else `lowbit.plan.Experts` lists.
    token_embd, output : PackedMatrix or PagedMatrix
        (vocab_size, hidden_size); the same object if tied.
    output_norm : ndarray of float32, shape (hidden_size,)
    context : int
        Longest sequence, in tokens.
    threads : int
        Most threads that will compute with it.
    pager : Pager, optional
        That of the paged matrices, if there are any; to be started before the first pass.
    """

    def __cinit__(self, config, list layers, token_embd, output, output_norm, int32_t context, int32_t threads,
                  Pager pager=None):
        cdef int32_t i, q_size, kv_size
        cdef Layer *one
        self.keep, self.experts = [], []
        if len(layers) != config.n_layers or config.n_layers < 1:
            raise FormatError(f"{len(layers)} layers given for a model of {config.n_layers}")
        if not 1 <= config.head_dim <= LB_MAX_HEAD_DIM:
            raise FormatError(f"heads of {config.head_dim} channels are not supported")
        self.n_layers, self.n_heads, self.n_kv_heads = config.n_layers, config.n_heads, config.n_kv_heads
        self.head_dim, self.hidden = config.head_dim, config.hidden_size
        self.vocab, self.context = config.vocab_size, context
        self.rope_dim = config.rope_dim or config.head_dim
        if self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads or self.rope_dim % 2 or self.rope_dim > self.head_dim:
            raise FormatError("the numbers of heads and rotated channels do not fit together")
        self.halves = config.rope_pairing == "halves"
        self.relu2 = config.layers[0].feed_forward.activation == "relu2"
        self.per_token = config.activation_quant == "token"
        self.whole_norm = config.layers[0].mixer.whole_norm
        self.eps = config.norm_eps
        self._make_rope(config)

        self.sparse = SparseScratch()
        self.pager = pager
        self.q_stride = self.n_groups = 1
        self.layers = <Layer *>alloc_aligned(sizeof(Layer) * <size_t>self.n_layers)
        if self.layers == NULL:
            raise MemoryError("no memory for the layers")
        memset(self.layers, 0, sizeof(Layer) * <size_t>self.n_layers)
        q_size, kv_size = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        for i, layer in enumerate(layers):
            one = &self.layers[i]
            one.attn_norm = self._vector(layer["attn_norm"], self.hidden)
            one.ffn_norm = self._vector(layer["ffn_norm"], self.hidden)
            one.attn_sub_norm = self._vector(layer.get("attn_sub_norm"), q_size)
            one.q_norm = self._vector(layer.get("attn_q_norm"), q_size if self.whole_norm else self.head_dim)
            one.k_norm = self._vector(layer.get("attn_k_norm"), kv_size if self.whole_norm else self.head_dim)
            one.qkv = self._linear(layer["qkv"], self.hidden, q_size + 2 * kv_size, threads)
            one.qkv.bias = self._vector(layer.get("qkv_bias"), q_size + 2 * kv_size)
            one.attn_output = self._linear(layer["attn_output"], q_size, self.hidden, threads)
            self._feed_forward(one, layer, config.layers[i].feed_forward, threads)
        self.output = self._linear([output], self.hidden, self.vocab, threads)
        self.token_embd = self.output.parts[0]
        if token_embd is not output:
            self.token_embd = self._linear([token_embd], self.hidden, self.vocab, threads).parts[0]
            self.embedding_bytes = token_embd.nbytes
        self.output_norm = self._vector(output_norm, self.hidden)

    def __dealloc__(self):
        free_aligned(self.layers)

    cdef int _feed_forward(self, Layer *one, layer, plan, int32_t threads) except -1:
        cdef ExpertLayer experts
        cdef Projection *p
        cdef int32_t i
        if isinstance(plan, Experts):
            one.router = self._linear(layer["router"], self.hidden, plan.n, threads)
            experts = ExpertLayer(plan, self.hidden, layer["expert_gate_up"], layer["expert_down"][0],
                                  layer.get("exp_probs_b_bias"))
            one.experts = <void *>experts
            self.experts.append(experts)
            self.weight_bytes += experts.nbytes
            for i in range(experts.n_parts):
                p = &experts.parts[i]
                if not is_float(p.m.format):
                    self.q_stride = max(self.q_stride, row_stride(&p.m))
                    self.n_groups = max(self.n_groups, p.m.n_groups)
            one.wide = plan.shared
            if plan.shared_gate:
                one.shared_gate = self._linear(layer["shared_gate"], self.hidden, 1, threads)
        else:
            one.wide = plan.size
        if one.wide:
            self.intermediate = max(self.intermediate, one.wide)
            one.ffn_sub_norm = self._vector(layer.get("ffn_sub_norm"), one.wide)
            one.gate_up = self._linear(layer["gate_up"], self.hidden, 2 * one.wide, threads)
            one.ffn_down = self._linear(layer["ffn_down"], one.wide, self.hidden, threads)
        return 0

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

    cdef Linear _linear(self, list parts, int32_t n_in, int32_t n_out, int32_t threads) except *:
        cdef Linear linear
        cdef const lb_matrix *m
        linear.n_parts, linear.n_out, linear.bias = len(parts), n_out, NULL
        linear.keep, linear.threshold, linear.histogram = 0, 0, NULL
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
                self.sparse.reserve(m, threads)
            if not is_float(m.format):
                self.q_stride = max(self.q_stride, row_stride(m))
                self.n_groups = max(self.n_groups, m.n_groups)
        return linear

    cdef Linear *linear(self, int32_t layer, str name) except NULL:
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
                linear = self.linear(i, name)
                linear.keep, linear.threshold = keep, threshold

    @property
    def skipping(self):
        """Names of the linear layers that read only the weights of the inputs that count."""
        return [name for name in ("qkv", "attn_output", "gate_up", "ffn_down")
                if self.linear(0, name).n_parts and self.linear(0, name).parts[0].m.tiles]

    @property
    def bytes_per_token(self):
        """Bytes of weights that decoding one token reads: all but the rows of the embedding that are not looked up."""
        unread = 0 if self.token_embd.m == self.output.parts[0].m else self.embedding_bytes
        unread += sum(layer.nbytes - layer.used_bytes for layer in self.experts)
        return self.weight_bytes - unread
