"""Experts: a router chooses a few of many feed-forwards for each row.

1. The router's products and everything that follows from them are float32, row by row, with sums in the order of the
   experts. Of equal scores the lower number is chosen.
2. Rows are sorted by expert, into slots, so that each expert's weights are read once, however many rows chose it, and
   the products of all experts are one job. A row's result stands in its slots until all are there; then its slots are
   added up in the order of its own list. So its bits do not depend on who else is in the batch.
3. Where experts are paged, those that were chosen are asked for at once, and taken one after the other as they come.
"""
from libc.math cimport INFINITY
from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, int64_t
from libc.string cimport memcpy, memset

from lowbit._kernels.dispatch cimport LB_ROWS, Buffers, lb_activations, lb_matmul_args, lb_matrix, parallel, table
from lowbit._kernels.matrix cimport PackedMatrix, group_code_bytes, group_scale_bytes, is_float, padded_cols, row_stride
from lowbit._kernels.ops cimport NormWork, norm_work
from lowbit._kernels.paging cimport PagedMatrix
from lowbit._kernels.products cimport multiply_all
from lowbit._kernels.routing cimport MAX_CHOSEN, RouteWork, route_work, sort_rows

import numpy as np

from lowbit.errors import FormatError

cdef enum:
    CHANNELS = 256              # that are added up at a time


# --- gathering and adding up ------------------------------------------------------------------------------------------

cdef struct GatherWork:
    const int32_t *row
    const char *source
    char *target
    size_t nbytes           # of a row
    size_t stride           # from one to the next in the source


cdef void gather_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef const GatherWork *c = <const GatherWork *>context
    cdef int64_t i
    for i in range(begin, end):
        memcpy(c.target + i * c.nbytes, c.source + c.row[i] * c.stride, c.nbytes)


cdef struct GateWork:
    float *gate_up          # (slots, 2 n)
    const float *bias       # (experts, 2 n), or NULL
    const int32_t *expert   # (slots,)
    int32_t n, activation
    float clamp


cdef void gate_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef const GateWork *c = <const GateWork *>context
    cdef int64_t i
    cdef int32_t j
    cdef float *gate
    cdef float *up
    for i in range(begin, end):
        gate = c.gate_up + 2 * i * c.n
        up = gate + c.n
        if c.bias != NULL:
            table.add(gate, c.bias + 2 * <int64_t>c.expert[i] * c.n, 2 * c.n)
        if c.clamp < INFINITY:
            for j in range(c.n):
                gate[j] = c.clamp if gate[j] > c.clamp else gate[j]
                up[j] = c.clamp if up[j] > c.clamp else -c.clamp if up[j] < -c.clamp else up[j]
        table.glu(gate, up, c.n, c.activation)


cdef struct SumWork:
    float *x                # (rows, hidden)
    const float *y          # (slots, hidden)
    const float *bias       # (experts, hidden), or NULL
    const int32_t *expert   # (rows, top_k)
    const float *weights
    const int32_t *slot
    const float *shared
    const float *gates
    int32_t hidden, top_k


cdef void sum_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    """x += weight * (y + bias) of the row's experts, the best first, and then what the shared expert says."""
    cdef const SumWork *c = <const SumWork *>context
    cdef int32_t hidden = c.hidden, k = c.top_k, start, n, j, r
    cdef int64_t i
    cdef float total[CHANNELS]
    cdef float biased[CHANNELS]
    cdef float w, gate
    cdef const float *y
    cdef const float *bias
    cdef float *x
    for i in range(begin, end):
        gate = 1
        if c.gates != NULL:
            table.exp(c.gates + i, 0, -1, 1, &gate)
            gate = 1 / (1 + gate)
        start = 0
        while start < hidden:
            n = min(<int32_t>CHANNELS, hidden - start)
            for r in range(k):
                w = c.weights[i * k + r]
                y = c.y + <int64_t>c.slot[i * k + r] * hidden + start
                if c.bias != NULL:
                    bias = c.bias + <int64_t>c.expert[i * k + r] * hidden + start
                    for j in range(n):
                        biased[j] = y[j] + bias[j]
                    y = biased
                if r == 0:
                    for j in range(n):
                        total[j] = w * y[j]
                else:
                    for j in range(n):
                        total[j] = total[j] + w * y[j]
            if c.shared != NULL:
                y = c.shared + i * hidden + start
                for j in range(n):
                    total[j] = total[j] + gate * y[j]
            x = c.x + i * hidden + start
            for j in range(n):
                x[j] = x[j] + total[j]
            start += CHANNELS


# --- weights -----------------------------------------------------------------------------------------------------

cdef class ExpertLayer:
    """The experts of one layer.

    Parameters
    ----------
    plan : lowbit.plan.Experts
    hidden, activation : int
    gate_up : list of PackedMatrix or PagedMatrix
        Of all experts: their rows follow one another. One matrix for gate and one for up, or one for both.
    down : PackedMatrix or PagedMatrix
    bias, logit_bias : ndarray of float32, shape (n,), optional
        What is added to the probabilities when experts are chosen, and to what they are made of.
    gate_up_bias, down_bias : ndarray of float32, shape (n, 2 size) and (n, hidden), optional
    """

    def __cinit__(self, plan, int32_t hidden, int32_t activation, list gate_up, down, bias=None, logit_bias=None,
                  gate_up_bias=None, down_bias=None):
        cdef int32_t i
        self.n, self.top_k, self.size, self.hidden = plan.n, plan.top_k, plan.size, hidden
        self.groups, self.top_groups = plan.groups, plan.top_groups
        self.sigmoid, self.chosen_only, self.normalized = (
            plan.router == "sigmoid", plan.router == "softmax_chosen", plan.normalized)
        self.by_two = plan.group_best == 2
        self.activation = activation
        self.scale, self.clamp = plan.scale, plan.clamp
        if not (1 <= self.top_k <= min(self.n, <int32_t>MAX_CHOSEN)
                and 1 <= self.top_groups <= self.groups <= MAX_CHOSEN
                and self.n % self.groups == 0 and self.top_groups * (self.n // self.groups) >= self.top_k):
            raise FormatError("the numbers of experts do not fit together")
        self.keep = [*gate_up, down]
        self.n_parts = len(gate_up)
        if not 1 <= self.n_parts <= 2:
            raise FormatError("experts have a gate and an up projection")
        for i in range(self.n_parts):
            self._projection(gate_up[i], 2 * self.size // self.n_parts, hidden, &self.parts[i])
        self._projection(down, hidden, self.size, &self.down)
        self.bias, self.logit_bias = self._bias(bias, 1), self._bias(logit_bias, 1)
        self.gate_up_bias, self.down_bias = self._bias(gate_up_bias, 2 * self.size), self._bias(down_bias, hidden)

    cdef const float *_bias(self, values, int32_t width) except? NULL:
        """Take over `width` floats of each expert, or none at all."""
        cdef const float[::1] view
        if values is None:
            return NULL
        values = np.require(values, np.float32, "CA").reshape(-1)
        if values.size != self.n * <int64_t>width:
            raise FormatError(f"biases of {values.size} values for {self.n} experts of {width}")
        self.keep.append(values)
        self.nbytes += values.nbytes
        view = values
        return &view[0]

    cdef int _projection(self, matrix, int32_t n_out, int32_t n_in, Projection *out) except -1:
        cdef size_t groups = n_out // LB_ROWS
        out.paged = NULL
        if matrix.shape != (self.n * n_out, n_in) or n_out % LB_ROWS:
            raise FormatError(f"{matrix!r} stands where {self.n} experts of {n_out} x {n_in} belong")
        if isinstance(matrix, PagedMatrix):
            out.m = (<PagedMatrix>matrix).m
            out.paged = <void *>matrix
            self.used_bytes += matrix.stored_bytes // self.n * self.top_k
        else:
            out.m = (<PackedMatrix?>matrix).m
            self.used_bytes += matrix.nbytes // self.n * self.top_k
        out.m.n_rows = n_out
        out.codes = groups * group_code_bytes(&out.m)
        out.scales = groups * group_scale_bytes(&out.m)
        self.nbytes += matrix.nbytes
        return 0


# --- the walk ----------------------------------------------------------------------------------------------------

cdef class ExpertScratch(Buffers):
    """Memory for the experts of a pass, for the largest of some layers.

    Parameters
    ----------
    layers : list of ExpertLayer
    rows : int
        Most rows of a pass.
    """

    def __cinit__(self, list layers, size_t rows):
        cdef ExpertLayer layer
        cdef size_t n = 1, k = 1, slots, wide = 1, hidden = 1, stride = 64, groups = 1, floats = 0
        cdef int32_t i
        cdef lb_matrix *m
        for layer in layers:
            n, k = max(n, <size_t>layer.n), max(k, <size_t>layer.top_k)
            wide, hidden = max(wide, <size_t>layer.size), max(hidden, <size_t>layer.hidden)
            for i in range(layer.n_parts + 1):
                m = &layer.parts[i].m if i < layer.n_parts else &layer.down.m
                if is_float(m.format):
                    floats = max(floats, <size_t>layer.hidden * 4) if i < layer.n_parts else floats
                else:
                    stride, groups = max(stride, <size_t>row_stride(m)), max(groups, <size_t>m.n_groups)
        slots = rows * k
        self.logits = <float *>self.take(rows, 8 * n)
        self.gates = <float *>self.take(rows, 4)
        self.chosen = <int32_t *>self.take(slots, 4)
        self.weights = <float *>self.take(slots, 4)
        self.slot = <int32_t *>self.take(slots, 4)
        self.row = <int32_t *>self.take(slots, 4)
        self.expert = <int32_t *>self.take(slots, 4)
        self.starts = <int32_t *>self.take(n + 1, 4)
        self.q8 = <int8_t *>self.take(slots, stride)
        self.scales = <float *>self.take(slots, 4 * groups)
        self.sums = <int32_t *>self.take(slots, 4 * groups)
        self.x = <float *>self.take(slots, floats)
        self.wide = <float *>self.take(slots, 8 * wide)
        self.y = <float *>self.take(slots, 4 * hidden)
        self.products = <lb_matmul_args *>self.take(2 * n, sizeof(lb_matmul_args))
        self.inputs = <lb_activations *>self.take(2 * n, sizeof(lb_activations))
        self.paged = <int32_t *>self.take(n, 4)
        self.matrices = <lb_matrix *>self.take(2 * n, sizeof(lb_matrix))

    cdef int run(self, ExpertLayer layer, const Rows *rows) noexcept nogil:
        """Add the results of each row's experts to it, from `logits` and `gates`; 0, or a status for `Pager.check`."""
        cdef RouteWork route
        cdef GateWork gate
        cdef SumWork add
        cdef int32_t slots = rows.n * layer.top_k, threads = rows.threads
        cdef int32_t chunk = 1 if rows.n < 4 * threads else 4
        cdef int status
        route.logits, route.scores = self.logits, self.logits + <size_t>rows.n * layer.n
        route.chosen, route.weights, route.bias = self.chosen, self.weights, layer.bias
        route.logit_bias, route.chosen_only = layer.logit_bias, layer.chosen_only
        route.n, route.top_k, route.groups, route.top_groups = layer.n, layer.top_k, layer.groups, layer.top_groups
        route.sigmoid, route.normalized, route.scale = layer.sigmoid, layer.normalized, layer.scale
        route.by_two = layer.by_two
        parallel(route_work, &route, rows.n, chunk, threads)
        sort_rows(self.chosen, rows.n, layer.top_k, layer.n, self.starts, self.slot, self.row, self.expert)
        if layer.down.paged != NULL:
            self._prefetch(layer)
        status = self._project(layer, layer.parts, layer.n_parts, rows, False)
        if status:
            return status
        gate.gate_up, gate.n, gate.clamp = self.wide, layer.size, layer.clamp
        gate.activation, gate.bias, gate.expert = layer.activation, layer.gate_up_bias, self.expert
        parallel(gate_work, &gate, slots, chunk, threads)
        status = self._project(layer, &layer.down, 1, rows, True)
        if status:
            return status
        add.x, add.y, add.weights, add.slot, add.shared = rows.out, self.y, self.weights, self.slot, rows.shared
        add.gates, add.hidden, add.top_k = rows.gates, layer.hidden, layer.top_k
        add.bias, add.expert = layer.down_bias, self.chosen
        parallel(sum_work, &add, rows.n, chunk, threads)
        return 0

    cdef int _project(self, ExpertLayer layer, Projection *parts, int32_t n_parts, const Rows *rows,
                      bint down) noexcept nogil:
        """Multiply with gate and up, from the rows to `wide`, or with down, from `wide` to `y`."""
        cdef NormWork work
        cdef GatherWork gather
        cdef lb_activations a
        cdef Projection *p
        cdef const lb_matrix *before = NULL
        cdef int32_t slots = rows.n * layer.top_k, threads = rows.threads, n_products = 0, part, e, first, count, own
        cdef int32_t chunk = 1 if slots < 4 * threads else 4
        cdef int32_t y_stride = layer.hidden if down else 2 * layer.size
        cdef size_t step
        cdef float *y = self.y if down else self.wide
        cdef bint each = down or rows.n > 1     # every slot has an input of its own
        cdef int status
        memset(&work, 0, sizeof(work))
        memset(&a, 0, sizeof(a))
        for part in range(n_parts):
            p = &parts[part]
            if before == NULL or not same_input(before, &p.m):
                if n_products:
                    multiply_all(self.products, n_products, threads)
                n_products = 0
                work.x, work.n = self.wide if down else rows.x, p.m.n_cols
                work.x_stride = 2 * layer.size if down else layer.hidden
                a.x, a.stride, a.n_groups = work.x, <int32_t>work.x_stride, p.m.n_groups
                if not is_float(p.m.format):
                    work.q = self.q8 if down else rows.q8
                    work.scale = self.scales if down else rows.scales
                    work.sum = self.sums if down else rows.sums
                    work.reader, work.n_groups, work.q_stride = &p.m, p.m.n_groups, row_stride(&p.m)
                    work.per_token = rows.per_token
                    parallel(norm_work, &work, slots if down else rows.n, chunk, threads)
                    a.q, a.scale, a.sum, a.stride = work.q, work.scale, work.sum, <int32_t>work.q_stride
                if each and not down:
                    gather.row = self.row
                    if is_float(p.m.format):
                        gather.source, gather.target = <const char *>rows.x, <char *>self.x
                        gather.nbytes = gather.stride = 4 * <size_t>layer.hidden
                        parallel(gather_work, &gather, slots, 16, threads)
                        a.x = self.x
                    else:
                        gather.source, gather.target = <const char *>rows.q8, <char *>self.q8
                        gather.nbytes = gather.stride = <size_t>work.q_stride
                        parallel(gather_work, &gather, slots, 16, threads)
                        gather.nbytes = gather.stride = 4 * <size_t>p.m.n_groups
                        gather.source, gather.target = <const char *>rows.scales, <char *>self.scales
                        parallel(gather_work, &gather, slots, slots, 1)
                        gather.source, gather.target = <const char *>rows.sums, <char *>self.sums
                        parallel(gather_work, &gather, slots, slots, 1)
                        a.q, a.scale, a.sum = self.q8, self.scales, self.sums
            before, own = &p.m, n_products
            for e in range(layer.n):
                first, count = self.starts[e], self.starts[e + 1] - self.starts[e]
                if count == 0:
                    continue
                step = <size_t>first if each else 0
                self.inputs[n_products] = a
                self.inputs[n_products].n_tokens = count
                if is_float(p.m.format):
                    self.inputs[n_products].x = a.x + step * a.stride
                else:
                    self.inputs[n_products].q = a.q + step * a.stride
                    self.inputs[n_products].scale = a.scale + step * p.m.n_groups
                    self.inputs[n_products].sum = a.sum + step * p.m.n_groups
                self.matrices[n_products] = p.m
                self.products[n_products].w, self.products[n_products].x = (
                    &self.matrices[n_products], &self.inputs[n_products])
                self.products[n_products].y, self.products[n_products].sums = y + <size_t>first * y_stride, NULL
                self.products[n_products].y_stride = y_stride
                if p.paged != NULL:
                    self.paged[n_products - own] = e
                else:
                    self.matrices[n_products].codes = p.m.codes + e * p.codes
                    self.matrices[n_products].scales = <const char *>p.m.scales + e * p.scales
                n_products += 1
            if p.paged != NULL:
                status = (<PagedMatrix>p.paged).multiply_parts(
                    self.paged, &self.products[own], n_products - own, threads)
                if status:
                    return status
                n_products = own
            y += p.m.n_rows
        if n_products:
            multiply_all(self.products, n_products, threads)
        return 0

    cdef void _prefetch(self, ExpertLayer layer) noexcept nogil:
        """Ask for the blocks of all experts that were chosen, in the order in which they are used."""
        cdef int32_t part, e
        cdef Projection *p
        for part in range(layer.n_parts + 1):
            p = &layer.parts[part] if part < layer.n_parts else &layer.down
            if p.paged == NULL:
                continue
            for e in range(layer.n):
                if self.starts[e + 1] > self.starts[e]:
                    layer.n_asked += 1
                    layer.n_found += (<PagedMatrix>p.paged).prefetch_part(e)


cdef bint same_input(const lb_matrix *a, const lb_matrix *b) noexcept nogil:
    """Whether the input made for one matrix serves the other."""
    if is_float(a.format) or is_float(b.format):
        return is_float(a.format) and is_float(b.format)
    return a.group_cols == b.group_cols and padded_cols(a) == padded_cols(b)
