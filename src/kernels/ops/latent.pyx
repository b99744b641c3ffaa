"""Latent attention (DeepSeek): keys and values of all heads are made of one short vector per token, the latent.

1. Of a head's query the part without positions is multiplied with the head's matrix k_b, which takes it to where the
   latents are; so what is kept of a token is its latent and one rotated key, for all heads.
2. Attention is then that of one key head, whose values are the latents alone. Its query heads are shared out among
   threads, as if there were several key heads that all lie in the same place.
3. What a head has gathered is multiplied with its matrix v_b.

The matrices of all heads are one, in which the rows of a head follow those of the one before.
"""
from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, int64_t
from libc.string cimport memcpy

from lowbit._kernels.dispatch cimport (
    LB_KV_SPAN, LB_MAX_HEAD_DIM, LB_ROWS, Buffers, lb_activations, lb_attention_args, lb_matmul_args, lb_matrix,
    parallel, table,
)
from lowbit._kernels.matrix cimport PackedMatrix, group_code_bytes, group_scale_bytes, is_float, padded_cols, row_stride
from lowbit._kernels.ops cimport attend, turn
from lowbit._kernels.products cimport multiply_all

import numpy as np

from lowbit.errors import FormatError

cdef enum:
    UNIT_HEADS = 4      # query heads of a unit of attention, where they can be shared out so


cdef struct PrepareWork:
    const LatentRows *rows
    const float *norm
    float *absorbed
    lb_attention_args shape
    int32_t nope, rope, rank, n_heads


cdef void prepare_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    """Norm of the latents, rotation, and the cache; a row is a unit."""
    cdef PrepareWork *c = <PrepareWork *>context
    cdef const LatentRows *rows = c.rows
    cdef int32_t dim = c.nope + c.rope, width = c.rank + c.rope, h, j, position
    cdef int64_t i, at
    cdef float *kv
    cdef float *q
    for i in range(begin, end):
        kv, position = rows.kv + i * rows.kv_stride, rows.positions[i]
        at = <int64_t>position * (c.rope // 2)
        table.rms_norm(kv, c.norm, c.rank, rows.eps, kv)
        turn(kv + c.rank, c.rope, rows.halves, rows.cos + at, rows.sin + at)
        table.kv_store(kv, kv, rows.blocks[i][position // <int32_t>LB_KV_SPAN], &c.shape, position)
        for h in range(c.n_heads):
            q = rows.q + i * rows.q_stride + h * dim
            for j in range(dim):
                q[j] = q[j] * rows.q_scale
            turn(q + c.nope, c.rope, rows.halves, rows.cos + at, rows.sin + at)
            memcpy(c.absorbed + (i * c.n_heads + h) * width + c.rank, q + c.nope, sizeof(float) * <size_t>c.rope)


cdef struct QuantizeWork:
    const float *x
    int8_t *q
    float *scale
    int32_t *sum
    const lb_matrix *reader
    int64_t x_row, x_head
    int32_t n_rows
    bint per_token


cdef void quantize_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    """Inputs of the heads' matrices as int8: all rows of a head, and then those of the next."""
    cdef QuantizeWork *c = <QuantizeWork *>context
    cdef const lb_matrix *m = c.reader
    cdef int64_t i, stride = row_stride(m)
    for i in range(begin, end):
        table.quantize(c.x + i % c.n_rows * c.x_row + i // c.n_rows * c.x_head, m.n_cols, m.group_cols, c.per_token,
                       padded_cols(m), c.q + i * stride, c.scale + i * m.n_groups, c.sum + i * m.n_groups)


cdef class LatentLayer:
    """The weights of one layer that all heads have of their own.

    Parameters
    ----------
    plan : lowbit.plan.LatentAttention
    k_b, v_b : PackedMatrix
        Of all heads, shapes (n_heads * rank, nope) and (n_heads * value_size, rank).
    norm : ndarray of float32, shape (rank,)
        RMSNorm of the latents.
    """

    def __cinit__(self, plan, k_b, v_b, norm):
        cdef const float[::1] view
        self.n_heads, self.nope, self.rope, self.rank = plan.n_heads, plan.nope_dim, plan.rope.dim, plan.rank
        self.value_size, self.q_rank = plan.value_size, plan.q_rank
        if not (self.n_heads >= 1 and self.nope >= 1 and self.rope >= 2 and self.value_size >= 1
                and 1 <= self.rank <= LB_MAX_HEAD_DIM):
            raise FormatError("the numbers of latent attention do not fit together")
        self._heads(k_b, self.rank, self.nope, &self.k_b)
        self._heads(v_b, self.value_size, self.rank, &self.v_b)
        norm = np.require(norm, np.float32, "CA")
        if norm.shape != (self.rank,):
            raise FormatError(f"a norm of shape {norm.shape} stands where {self.rank} values belong")
        self.keep = [k_b, v_b, norm]
        self.nbytes = k_b.nbytes + v_b.nbytes + norm.nbytes
        view = norm
        self.norm = &view[0]

    cdef int _heads(self, matrix, int32_t n_out, int32_t n_in, HeadMatrices *out) except -1:
        cdef size_t groups = n_out // LB_ROWS
        if matrix.shape != (self.n_heads * n_out, n_in) or n_out % LB_ROWS:
            raise FormatError(f"{matrix!r} stands where {self.n_heads} heads of {n_out} x {n_in} belong")
        out.m = (<PackedMatrix?>matrix).m
        out.m.n_rows = n_out
        out.codes = groups * group_code_bytes(&out.m)
        out.scales = groups * group_scale_bytes(&out.m)
        return 0


cdef class LatentScratch(Buffers):
    """Memory for the latent attention of a pass, for the largest of some layers.

    Parameters
    ----------
    layers : list of LatentLayer
    rows : int
        Most rows of a pass.
    """

    def __cinit__(self, list layers, size_t rows):
        cdef LatentLayer layer
        cdef size_t heads = 1, narrow = 1, wide = 1, stride = 0, groups = 0
        cdef const lb_matrix *m
        cdef int32_t i
        for layer in layers:
            heads = max(heads, <size_t>layer.n_heads)
            narrow = max(narrow, <size_t>layer.n_heads * max(layer.nope + layer.rope, layer.rank))
            wide = max(wide, <size_t>layer.n_heads * (layer.rank + layer.rope))
            for i in range(2):
                m = &layer.v_b.m if i else &layer.k_b.m
                if not is_float(m.format):
                    stride = max(stride, <size_t>layer.n_heads * row_stride(m))
                    groups = max(groups, <size_t>layer.n_heads * m.n_groups)
        self.queries = <float *>self.take(rows, 4 * narrow)
        self.absorbed = <float *>self.take(rows, 4 * wide)
        self.q8 = <int8_t *>self.take(rows, stride)
        self.scales = <float *>self.take(rows, 4 * groups)
        self.sums = <int32_t *>self.take(rows, 4 * groups)
        self.products = <lb_matmul_args *>self.take(heads, sizeof(lb_matmul_args))
        self.inputs = <lb_activations *>self.take(heads, sizeof(lb_activations))
        self.matrices = <lb_matrix *>self.take(heads, sizeof(lb_matrix))

    cdef void run(self, LatentLayer layer, const LatentRows *rows) noexcept nogil:
        """From queries, which may lie in `queries`, latents and rotated keys to what the heads say."""
        cdef PrepareWork prepare
        cdef lb_attention_args attention
        cdef int32_t heads = layer.n_heads, rank = layer.rank, width = rank + layer.rope
        cdef int32_t units = heads // UNIT_HEADS if heads % UNIT_HEADS == 0 else heads
        cdef int32_t i
        cdef int64_t work = 0
        prepare.rows, prepare.norm, prepare.absorbed = rows, layer.norm, self.absorbed
        prepare.nope, prepare.rope, prepare.rank, prepare.n_heads = layer.nope, layer.rope, rank, heads
        prepare.shape.kv, prepare.shape.kv_type, prepare.shape.n_kv_heads = rows.place, rows.kv_type, 1
        prepare.shape.head_dim, prepare.shape.value_dim = width, rank
        parallel(prepare_work, &prepare, rows.n, 1 if rows.n < 4 * rows.threads else 4, rows.threads)
        self._multiply(&layer.k_b, heads, rows.q, rows.q_stride, layer.nope + layer.rope,
                       self.absorbed, heads * width, width, rows)

        attention = prepare.shape
        attention.kv.key_stride = attention.kv.value_stride = 0
        attention.q, attention.q_stride, attention.out = self.absorbed, heads * width, self.queries
        attention.blocks, attention.positions, attention.window = rows.blocks, rows.positions, 0
        attention.n_heads, attention.n_kv_heads = heads, units
        attention.sinks, attention.parts = NULL, NULL
        for i in range(rows.n):
            work += <int64_t>(rows.positions[i] + 1) * heads * width
        attend(&attention, rows.n, work, rows.threads)
        self._multiply(&layer.v_b, heads, self.queries, heads * rank, rank,
                       rows.out, heads * layer.value_size, layer.value_size, rows)

    cdef void _multiply(self, const HeadMatrices *heads, int32_t n_heads, const float *x, int64_t x_row,
                        int64_t x_head, float *y, int64_t y_row, int64_t y_head,
                        const LatentRows *rows) noexcept nogil:
        """Multiply what each head has of each row with the matrix of the head."""
        cdef QuantizeWork work
        cdef const lb_matrix *m = &heads.m
        cdef bint floats = is_float(m.format)
        cdef lb_activations *a
        cdef size_t h, first
        if not floats:
            work.x, work.x_row, work.x_head, work.n_rows, work.reader = x, x_row, x_head, rows.n, m
            work.q, work.scale, work.sum, work.per_token = self.q8, self.scales, self.sums, rows.per_token
            parallel(quantize_work, &work, n_heads * rows.n, 16, rows.threads)
        for h in range(<size_t>n_heads):
            first = h * rows.n
            a = &self.inputs[h]
            a.n_tokens, a.n_groups = rows.n, m.n_groups
            a.x, a.stride = x + h * x_head, <int32_t>x_row
            if not floats:
                a.q, a.stride = self.q8 + first * row_stride(m), row_stride(m)
                a.scale, a.sum = self.scales + first * m.n_groups, self.sums + first * m.n_groups
            self.matrices[h] = m[0]
            self.matrices[h].codes = m.codes + h * heads.codes
            self.matrices[h].scales = <const char *>m.scales + h * heads.scales
            self.products[h].w, self.products[h].x = &self.matrices[h], a
            self.products[h].y, self.products[h].sums, self.products[h].y_stride = y + h * y_head, NULL, y_row
        multiply_all(self.products, n_heads, rows.threads)
