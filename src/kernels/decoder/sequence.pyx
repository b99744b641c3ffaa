"""One sequence: its tokens, and the blocks that hold its keys and values."""
cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from lowbit._kernels.dispatch cimport LB_KV_SPAN
from lowbit._kernels.kvpool cimport Block, KVPool
from lowbit._kernels.lookup cimport MAX_DRAFT, Lookup
from lowbit._kernels.recall cimport recall, store
from lowbit._kernels.sampler cimport Sampler

import os
import threading
import time

import numpy as np

from lowbit._kernels.kvpool import first_chain
from lowbit.errors import ContextLengthError, LowbitError


cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident()


cdef class Turn:
    """Whose turn it is: `with turn as mine` takes it if nobody has it, and gives it back.

    A lock that is tried in Python can be left locked by a signal that arrives between the try and the `with`.
    """

    @cython.critical_section    # which the GIL is already, in a Python that has one
    def __enter__(self):
        if self.taken:
            if self.thread == PyThread_get_thread_ident():
                raise LowbitError("an engine cannot be used from within one of its own steps")
            return False
        self.taken, self.thread = True, PyThread_get_thread_ident()
        return True

    @cython.critical_section
    def __exit__(self, *exc):
        if self.taken and self.thread == PyThread_get_thread_ident():
            self.taken = False


cdef class StepLock:
    """A lock that knows its holder: the garbage collector may end a stream in the middle of a step, in the same thread.

    In a child process it is free: whoever held it there lives on in the parent alone.
    """

    def __cinit__(self):
        self.lock, self.process = threading.Lock(), os.getpid()

    def __enter__(self):
        if self.process != os.getpid():
            self.lock, self.process = threading.Lock(), os.getpid()
        self.lock.acquire()
        self.thread, self.taken = PyThread_get_thread_ident(), True

    def __exit__(self, *exc):
        self.taken = False
        self.lock.release()

    @property
    def mine(self):
        """Whether the calling thread holds it."""
        return self.taken and self.process == os.getpid() and self.thread == PyThread_get_thread_ident()


cdef class Sequence:
    """A text that is being read, and then written.

    Parameters
    ----------
    pool : KVPool
    tokens : ndarray of int32, shape (n,)
        What is given; n >= 1.
    capacity : int
        Most positions. One more token can be made, which then has no position.
    prompt : int, optional
        How many of `tokens` were the prompt; those after it were made by the model (default: all are the prompt).
    sampler : Sampler, optional
        Makes the tokens that follow; None if there are none.
    most : int
        Tokens in all at which the sequence ends.
    ends : ndarray of int32
        Tokens that end it; the one that was found is its last.
    salt : bytes
        Only sequences of the same salt know each other's blocks.
    reuse : bool
        Begin with what the pool knows. The last of `tokens` is never taken from there, for its logits are needed.
    owner : object, optional
        Whoever will close it.
    share_made : bool
        Whether the positions of made tokens are what a prompt of the same tokens would have (they are not if inputs
        are skipped while decoding).

    Raises
    ------
    ContextLengthError
        If the tokens do not fit.
    MemoryError
        If the memory cannot be had.
    """

    def __cinit__(self, KVPool pool not None, const int32_t[::1] tokens not None, int32_t capacity, prompt=None,
                  Sampler sampler=None, int32_t most=0, const int32_t[::1] ends=None, bytes salt=b"",
                  bint reuse=True, bint share_made=True, owner=None):
        cdef State *s = &self.state
        cdef int32_t n = <int32_t>min(tokens.shape[0], 1 << 30), blocks
        if n < 1:
            raise ValueError("a sequence needs at least one token")
        if n > capacity:
            raise ContextLengthError(f"{n} tokens do not fit into a context of {capacity}")
        self.pool, self.sampler, self.owner = pool, sampler, owner
        self.blocks, self.chains = [], [first_chain(salt)]
        s.sampler = <void *>sampler if sampler is not None else NULL
        s.capacity, s.n_tokens, s.border = capacity, n, pool.border
        s.prompt = n if prompt is None else prompt
        s.most = min(max(most, n), capacity + 1)
        s.ended = sampler is None or s.most == n
        self.shared = capacity if share_made else s.prompt
        self.began = time.time_ns()
        blocks = (capacity - 1) // LB_KV_SPAN + 1
        s.table = <char **>malloc(sizeof(char *) * <size_t>blocks)
        s.text = <int32_t *>malloc(4 * (<size_t>capacity + 1))
        if ends is not None and ends.shape[0]:
            s.n_ends = <int32_t>ends.shape[0]
            s.ends = <int32_t *>malloc(4 * <size_t>s.n_ends)
        if s.table == NULL or s.text == NULL or (s.n_ends and s.ends == NULL):
            raise MemoryError(f"no memory for a sequence of {capacity} tokens")
        memcpy(s.text, &tokens[0], 4 * <size_t>n)
        if s.n_ends:
            memcpy(s.ends, &ends[0], 4 * <size_t>s.n_ends)
        pool.growing.append(self)
        if reuse:
            try:
                self._adopt(salt)
            except BaseException:
                self.close()
                raise

    def __dealloc__(self):
        free(self.state.table)
        free(self.state.text)
        free(self.state.ends)

    def _adopt(self, bytes salt):
        """Begin with what the pool knows of the prompt, or else the disk behind it."""
        cdef Block block, copy
        cdef int32_t n = min(self.state.n_tokens - 1, self.shared), i
        cdef bytes text = (<char *>self.state.text)[:4 * n]
        blocks, chain, part = self.pool.match(text, salt)
        for block in blocks:
            self.pool.hold(block)
        self._share(blocks)
        if self.pool.disk is not None:
            self._share(recall(self.pool, text, chain, <int32_t>len(blocks)))
            if not self.pool.state_bytes:       # what was found may have gone to make room
                part = self.pool.part(self.chains[-1], text[4 * self.state.length:4 * (self.state.length + LB_KV_SPAN)])
            for i in range(<int32_t>len(self.blocks)):
                self.pool.disk.touch(self.chains[i + 1], self.began, i)
        if part is not None:
            block = part[0]
            self.pool.hold(block)   # not to be evicted for its own copy
            try:
                copy = self.pool.take()
            finally:
                self.pool.let_go(block)
            if copy is not None:
                memcpy(copy.memory, block.memory, self.pool.block_bytes)
                self.state.table[len(self.blocks)] = copy.memory
                self.blocks.append(copy)
                self.state.length += <int32_t>part[1]
                self.state.covered += LB_KV_SPAN
        self.reused = self.state.length
        self.pool.hits += self.state.length > 0

    cdef int _share(self, list blocks) except -1:
        """Begin with blocks that are held already, or go on with them."""
        cdef Block block
        for block in blocks:
            self.state.table[len(self.blocks)] = block.memory
            self.blocks.append(block)
            self.chains.append(block.chain)
        self.state.length = self.state.covered = LB_KV_SPAN * <int32_t>len(self.blocks)
        if blocks and self.pool.state_bytes:
            self.begin = (<Block>blocks[-1]).state      # which the pool may give up before it is copied
            self.pool.snapshots[blocks[-1]] = self.pool.snapshots.pop(blocks[-1])
        return 0

    def tail(self, bytes chain):
        """The block that is being filled after `chain`, and the tokens in it; (None, None) if there is none."""
        cdef int32_t full = <int32_t>len(self.chains) - 1, start = full * LB_KV_SPAN, end
        if self.pool.state_bytes:       # without the state at its end, a part is of no use
            return None, None
        end = min(self.state.length, self.shared)
        if self.chains[full] != chain or end <= start:
            return None, None
        return self.blocks[full], (<char *>(self.state.text + start))[:4 * (end - start)]

    def blocks_for(self, int32_t positions):
        """Return how many blocks are still to be taken for this many positions, and for states."""
        missing = (min(positions, self.state.capacity) + LB_KV_SPAN - 1) // LB_KV_SPAN - len(self.blocks)
        return max(0, missing) + (2 * self.pool.state_blocks if self.current is None else 0)

    cdef int reserve(self, int32_t positions) except -1:
        """Take blocks for the first `positions`; MemoryError if the pool has none."""
        cdef Block block
        positions = min(positions, self.state.capacity)
        if self.pool.state_bytes and self.current is None:
            self._take_states()
        while LB_KV_SPAN * <int32_t>len(self.blocks) < positions:
            block = self.pool.take()
            if block is None:
                raise MemoryError("all blocks of keys and values are held")
            self.state.table[len(self.blocks)] = block.memory
            self.blocks.append(block)
            self.state.covered += LB_KV_SPAN
        return 0

    def _take_states(self):
        cdef Block state = self.pool.take_state(), other = None
        if state is not None:
            try:
                other = self.pool.take_state()
            finally:
                if other is None:
                    self.pool.allocated -= self.pool.state_blocks
        if other is None:
            raise MemoryError("all memory for the state of recurrent layers is held")
        if self.begin is None:
            memset(state.memory, 0, self.pool.state_bytes)
        else:
            memcpy(state.memory, self.begin.memory, self.pool.state_bytes)
        memset(other.memory, 0, self.pool.state_bytes)  # what pads its rows is not written
        self.current, self.other, self.begin = state, other, None
        self.state.recurrent, self.state.next = <float *>state.memory, <float *>other.memory

    @property
    def reach(self):
        """Rows of a pass after which a state should be kept; others may follow in the next pass."""
        if not self.pool.state_bytes:
            return self.state.capacity
        return self.pool.border - self.state.length % self.pool.border

    def publish(self):
        """Make the blocks known that have become full."""
        cdef int32_t i = <int32_t>len(self.chains) - 1, full = min(self.state.length, self.shared) // LB_KV_SPAN
        cdef Block block
        cdef const float *state
        while i < full:
            block = self.pool.learn(self.blocks[i], self.chains[i],
                                    (<char *>(self.state.text + i * LB_KV_SPAN))[:4 * LB_KV_SPAN])
            self.blocks[i], self.state.table[i] = block, block.memory
            self.chains.append(block.chain)
            i += 1
            state = NULL
            if self.state.length == i * LB_KV_SPAN and self.state.length % self.state.border == 0:
                state = self.state.recurrent
            if state != NULL:
                self.pool.keep_state(block, state)
            if self.pool.disk is not None:
                store(self.pool, block, state, self.began, i - 1)

    def close(self):
        """Let go of all blocks; what is in them stays known while the pool has room. May be called twice."""
        cdef Block block
        cdef int32_t full
        if self not in self.pool.growing:
            return
        self.publish()
        full = <int32_t>len(self.chains) - 1
        block, known = self.tail(self.chains[full])
        if block is not None:
            self.pool.learn(block, self.chains[full], known)
        self.pool.growing.remove(self)
        if self.current is not None:
            self.pool.allocated -= 2 * self.pool.state_blocks
        self.current = self.other = self.begin = None
        self.state.recurrent = self.state.next = NULL
        while self.blocks:
            self.pool.let_go(self.blocks.pop())
        self.state.ended = True
        self.state.covered = 0

    def append(self, tokens):
        """Append tokens that must come next, as if the sampler had chosen each; return how many there was room for."""
        cdef State *s = &self.state
        cdef int32_t n = s.n_tokens, token
        for token in tokens:
            if s.ended:
                break
            if not 0 <= token < self.sampler.vocab_size:
                raise ValueError(f"token {token} is not in a vocabulary of {self.sampler.vocab_size}")
            self.sampler.accept(token)
            s.text[s.n_tokens] = token
            s.n_tokens += 1
            s.ended = s.n_tokens == s.most or ends_with(s, token)
        return s.n_tokens - n

    def foresee(self, int32_t most, float cost):
        """Return what a proposal of its `Lookup` would be worth, at such a cost of a row; 1 if it has none."""
        cdef int32_t unused[MAX_DRAFT]
        if self.lookup is None:
            return 1.0
        self.lookup.propose(self.state.text, self.state.n_tokens, unused, min(most, <int32_t>MAX_DRAFT), cost)
        return self.lookup.value

    def imitate(self, Sequence other not None):
        """Take over the text of another, as far as there is room, and the state of its sampler.

        What was taken in stays, up to the first token that differs.
        """
        cdef State *s = &self.state
        cdef int32_t n = min(other.state.n_tokens, s.most), same = 0
        while same < min(n, s.n_tokens) and s.text[same] == other.state.text[same]:
            same += 1
        memcpy(s.text, other.state.text, 4 * <size_t>n)
        s.n_tokens, s.length, s.ended = n, min(s.length, same, n - 1), n == s.most
        self.sampler.imitate(other.sampler)

    def end(self):
        """Make no more tokens."""
        self.state.ended = True

    @property
    def length(self):
        """Positions that are filled."""
        return self.state.length

    @property
    def n_tokens(self):
        """Tokens, of which those from `length` on are still to be taken in."""
        return self.state.n_tokens

    @property
    def prompt(self):
        """How many of the tokens were given."""
        return self.state.prompt

    @property
    def ended(self):
        """Whether no token will be made any more."""
        return self.state.ended

    def compute_as(self, Lookup lookup=None, bint all_sparse=False):
        """Propose what `lookup` finds; compute the prompt as made tokens are computed.

        Of the latter nothing is shared: it may differ from what a prompt of the same tokens is.
        """
        self.lookup, self.state.all_sparse = lookup, all_sparse
        self.state.lookup = <void *>lookup if lookup is not None else NULL
        if all_sparse:
            self.shared = 0
        return self

    @property
    def pending(self):
        """Tokens that are still to be taken in."""
        return self.state.n_tokens - self.state.length

    def tokens(self, int32_t start=0):
        """Return a copy of the tokens from `start` on, int32."""
        start = min(max(start, 0), self.state.n_tokens)
        return np.frombuffer((<char *>(self.state.text + start))[:4 * (self.state.n_tokens - start)], np.int32)
