"""The one forward pass, for a batch of rows: a row is one token at one position of one sequence.

1. Rows of prompts, of sequences that decode, of proposed tokens and of scored texts share a batch as they come. A
   row's result does not depend on the other rows, so all of these give the same bits as alone.
2. All scratch memory is taken before the first token, and blocks of keys and values before a step. Within a step there
   is no allocation and no Python: while there is nothing to do but to make the next tokens, it goes on by itself.
3. Rows may be sparse: of the inputs of a linear layer, after its norm and before they become int8, only the largest
   count. Matrices for these are channel-major (`topk.pyx`), and inputs that are 0 cost nothing.
4. Work is handed to the pool in row groups (products), rows (norms) and (row, head) pairs (attention). Small work
   stays on the calling thread, where it is done sooner than a thread wakes up.
5. A pass that fails, or that a signal interrupts, changes no sequence.
"""
from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from lowbit._kernels.dispatch cimport (
    Interrupts, begin_doubles, checked, end_floats, lb_activations, lb_float_mode, lb_matrix, lb_plus, lb_times,
    nanoseconds, parallel,
)
from lowbit._kernels.deltanet cimport DeltaWork, Segment, mix
from lowbit._kernels.graph cimport Graph, Layer, Linear
from lowbit._kernels.kvpool cimport KVPool
from lowbit._kernels.matrix cimport is_float, matrix_row, padded_cols, row_stride
from lowbit._kernels.moe cimport ExpertLayer, ExpertScratch, Rows
from lowbit._kernels.paging cimport PagedMatrix
from lowbit._kernels.products cimport multiply
from lowbit._kernels.sampler cimport Sampler
from lowbit._kernels.sequence cimport Sequence, State, ends_with
from lowbit._kernels.ops cimport (
    ATTENTION_ROWS, AddWork, AttentionWork, GateWork, GluWork, NormWork, RopeWork, add_work, attention_work, gate_work,
    glu_work, norm_work,
    rope_work, scale_by,
)

import threading

import numpy as np


cdef enum:
    ATTENTION_GRAIN = 1 << 18       # products of scores and values below which attention stays on one thread
    INTERRUPTED = -1                # status of a pass that Ctrl-C ended
    LOOK_ROWS = 8                   # of a pass in which Ctrl-C is looked for before every layer
    NOTHING = 0                     # what rows leave behind
    LAST = 1
    EVERY = 2
    STATES = 3

WANTS = {"nothing": NOTHING, "last": LAST, "every": EVERY, "states": STATES}


cdef class Batch:
    """The rows of a step, by sequence.

    Parameters
    ----------
    decoder : Decoder
        That will take it.
    """

    def __cinit__(self, Decoder decoder not None):
        cdef int32_t capacity = decoder.batch
        self.capacity, self.vocab = capacity, decoder.graph.vocab
        self.sequences = []
        self.memory = np.empty((capacity, sizeof(Entry)), np.uint8)
        cdef uint8_t[:, ::1] view = self.memory
        self.entries = <Entry *>&view[0, 0]

    def clear(self):
        """Empty it."""
        self.sequences = []
        self.n_entries = self.n_rows = self.n_wanted = 0

    def add(self, Sequence sequence not None, int32_t rows=1, str want="last", int32_t ahead=0, int32_t drafts=0):
        """Take in the next `rows` tokens of a sequence, and take blocks for them.

        Parameters
        ----------
        sequence : Sequence
            It may be in a batch once.
        rows : int
            From 1 to its pending tokens. If these are all, and it has a sampler, the step makes the next token.
        want : str
            What rows leave behind: ``nothing``, the ``last`` one its logits if it is the last token of the sequence,
            ``every`` one its logits, or its ``states``, which is what the output head reads.
        ahead : int
            Tokens that the step may make after the first.
        drafts : int
            Most tokens to propose, if the sequence speculates.

        Raises
        ------
        ValueError
            If there are not so many pending tokens, no room for the rows, or a token is not in the vocabulary.
        MemoryError
            If there are no blocks for them.
        """
        cdef State *s = &sequence.state
        cdef Entry *e
        cdef int32_t i
        if not 1 <= rows <= s.n_tokens - s.length or self.n_rows + rows > self.capacity:
            raise ValueError(f"{rows} rows do not fit: {s.n_tokens - s.length} are pending, and a batch of "
                             f"{self.capacity} has {self.n_rows}")
        for i in range(s.length, s.length + rows):
            if not 0 <= s.text[i] < self.vocab:
                raise ValueError(f"token {s.text[i]} is not in a vocabulary of {self.vocab}")
        drafts = min(drafts, <int32_t>MAX_DRAFT, self.capacity - self.n_rows - rows) if s.speculate else 0
        sequence.reserve(s.length + rows + max(drafts, min(ahead, s.most - s.n_tokens)))
        e = &self.entries[self.n_entries]
        e.state, e.rows, e.want, e.most_drafted, e.most_rows = s, rows, WANTS[want], drafts, rows + drafts
        self.sequences.append(sequence)
        self.n_entries += 1
        self.n_rows += rows + drafts
        if e.want == EVERY:
            self.n_wanted += rows
        elif e.want == LAST and s.length + rows == s.n_tokens:
            self.n_wanted += 1 + drafts

    def place(self, int32_t index):
        """Return where the rows of the entry `index` left what was wanted, as a slice of `Decoder.logits`."""
        cdef Entry *e = &self.entries[index]
        return slice(e.first_wanted, e.first_wanted + e.n_wanted)


cdef class Decoder:
    """The walk through the graph, and the scratch memory that it needs.

    Parameters
    ----------
    graph : Graph
    pool : KVPool
    threads : int
    batch : int
        Most rows of a pass.

    Attributes
    ----------
    lock : threading.Lock
        Held by whoever makes a step, or changes the pool or a sequence.
    """

    def __cinit__(self, Graph graph not None, KVPool pool not None, int32_t threads, int32_t batch=256):
        cdef size_t rows = batch
        cdef int32_t q_size = graph.q_size, wide
        self.graph, self.pool, self.threads, self.batch, self.most_logits = graph, pool, threads, batch, batch
        self.lock = threading.Lock()
        self.keep = []
        self.interrupts = Interrupts()
        wide = max(graph.qkv_size, 2 * graph.intermediate, graph.hidden)
        self.x = <float *>self._scratch(rows, <size_t>graph.hidden * 4)
        self.h = <float *>self._scratch(rows, <size_t>max(graph.hidden, q_size, graph.intermediate) * 4)
        self.normed = <float *>self._scratch(rows, <size_t>graph.inner * 4)
        self.wide = <float *>self._scratch(rows, <size_t>wide * 4)
        self.attended = <float *>self._scratch(rows, <size_t>max(q_size, graph.hidden) * 4)
        self.gates = <float *>self._scratch(rows, <size_t>(q_size if graph.gated else 0) * 4)
        self.mixed = <float *>self._scratch(rows, <size_t>graph.channels * 4)
        self.segments = <Segment *>self._scratch(rows, sizeof(Segment))
        self.segment_of = <int32_t *>self._scratch(rows, 4)
        self.q8 = <int8_t *>self._scratch(rows, graph.q_stride)
        self.scales = <float *>self._scratch(rows, <size_t>graph.n_groups * 4)
        self.sums = <int32_t *>self._scratch(rows, <size_t>graph.n_groups * 4)
        self.tokens = <int32_t *>self._scratch(rows, 4)
        self.positions = <int32_t *>self._scratch(rows, 4)
        self.wanted = <int32_t *>self._scratch(rows, 4)
        self.blocks = <char ***>self._scratch(rows, sizeof(char **))
        self.sparse = <uint8_t *>self._scratch(rows, 1)
        self.experts = ExpertScratch(graph.experts, rows) if graph.experts else None
        self.scratch_bytes += graph.sparse.nbytes + (self.experts.nbytes if graph.experts else 0)
        self._need_logits(1)

    cdef void *_scratch(self, size_t rows, size_t row_bytes) except NULL:
        cdef char[::1] view
        owner = np.empty(checked(lb_plus(lb_times(rows, row_bytes), 64), "scratch memory"), np.int8)
        self.keep.append(owner)
        self.scratch_bytes += rows * row_bytes
        view = owner
        return <void *>((<size_t>&view[0] + 63) // 64 * 64)

    cdef int _need_logits(self, int32_t rows) except -1:
        """Make room for the logits of this many rows."""
        cdef float[:, ::1] view
        if rows > self.logits_rows:
            checked(lb_times(rows, <size_t>self.graph.vocab * 4), "logits")
            memory = np.empty((rows, self.graph.vocab), np.float32)     # if it cannot be had, all is as it was
            view = memory
            self.scratch_bytes += 4 * <size_t>(rows - self.logits_rows) * self.graph.vocab
            self.logits_memory, self.row_logits, self.logits_rows = memory, &view[0, 0], rows
        return 0

    @property
    def logits(self):
        """What the last step left behind: logits of the rows that wanted them, a view of shape (rows, vocab_size)."""
        return self.logits_memory

    @property
    def states(self):
        """Likewise, of the rows that wanted states: after the last RMSNorm, a new array of shape (rows, hidden)."""
        return self.states_memory

    def renew_lock(self):
        """For a child process, in which nobody can give the lock back."""
        self.lock = threading.Lock()

    def interrupt(self):
        """Ask a step that makes several tokens to end before the next one. For any thread."""
        lb_atomic_store(&self.interrupted, 1)

    def step(self, Batch batch not None, int32_t steps=1, int64_t budget_ns=0):
        """Take the rows of a batch through all layers, and make the next token of each sequence whose turn it is.

        Parameters
        ----------
        batch : Batch
        steps : int
            If all rows are those of sequences that decode, go on making tokens for up to this many passes: until a
            sequence ends, blocks are used up, somebody calls `interrupt`, or the time is over.
        budget_ns : int
            Nanoseconds after which no further pass begins; 0 is no limit.

        Returns
        -------
        int
            Passes that were made.

        Raises
        ------
        FormatError, LowbitError
            If a weight that is paged in is bad, or cannot be read.
        KeyboardInterrupt, or whatever a signal handler raises
            Within some milliseconds. The sequences are then as they were after the last whole pass.
        """
        cdef int32_t made = 0, i
        cdef int64_t start = nanoseconds()
        cdef float[:, ::1] view
        self._need_logits(max(batch.n_wanted, 1))
        self.states_memory = None
        n_states = sum(batch.entries[i].rows for i in range(batch.n_entries) if batch.entries[i].want == STATES)
        if n_states:
            self.states_memory = np.empty((n_states, self.graph.hidden), np.float32)
            view = self.states_memory
            self.row_states = &view[0, 0]
        self.status = 0
        with nogil:
            while batch.n_entries:
                self._fill(batch)
                self._forward()
                self._leave(batch)
                if self.status:
                    break
                made += 1
                if not self._account(batch) or made == steps or lb_atomic_load(&self.interrupted):
                    break
                if budget_ns and nanoseconds() - start > budget_ns:
                    break
        lb_atomic_store(&self.interrupted, 0)
        if self.status == INTERRUPTED:
            self.interrupts.check()
        elif self.status:
            self.graph.pager.check(self.status)
        return made

    def read(self, Sequence sequence not None, str want="last", most=None):
        """Take in the pending tokens of one sequence, all or `most`, and make its next token if it has a sampler.

        Returns
        -------
        ndarray of float32 or None
            What was wanted: logits, shape (1 or n, vocab_size), or states, shape (n, hidden_size).
        """
        cdef int32_t pending = sequence.state.n_tokens - sequence.state.length, rows
        cdef int32_t left = pending if most is None else min(pending, most)
        batch, parts = Batch(self), []
        while left > 0:
            rows = min(left, self.batch, self.most_logits if want == "every" else left, sequence.reach)
            batch.clear()
            batch.add(sequence, rows, want)
            self.step(batch)
            left -= rows
            if self.pool.state_bytes:
                sequence.publish()
            if want != "nothing" and (want != "last" or left == 0):
                parts.append(np.array((self.states if want == "states" else self.logits)[batch.place(0)]))
        return np.concatenate(parts) if parts else None

    def make(self, list sequences not None, int32_t n):
        """Make up to n tokens of each of several sequences whose tokens are all taken in but for the last one."""
        batch, made = Batch(self), 0
        while made < n:
            batch.clear()
            for sequence in sequences:
                if not sequence.ended:
                    batch.add(sequence, sequence.pending, "last", n - made - 1,
                              min(<int32_t>MAX_DRAFT, self.most_logits - 1))
            if not batch.n_rows:
                break
            made += self.step(batch, n - made)

    cdef void _fill(self, Batch batch) noexcept nogil:
        """Write down the rows of one pass."""
        cdef int32_t i, j, n = 0, wanted = 0, states = 0
        cdef bint reaches
        cdef Entry *e
        cdef State *s
        for i in range(batch.n_entries):
            e = &batch.entries[i]
            s = e.state
            reaches = s.length + e.rows == s.n_tokens
            e.samples = reaches and s.sampler != NULL and not s.ended and e.want == LAST
            e.n_drafted = 0
            if e.samples and e.most_drafted > 0:
                e.n_drafted = look_up(s.text, s.n_tokens, e.drafted,
                                      min(e.most_drafted, e.most_rows - e.rows, s.most - s.n_tokens - 1))
            e.first_wanted = states if e.want == STATES else wanted
            e.first_row = n
            self.segments[i].before, self.segments[i].after = s.recurrent, s.next
            self.segments[i].first, self.segments[i].rows = n, e.rows + e.n_drafted
            for j in range(e.rows + e.n_drafted):
                self.tokens[n] = s.text[s.length + j] if j < e.rows else e.drafted[j - e.rows]
                self.positions[n] = s.length + j
                self.blocks[n] = s.table
                self.segment_of[n] = i
                self.sparse[n] = s.all_sparse or self.sparse_prefill or s.length + j >= s.prompt
                if e.want == EVERY or (e.want == LAST and reaches and j >= e.rows - 1):
                    self.wanted[wanted] = n
                    wanted += 1
                n += 1
            if e.want == STATES:
                states += e.rows
            e.n_wanted = (states if e.want == STATES else wanted) - e.first_wanted
        self.n_rows, self.n_wanted, self.n_segments = n, wanted, batch.n_entries

    cdef bint _account(self, Batch batch) noexcept nogil:
        """Count the rows as part of their sequences, and make the next tokens; whether to go on by itself."""
        cdef int32_t i, j, token, before
        cdef bint more = True
        cdef const float *row
        cdef Entry *e
        cdef State *s
        for i in range(batch.n_entries):
            e = &batch.entries[i]
            s = e.state
            before = s.length
            s.length += e.rows
            if not e.samples:
                s.recurrent, s.next = s.next, s.recurrent
                more = False
                continue
            for j in range(e.n_drafted + 1):
                row = self.row_logits + <size_t>(e.first_wanted + j) * self.graph.vocab
                token = (<Sampler>s.sampler).sample(row)
                (<Sampler>s.sampler).remember(token)
                s.text[s.n_tokens] = token
                s.n_tokens += 1
                s.ended = s.n_tokens == s.most or ends_with(s, token)
                if s.ended or j == e.n_drafted or token != e.drafted[j]:
                    break
                s.length += 1
            if s.length == before + e.rows + e.n_drafted:
                s.recurrent, s.next = s.next, s.recurrent
            elif s.recurrent != NULL:       # it saw tokens that are not in the text: those that are, are taken in again
                s.length = before
            e.rows = s.n_tokens - s.length
            more = more and not s.ended and s.n_tokens + e.most_drafted <= s.covered
            if s.recurrent != NULL and s.length % s.border == 0:
                more = False                # there is a state to keep
        return more

    # --- the pass ---

    cdef void _forward(self) noexcept nogil:
        """Take the rows through all layers; the result is in x."""
        cdef int32_t i
        cdef bint look = self.n_rows >= LOOK_ROWS or self.graph.pager is not None
        cdef lb_float_mode mode = begin_doubles()
        for i in range(self.n_rows):
            self._embed(self.tokens[i], self.x + <size_t>i * self.graph.hidden)
        scale_by(self.x, self.graph.embedding_scale, <int64_t>self.n_rows * self.graph.hidden)
        for i in range(self.graph.n_layers):
            if self.status == 0 and (look or i == 0) and self.interrupts.wanted():
                self.status = INTERRUPTED
            if self.status == 0:
                self._layer(i)
        end_floats(mode)

    cdef void _embed(self, int32_t token, float *out) noexcept nogil:
        if self.graph.token_embd.paged == NULL:
            matrix_row(self.graph.token_embd.m, token, out)
        elif self.status == 0:
            self.status = (<PagedMatrix>self.graph.token_embd.paged).row(token, out)

    cdef void _leave(self, Batch batch) noexcept nogil:
        """Compute the logits and states that are wanted."""
        cdef NormWork work
        cdef int32_t i, first = self.wanted[0] if self.n_wanted else 0, hidden = self.graph.hidden
        cdef float *x = self.x + <size_t>first * hidden
        cdef Entry *e
        if self.status:
            return
        for i in range(batch.n_entries):
            e = &batch.entries[i]
            if e.want == STATES:
                memset(&work, 0, sizeof(work))
                work.x, work.x_stride, work.n = self.x + <size_t>e.first_row * hidden, hidden, hidden
                work.weight, work.eps = self.graph.output_norm, self.graph.eps
                work.out = self.row_states + <size_t>e.first_wanted * hidden
                parallel(norm_work, &work, e.rows, 1, self.threads)
        if self.n_wanted and self.wanted[self.n_wanted - 1] != first + self.n_wanted - 1:
            x = self.attended       # rows that do not follow each other are brought together
            for i in range(self.n_wanted):
                memcpy(x + <size_t>i * hidden, self.x + <size_t>self.wanted[i] * hidden, 4 * <size_t>hidden)
        if self.n_wanted:
            self._apply(&self.graph.output, x, hidden, hidden, self.graph.output_norm, self.n_wanted, self.row_logits)
            scale_by(self.row_logits, self.graph.logit_scale, <int64_t>self.n_wanted * self.graph.vocab)

    cdef void _apply(self, Linear *linear, const float *x, int64_t x_stride, int32_t n_in, const float *norm,
                     int32_t n_rows, float *y) noexcept nogil:
        """y = linear(norm(x)); the input is quantised once for all parts that read it alike."""
        cdef NormWork work, inner
        cdef lb_activations a
        cdef const lb_matrix *m
        cdef const float *own
        cdef const lb_matrix *before = NULL
        cdef int32_t part, chunk = 1 if n_rows < 4 * self.threads else 4
        cdef float *out = y
        work.x, work.x_stride, work.n, work.weight, work.out, work.eps = x, x_stride, n_in, norm, self.h, self.graph.eps
        work.q, work.scale, work.sum, work.per_token = self.q8, self.scales, self.sums, self.graph.per_token
        work.keep, work.threshold, work.sparse = linear.keep, linear.threshold, self.sparse
        work.histogram = linear.histogram
        for part in range(linear.n_parts):
            m = linear.parts[part].m
            own = linear.parts[part].norm
            work.reader = NULL if is_float(m.format) or own != NULL else m
            work.q_stride = 0 if is_float(m.format) else row_stride(m)
            work.n_groups = m.n_groups
            if before == NULL or (work.reader != NULL and not same_input(before, m)):
                parallel(norm_work, &work, n_rows, chunk, self.threads)
            if norm != NULL:
                work.x, work.x_stride, work.weight = self.h, n_in, NULL
            work.keep, work.threshold, work.histogram = 0, 0, NULL
            a.q, a.scale, a.sum, a.n_groups, a.n_tokens = self.q8, self.scales, self.sums, m.n_groups, n_rows
            a.x, a.stride = work.x, <int32_t>work.x_stride
            if own != NULL:
                inner = work
                inner.weight, inner.out, inner.reader = own, self.normed, NULL if is_float(m.format) else m
                parallel(norm_work, &inner, n_rows, chunk, self.threads)
                a.x, a.stride = self.normed, n_in
            if not is_float(m.format):
                a.stride = <int32_t>work.q_stride
            if m.tiles:
                self.graph.sparse.multiply(m, &a, out, NULL, linear.n_out, self.threads)
            elif linear.parts[part].paged == NULL:
                multiply(m, &a, out, NULL, linear.n_out, self.threads)
            elif self.status == 0:
                self.status = (<PagedMatrix>linear.parts[part].paged).multiply_paged(
                    &a, out, linear.n_out, self.threads)
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
            self._attend(layer)
            add.y = self.wide
        add.norm = layer.attn_post_norm
        parallel(add_work, &add, n_rows, chunk, self.threads)

        if layer.experts != NULL:
            self._experts(layer)
            return
        self._dense(layer, self.x, layer.ffn_norm)
        add.y, add.bias, add.norm = self.attended, NULL, layer.ffn_post_norm
        parallel(add_work, &add, n_rows, chunk, self.threads)

    cdef void _attend(self, Layer *layer) noexcept nogil:
        """From queries, keys and values in `wide` to what is added to the residual stream, in `wide` too."""
        cdef RopeWork rope
        cdef AttentionWork attention
        cdef GateWork gate
        cdef int32_t n_rows = self.n_rows, q_size = layer.n_heads * layer.head_dim, seen, i
        cdef int32_t chunk = 1 if n_rows < 4 * self.threads else 4
        cdef int32_t tiles = (n_rows + ATTENTION_ROWS - 1) // ATTENTION_ROWS
        cdef int64_t work = 0
        attention.args.q_stride = layer.qkv.n_out
        attention.args.q, attention.args.out = self.wide, self.attended
        attention.args.blocks, attention.args.positions = self.blocks, self.positions
        attention.args.kv = self.pool.layer(layer.kv_index)
        attention.args.n_heads, attention.args.n_kv_heads = layer.n_heads, layer.n_kv_heads
        attention.args.head_dim, attention.args.kv_type = layer.head_dim, self.pool.kv_type
        attention.args.window, attention.args.sinks = layer.window, layer.sinks
        attention.n_rows = n_rows
        rope.qkv, rope.gates = self.wide, self.gates if layer.gated else NULL
        rope.bias, rope.q_norm, rope.k_norm = layer.qkv.bias, layer.q_norm, layer.k_norm
        rope.cos, rope.sin, rope.shape, rope.n_out = layer.cos, layer.sin, attention.args, layer.qkv.n_out
        rope.rope_dim, rope.halves, rope.norm_after = layer.rope_dim, layer.halves, layer.norm_after_rope
        rope.eps, rope.q_scale = self.graph.eps, layer.q_scale
        rope.whole_norm = layer.whole_norm
        parallel(rope_work, &rope, n_rows, chunk, self.threads)
        for i in range(n_rows):
            seen = self.positions[i] + 1
            work += <int64_t>(min(seen, layer.window) if layer.window else seen) * q_size
        parallel(attention_work, &attention, tiles * layer.n_kv_heads, 1,
                 self.threads if work > ATTENTION_GRAIN else 1)
        if layer.gated:
            gate.x, gate.gate, gate.n = self.attended, self.gates, q_size
            parallel(gate_work, &gate, n_rows, chunk, self.threads)
        self._apply(&layer.attn_output, self.attended, q_size, q_size, layer.attn_sub_norm, n_rows, self.wide)

    cdef void _recur(self, Layer *layer) noexcept nogil:
        """From the inputs of a recurrent layer in `wide` to what is added to the residual stream, in `attended`."""
        cdef DeltaWork work
        work.layer, work.segments, work.segment_of = &layer.delta, self.segments, self.segment_of
        work.wide, work.stride, work.mixed, work.eps = self.wide, layer.qkv.n_out, self.mixed, self.graph.eps
        mix(&work, self.n_rows, self.n_segments, self.threads)
        self._apply(&layer.attn_output, self.wide + layer.delta.channels, layer.qkv.n_out,
                    layer.delta.n_value_heads * layer.delta.dim, NULL, self.n_rows, self.attended)

    cdef void _dense(self, Layer *layer, const float *x, const float *norm) noexcept nogil:
        """attended = the gated feed-forward, or the shared expert, of norm(x)."""
        cdef GluWork glu
        cdef int32_t n_rows = self.n_rows, hidden = self.graph.hidden, wide = layer.wide
        self._apply(&layer.gate_up, x, hidden, hidden, norm, n_rows, self.wide)
        glu.gate_up, glu.n, glu.activation = self.wide, wide, layer.activation
        parallel(glu_work, &glu, n_rows, 1 if n_rows < 4 * self.threads else 4, self.threads)
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
        cdef Sequence sequence = Sequence(self.pool, tokens, <int32_t>tokens.shape[0], reuse=False)
        for name, counts in histograms.items():
            view = counts
            for i in range(self.graph.n_layers):
                self.graph.linear(i, name).histogram = &view[i, 0]
        self.threads = 1            # the counters are not shared
        try:
            self.read(sequence, "nothing")
        finally:
            sequence.close()
            self.threads = threads
            for name in histograms:
                for i in range(self.graph.n_layers):
                    self.graph.linear(i, name).histogram = NULL

    def cache_stats(self):
        """What the cache of paged weights did so far (`BlockCache.stats`); empty if all is resident.

        ``expert_hits``: of each layer with experts, the share of the weights of chosen experts that were in memory.
        """
        if self.graph.pager is None:
            return {}
        layers = self.graph.experts
        return self.graph.pager.cache.stats() | (
            {"expert_hits": [layer.found / layer.asked if layer.asked else 0.0 for layer in layers]} if layers else {})


cdef int32_t look_up(const int32_t *text, int64_t n, int32_t *proposal, int32_t most) noexcept nogil:
    """Propose what followed the last three tokens, or else the last two, when they last occurred together."""
    cdef int64_t at
    cdef int32_t size, i
    for size in range(3, 1, -1):
        for at in range(n - size - 1, -1, -1):
            i = 0
            while i < size and text[at + i] == text[n - size + i]:
                i += 1
            if i == size:
                i = 0
                while i < most and at + size + i < n:
                    proposal[i] = text[at + size + i]
                    i += 1
                return i
    return 0


cdef bint same_input(const lb_matrix *a, const lb_matrix *b) noexcept nogil:
    """Whether the int8 activations made for one matrix serve the other."""
    return (not is_float(a.format) and a.group_cols == b.group_cols and padded_cols(a) == padded_cols(b))
