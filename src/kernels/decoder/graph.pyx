"""The graph of a model: its layers with their weights, as the walk of the decoder reads them.

A family is data: which numbers each layer has, which norms are there, the activation, and how activations become int8.
"""
from libc.math cimport sqrt
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from lowbit._kernels.deltanet cimport Delta
from lowbit._kernels.dispatch cimport (
    LB_GELU, LB_MAX_HEAD_DIM, LB_PREPARED_TOKENS, LB_RELU2, LB_SILU, LB_SWIGLU_OAI, alloc_aligned, checked,
    free_aligned, lb_matrix, lb_part_floats, lb_plus, lb_round_up, lb_times,
)
from lowbit._kernels.latent cimport LatentLayer
from lowbit._kernels.matrix cimport PackedMatrix, is_float, row_stride
from lowbit._kernels.moe cimport ExpertLayer, Projection
from lowbit._kernels.paging cimport PagedMatrix, Pager
from lowbit._kernels.profile cimport ATTN_OUTPUT, FFN_DOWN, GATE_UP, HEAD, PRODUCT, QKV, ROUTER
from lowbit._kernels.products cimport prepared_bytes
from lowbit._kernels.sparse cimport SparseScratch

import numpy as np

from lowbit.errors import FormatError
from lowbit.plan import DeltaNet, Experts, LatentAttention


cdef class Graph:
    """The weights of one model.

    Parameters
    ----------
    config : ModelPlan
    layers : list of dict
        Per layer: ``attn_norm``, ``ffn_norm`` and, where the family has them, ``attn_sub_norm``, ``ffn_sub_norm``,
        ``attn_q_norm``, ``attn_k_norm``, ``attn_post_norm``, ``ffn_post_norm``, ``qkv_bias``, ``attn_output_bias``,
        ``attn_sinks``, ``ssm_conv1d``, ``ssm_dt``, ``ssm_a``, ``ssm_norm`` (float32 arrays);
        ``qkv``, ``attn_output``, ``gate_up``, ``ffn_down`` (lists of PackedMatrix or PagedMatrix whose outputs lie side
        by side), and with ``_norms`` behind the name a list of the norms of their inputs, with ``_folded`` one of
        whether the plan's rotation is applied to them. Where there are experts, also ``router``, ``expert_gate_up``,
        ``expert_down`` and what else `lowbit.plan.Experts` lists; where attention is latent, ``k_b``, ``v_b`` and what
        else `lowbit.plan.LatentAttention` lists.
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
        cdef int32_t i, k, q_size, kv_size = 0, qkv_size, n_attentions = 0
        cdef size_t state = 0       # floats
        cdef Layer *one
        self.keep, self.experts, self.latents = [], [], []
        if len(layers) != config.n_layers or config.n_layers < 1:
            raise FormatError(f"{len(layers)} layers given for a model of {config.n_layers}")
        self.n_layers, self.hidden, self.vocab, self.context = (
            config.n_layers, config.hidden_size, config.vocab_size, context)
        self.per_token = config.activation_quant == "token"
        self.eps = config.norm_eps
        self.embedding_scale, self.residual_scale, self.logit_scale = (
            config.embedding_scale, config.residual_scale, config.logit_scale)

        self.sparse = SparseScratch()
        self.pager = pager
        self.q_stride = self.n_groups = 1
        self.prepared = 0
        self.layers = <Layer *>alloc_aligned(sizeof(Layer) * <size_t>self.n_layers)
        if self.layers == NULL:
            raise MemoryError("no memory for the layers")
        memset(self.layers, 0, sizeof(Layer) * <size_t>self.n_layers)
        self.tables, self.factors, self.rotation = {}, {}, config.rotation
        for i, layer in enumerate(layers):
            one, mixer = &self.layers[i], config.layers[i].mixer
            one.recurrent = isinstance(mixer, DeltaNet)
            if one.recurrent:
                self._delta_net(one, mixer, layer, &state)
                q_size, qkv_size = mixer.value_size, mixer.channels + mixer.value_size + 2 * mixer.n_value_heads
                self.channels = max(self.channels, mixer.channels)
            elif isinstance(mixer, LatentAttention):
                one.kv_index = n_attentions
                n_attentions += 1
                qkv_size = self._latent_attention(one, mixer, layer, threads)
                q_size = mixer.n_heads * mixer.value_size
            else:
                self._attention(one, mixer)
                one.kv_index = n_attentions
                n_attentions += 1
                q_size = one.n_heads * one.head_dim
                self.part_floats = max(self.part_floats, one.n_heads * lb_part_floats(one.head_dim))
                kv_size = one.n_kv_heads * one.head_dim
                qkv_size = (2 * q_size if one.gated else q_size) + 2 * kv_size
            self.q_size, self.qkv_size = max(self.q_size, q_size), max(self.qkv_size, qkv_size)
            one.attn_norm = self._vector(layer["attn_norm"], self.hidden)
            one.ffn_norm = self._vector(layer["ffn_norm"], self.hidden)
            one.attn_sub_norm = self._vector(layer.get("attn_sub_norm"), q_size)
            one.q_norm = self._vector(layer.get("attn_q_norm"), q_size if one.whole_norm else one.head_dim)
            one.k_norm = self._vector(layer.get("attn_k_norm"), kv_size if one.whole_norm else one.head_dim)
            one.attn_post_norm = self._vector(layer.get("attn_post_norm"), self.hidden)
            one.ffn_post_norm = self._vector(layer.get("ffn_post_norm"), self.hidden)
            one.qkv = self._linear(
                layer["qkv"], self.hidden, qkv_size, threads, layer.get("qkv_norms"), layer.get("qkv_folded"))
            one.qkv.bias = self._vector(layer.get("qkv_bias"), qkv_size)
            one.attn_output = self._linear(
                layer["attn_output"], q_size, self.hidden, threads, layer.get("attn_output_norms"),
                layer.get("attn_output_folded"))
            if one.recurrent and self.rotation is not None and self.rotation.grouped:
                for k in range(one.attn_output.n_parts):
                    one.attn_output.parts[k].rotation.key_heads = one.delta.n_key_heads
                    one.attn_output.parts[k].rotation.head_dim = one.delta.dim
            one.attn_output.bias = self._vector(layer.get("attn_output_bias"), self.hidden)
            one.sinks = self._vector(layer.get("attn_sinks"), one.n_heads)
            self._feed_forward(one, layer, config.layers[i].feed_forward, threads)
            one.qkv.operation, one.q_b.operation, one.attn_output.operation = QKV, QKV, ATTN_OUTPUT
            one.gate_up.operation, one.ffn_down.operation = GATE_UP, FFN_DOWN
            one.router.operation = one.shared_gate.operation = ROUTER
        self.state_bytes = checked(lb_times(state, 4), "the state of recurrent layers") if state else 0
        self.output = self._linear([output], self.hidden, self.vocab, threads, None, [config.is_folded(config.output)])
        self.output.operation = HEAD
        self.token_embd = self.output.parts[0]
        if token_embd is not output:
            self.token_embd = self._linear([token_embd], self.hidden, self.vocab, threads).parts[0]
            self.embedding_bytes = token_embd.nbytes
        if self.rotation is not None and self.rotation.latent:
            self.latent = self._rotation(self.hidden)
        self.output_norm = self._vector(output_norm, self.hidden)

    def __dealloc__(self):
        free_aligned(self.layers)

    cdef int _delta_net(self, Layer *one, mixer, dict layer, size_t *state) except -1:
        """Take over the numbers of a recurrent layer, and give its state a place."""
        cdef Delta *d = &one.delta
        d.n_key_heads, d.n_value_heads, d.dim, d.taps, d.channels = (
            mixer.n_key_heads, mixer.n_value_heads, mixer.head_dim, mixer.taps, mixer.channels)
        d.grouped, d.fused = mixer.grouped, mixer.fused
        if d.n_key_heads < 1 or d.n_value_heads % d.n_key_heads or d.dim < 1 or d.taps < 1:
            raise FormatError("the numbers of recurrent heads do not fit together")
        taps = np.ascontiguousarray(np.asarray(layer["ssm_conv1d"]).T).reshape(-1)
        d.conv = self._vector(taps, d.taps * d.channels)
        d.dt = self._vector(layer["ssm_dt"], d.n_value_heads)
        d.log_decay = self._vector(layer["ssm_a"], d.n_value_heads)
        d.norm = self._vector(layer["ssm_norm"], d.dim)
        d.ones = self._vector(np.ones(d.channels, np.float32), d.channels)
        d.key_scale = self._vector(np.full(d.dim, 1.0 / sqrt(<double>d.dim), np.float32), d.dim)
        d.query_scale = self._vector(np.full(d.dim, 1.0 / d.dim, np.float32), d.dim)
        d.window_at = <int64_t>state[0]
        state[0] = lb_plus(state[0], lb_round_up(lb_times(d.taps - 1, d.channels), 16))
        d.matrix_at = <int64_t>state[0]
        state[0] = checked(lb_plus(state[0], lb_times(
            d.n_value_heads, lb_times(d.dim, lb_round_up(d.dim, 16)))), "the state of recurrent layers")
        return 0

    cdef int32_t _latent_attention(self, Layer *one, mixer, dict layer, int32_t threads) except -1:
        """Take over the numbers and matrices of latent attention; return how much its first matrices give."""
        cdef LatentLayer latent = LatentLayer(mixer, layer["k_b"][0], layer["v_b"][0], layer["attn_kv_a_norm"])
        cdef int32_t queries = latent.n_heads * (latent.nope + latent.rope)
        self.latents.append(latent)
        self.weight_bytes += latent.nbytes
        one.latent, one.head_dim = <void *>latent, latent.rank + latent.rope
        one.q_scale = <float>(mixer.scale or 1.0 / sqrt(<double>(latent.nope + latent.rope)))
        self._turn(one, mixer.rope)
        if latent.q_rank:
            one.q_a_norm = self._vector(layer["attn_q_a_norm"], latent.q_rank)
            one.q_b = self._linear(layer["q_b"], latent.q_rank, queries, threads)
            self.q_size = max(self.q_size, latent.q_rank)
        return (latent.q_rank or queries) + one.head_dim

    cdef int _feed_forward(self, Layer *one, layer, plan, int32_t threads) except -1:
        cdef ExpertLayer experts
        cdef Projection *p
        cdef int32_t i
        one.activation = {
            "silu": LB_SILU, "relu2": LB_RELU2, "gelu": LB_GELU, "swiglu_oai": LB_SWIGLU_OAI}[plan.activation]
        if isinstance(plan, Experts):
            one.router = self._linear(layer["router"], self.hidden, plan.n, threads)
            experts = ExpertLayer(
                plan, self.hidden, one.activation, layer["expert_gate_up"], layer["expert_down"][0],
                layer.get("exp_probs_b_bias"), layer.get("router_bias"), layer.get("expert_gate_up_bias"),
                layer.get("expert_down_bias"))
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
            one.gate_up = self._linear(
                layer["gate_up"], self.hidden, 2 * one.wide, threads, layer.get("gate_up_norms"),
                layer.get("gate_up_folded"))
            one.ffn_down = self._linear(
                layer["ffn_down"], one.wide, self.hidden, threads, layer.get("ffn_down_norms"),
                layer.get("ffn_down_folded"))
        return 0

    cdef int _attention(self, Layer *one, mixer) except -1:
        """Take over the numbers of a layer's attention."""
        if not 1 <= mixer.head_dim <= LB_MAX_HEAD_DIM:
            raise FormatError(f"heads of {mixer.head_dim} channels are not supported")
        if mixer.n_kv_heads < 1 or mixer.n_heads % mixer.n_kv_heads:
            raise FormatError("the numbers of heads do not fit together")
        one.n_heads, one.n_kv_heads, one.head_dim = mixer.n_heads, mixer.n_kv_heads, mixer.head_dim
        one.window, one.norm_after_rope, one.whole_norm, one.gated = (
            mixer.window, mixer.norm_after_rope, mixer.whole_norm, mixer.gated)
        self.gated = self.gated or one.gated
        one.q_scale = <float>(mixer.scale or 1.0 / sqrt(<double>one.head_dim))
        one.rope_dim, one.halves, one.cos, one.sin = 0, False, NULL, NULL
        if mixer.rope is not None:
            self._turn(one, mixer.rope)
        return 0

    cdef int _turn(self, Layer *one, rope) except -1:
        """Find or make a layer's rotations: scale times cos and sin of position * theta**(-2j/d) / factor."""
        cdef const float[:, ::1] cos
        cdef const float[:, ::1] sin
        if rope.dim % 2 or not 2 <= rope.dim <= one.head_dim:
            raise FormatError("the numbers of channels and rotated channels do not fit together")
        key = (rope.dim, rope.theta, rope.factors, rope.scale)
        if key not in self.tables:
            checked(lb_times(<size_t>self.context, <size_t>rope.dim * 2), f"rotations of {self.context} positions")
            inverse = rope.theta ** (-np.arange(0, rope.dim, 2, dtype=np.float64) / rope.dim)
            if rope.factors:
                if len(rope.factors) != len(inverse):
                    raise FormatError(f"{len(rope.factors)} RoPE factors for {len(inverse)} pairs of channels")
                inverse = inverse / np.asarray(rope.factors, np.float64)
            made = np.empty((2, self.context, len(inverse)), np.float32)
            for start in range(0, self.context, 256):  # doubles of all positions would take four times the table
                positions = np.arange(start, min(start + 256, self.context), dtype=np.float64)
                for values, function in zip(made, (np.cos, np.sin)):
                    values[start:start + 256] = function(positions[:, None] * inverse) * rope.scale
            self.tables[key] = made
        cos, sin = self.tables[key]
        one.cos, one.sin, one.rope_dim, one.halves = &cos[0, 0], &sin[0, 0], rope.dim, rope.pairing == "halves"
        return 0

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

    cdef Rotation _rotation(self, int32_t n) except *:
        """The plan's rotation of inputs of this width."""
        cdef Rotation rotation
        cdef int32_t block = self.rotation.block
        if block < 1 or block & (block - 1) or n % block:
            raise FormatError(f"a rotation in blocks of {block} does not fit {n} channels")
        if n not in self.factors:
            self.factors[n] = np.asarray(self.rotation.factors(n), np.float32)
        rotation.factors, rotation.block = self._vector(self.factors[n], n), block
        rotation.key_heads = rotation.head_dim = 0
        return rotation

    cdef Linear _linear(self, list parts, int32_t n_in, int32_t n_out, int32_t threads, list norms=None,
                        list folded=None) except *:
        cdef Linear linear
        cdef const lb_matrix *m
        linear.n_parts, linear.n_out, linear.bias, linear.operation = len(parts), n_out, NULL, PRODUCT
        linear.keep, linear.threshold, linear.histogram, linear.rotates = 0, 0, NULL, False
        if not 1 <= len(parts) <= MAX_PARTS or sum(part.shape[0] for part in parts) != n_out:
            raise FormatError(f"matrices {parts} do not have {n_out} rows together")
        for i, matrix in enumerate(parts):
            linear.parts[i].paged = NULL
            linear.parts[i].norm = NULL if norms is None else self._vector(norms[i], n_in)
            if isinstance(matrix, PagedMatrix):
                m = &(<PagedMatrix>matrix).m
                linear.parts[i].paged = <void *>matrix
            else:
                m = &(<PackedMatrix?>matrix).m
            if m.n_cols != n_in:
                raise FormatError(f"{matrix!r} stands where {n_in} inputs belong")
            linear.parts[i].m = m
            linear.parts[i].rotation.factors = NULL
            if folded is not None and folded[i]:
                linear.parts[i].rotation, linear.rotates = self._rotation(n_in), True
            if norms is not None or linear.rotates:
                self.inner = max(self.inner, n_in)
            self.keep.append(matrix)
            self.weight_bytes += matrix.nbytes
            if m.tiles:
                self.sparse.reserve(m, threads)
            if not is_float(m.format):
                self.q_stride = max(self.q_stride, row_stride(m))
                self.n_groups = max(self.n_groups, m.n_groups)
                if linear.parts[i].paged == NULL:
                    self.prepared = max(self.prepared, prepared_bytes(m, LB_PREPARED_TOKENS))
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
