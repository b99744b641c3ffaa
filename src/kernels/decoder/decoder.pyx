"""Steps of the decoder: a batch of rows goes through the layers, and tokens are made of what it leaves behind.

1. A row is one token at one position of one sequence. Rows of prompts, of sequences that decode, of proposed tokens and
   of scored texts share a batch as they come. A row's result does not depend on the other rows, so all of these give
   the same bits as alone.
2. All scratch memory is taken before the first token, and blocks of keys and values before a step. Within a step there
   is no allocation and no Python: while there is nothing to do but to make the next tokens, it goes on by itself.
3. A pass (`forward.pyx`) that fails, or that a signal interrupts, changes no sequence.
"""
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from lowbit._kernels.dispatch cimport checked, lb_times, nanoseconds, parallel
from lowbit._kernels.forward cimport INTERRUPTED, ForwardPass, lb_atomic_load, lb_atomic_store
from lowbit._kernels.graph cimport Graph
from lowbit._kernels.kvpool cimport KVPool
from lowbit._kernels.lookup cimport MAX_DRAFT, Lookup
from lowbit._kernels.moe cimport ExpertLayer
from lowbit._kernels.ops cimport NormWork, norm_work, scale_by
from lowbit._kernels.profile cimport SAMPLE
from lowbit._kernels.rowcost cimport note_pass, row_cost, text_seconds
from lowbit._kernels.sampler cimport Sampler
from lowbit._kernels.sequence cimport Sequence, State, ends_with

import numpy as np

from lowbit._kernels.lookup import EarlierTexts
from lowbit._kernels.sequence import StepLock


cdef enum:
    NOTHING = 0                     # what rows leave behind
    LAST = 1
    EVERY = 2
    STATES = 3

    EARLIER_TOKENS = 1 << 16

WANTS = {"nothing": NOTHING, "last": LAST, "token": LAST, "every": EVERY, "states": STATES}


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

    def add(self, Sequence sequence not None, int32_t rows=1, str want="last", int32_t ahead=0, int32_t drafts=0,
            const int32_t[::1] proposal=None):
        """Take in the next `rows` tokens of a sequence, and take blocks for them.

        Parameters
        ----------
        sequence : Sequence
            It may be in a batch once.
        rows : int
            From 1 to its pending tokens. If these are all, and it has a sampler, the step makes the next token.
        want : str
            What rows leave behind: ``nothing``, the ``last`` one its logits if it is the last token of the sequence,
            ``every`` one its logits, or its ``states``, which is what the output head reads. With ``token`` the last
            one leaves those logits that the next token depends on, and -infinity for others.
        ahead : int
            Tokens that the step may make after the first.
        drafts : int
            Most tokens to propose.
        proposal : ndarray of int32, optional
            What to propose in the first pass; without it that is what the sequence's `Lookup` finds.

        Raises
        ------
        ValueError
            If there are not so many pending tokens, no room for the rows, or a token is not in the vocabulary.
        MemoryError
            If there are no blocks for them.
        """
        cdef State *s = &sequence.state
        cdef Entry *e
        cdef int32_t i, given
        if not 1 <= rows <= s.n_tokens - s.length or self.n_rows + rows > self.capacity:
            raise ValueError(f"{rows} rows do not fit: {s.n_tokens - s.length} are pending, and a batch of "
                             f"{self.capacity} has {self.n_rows}")
        for i in range(s.length, s.length + rows):
            if not 0 <= s.text[i] < self.vocab:
                raise ValueError(f"token {s.text[i]} is not in a vocabulary of {self.vocab}")
        given = 0 if proposal is None else <int32_t>min(proposal.shape[0], MAX_DRAFT)
        drafts = min(drafts, <int32_t>MAX_DRAFT if s.lookup != NULL else given, self.capacity - self.n_rows - rows)
        sequence.reserve(s.length + rows + max(drafts, min(ahead, s.most - s.n_tokens)))
        e = &self.entries[self.n_entries]
        e.state, e.rows, e.want, e.most_drafted, e.most_rows = s, rows, WANTS[want], drafts, rows + drafts
        e.few = want == "token"
        e.n_given = 0
        while e.n_given < min(given, drafts) and 0 <= proposal[e.n_given] < self.vocab:
            e.drafted[e.n_given] = proposal[e.n_given]
            e.n_given += 1
        self.sequences.append(sequence)
        self.n_entries += 1
        self.n_rows += rows + drafts
        if e.want == EVERY:
            self.n_wanted += rows
        elif e.want == LAST and s.length + rows == s.n_tokens:
            self.n_wanted += 1 + drafts

    def give_up(self):
        """End the step that this is in, and all later ones, before the next layer. For any thread."""
        lb_atomic_store(&self.given_up, 1)

    def place(self, int32_t index):
        """Return where the rows of the entry `index` left what was wanted, as a slice of `Decoder.logits`."""
        cdef Entry *e = &self.entries[index]
        return slice(e.first_wanted, e.first_wanted + e.n_wanted)


cdef class Decoder(ForwardPass):
    """Steps of several sequences: passes of their next rows, and the tokens that are made of what they leave behind.

    Parameters
    ----------
    graph : Graph
    pool : KVPool
    threads : int
    batch : int
        Most rows of a pass.

    Attributes
    ----------
    lock : StepLock
        Held by whoever makes a step, or changes the pool or a sequence.
    texts : EarlierTexts
        What was said in texts that ended, for proposals.
    proposed, accepted : int
        Tokens that were proposed so far, and those that were right.
    """

    def __cinit__(self, Graph graph not None, KVPool pool not None, int32_t threads, int32_t batch=256):
        self.most_logits = batch
        self.texts = EarlierTexts(EARLIER_TOKENS)
        self.lock = StepLock()
        self.wanted = <int32_t *>self.scratch.take(batch, 4)
        self.scratch_bytes += 4 * <size_t>batch
        self._need_logits(1)

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
            Passes that were made: none if the batch was given up.

        Raises
        ------
        FormatError, LowbitError
            If a weight that is paged in is bad, or cannot be read.
        KeyboardInterrupt, or whatever a signal handler raises
            Within some milliseconds. The sequences are then as they were after the last whole pass.
        """
        cdef int32_t made = 0, i
        cdef int64_t start = nanoseconds(), begun
        cdef bint more
        cdef float[:, ::1] view
        self._need_logits(max(batch.n_wanted, 1))
        self.states_memory = None
        n_states = sum(batch.entries[i].rows for i in range(batch.n_entries) if batch.entries[i].want == STATES)
        if n_states:
            self.states_memory = np.empty((n_states, self.graph.hidden), np.float32)
            view = self.states_memory
            self.row_states = &view[0, 0]
        self.status, self.given_up = 0, &batch.given_up
        if self.profile is not None:
            self.profile.begin()
        with nogil:
            while batch.n_entries:
                self._fill(batch)
                begun = nanoseconds()
                self._forward()
                self._leave(batch)
                if self.status:
                    break
                if self.n_wanted == self.n_rows:    # as where tokens are checked
                    note_pass(&self.costs, self.n_rows, nanoseconds() - begun)
                made += 1
                more = self._account(batch)
                self._lap(SAMPLE)
                if not more or made == steps or lb_atomic_load(&self.interrupted):
                    break
                if budget_ns and nanoseconds() - start > budget_ns:
                    break
        lb_atomic_store(&self.interrupted, 0)
        self._tell()
        if self.status == INTERRUPTED:
            self.interrupts.check()
        elif self.status:
            self.graph.pager.check(self.status)
        return made

    cdef int _tell(self) except -1:
        """Make known what was counted without the GIL: others may read it while the next step goes on counting."""
        cdef ExpertLayer layer
        self.proposed, self.accepted = self.n_proposed, self.n_accepted
        if self.shortlist is not None:
            self.shortlist.asked, self.shortlist.made = self.shortlist.n_asked, self.shortlist.n_made
        if self.graph.pager is not None:
            for layer in self.graph.experts:
                layer.asked, layer.found = layer.n_asked, layer.n_found
        return 0

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
                    batch.add(sequence, sequence.pending, "token", n - made - 1,
                              min(<int32_t>MAX_DRAFT, self.most_logits - 1))
            if not batch.n_rows:
                break
            made += self.step(batch, n - made)

    cdef void _fill(self, Batch batch) noexcept nogil:
        """Write down the rows of one pass."""
        cdef int32_t i, j, n = 0, wanted = 0, states = 0, most
        cdef bint reaches
        cdef float cost = <float>row_cost(&self.costs, batch.n_entries)
        cdef Entry *e
        cdef State *s
        for i in range(batch.n_entries):
            e = &batch.entries[i]
            s = e.state
            reaches = s.length + e.rows == s.n_tokens
            e.samples = reaches and s.sampler != NULL and not s.ended and e.want == LAST
            e.n_drafted = 0
            if e.samples and e.most_drafted > 0:
                most = min(e.most_drafted, e.most_rows - e.rows, s.most - s.n_tokens - 1)
                e.looked_up = e.n_given == 0 and s.lookup != NULL
                if e.looked_up:
                    e.n_drafted = (<Lookup>s.lookup).propose(s.text, s.n_tokens, e.drafted, most, cost)
                else:
                    e.n_drafted = min(e.n_given, most)
                e.n_given = 0
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
                    self.few[wanted] = (<Sampler>s.sampler).few() if e.few and e.samples else 0
                    wanted += 1
                n += 1
            if e.want == STATES:
                states += e.rows
            e.n_wanted = (states if e.want == STATES else wanted) - e.first_wanted
        self.n_rows, self.n_wanted, self.n_segments = n, wanted, batch.n_entries

    def row_cost(self, int32_t texts=1):
        """Return what one more row costs, in one text's share of a pass of a row of each of so many texts, and
        such a share in seconds, 0 if there was no pass."""
        return row_cost(&self.costs, texts), text_seconds(&self.costs, texts)

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
            if e.n_drafted:
                self.n_proposed += e.n_drafted
                self.n_accepted += s.length - before - e.rows
                if e.looked_up:
                    (<Lookup>s.lookup).learn(s.length - before - e.rows, e.n_drafted)
            if s.length == before + e.rows + e.n_drafted:
                s.recurrent, s.next = s.next, s.recurrent
            elif s.recurrent != NULL:       # it saw tokens that are not in the text: those that are, are taken in again
                s.length = before
            e.rows = s.n_tokens - s.length
            more = more and not s.ended and s.n_tokens + e.most_drafted <= s.covered
            if s.recurrent != NULL and s.length % s.border == 0:
                more = False                # there is a state to keep
        return more

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
