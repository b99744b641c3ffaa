"""Keys and values of past tokens: blocks of 64 positions, all layers of each together, in one pool under one limit.

1. A block belongs to the sequence that fills it. A full one never changes again, and every sequence that begins with
   the same tokens reads it too, without a copy.
2. A full block is found by its chain: a hash of the chain of the block before it and of its own tokens. The first
   chain is a hash of the caller's salt, so that callers can keep apart what they know.
3. What nobody holds stays known while there is room. The one that was let go first goes first, and a sequence lets go
   of its end before its beginning.
4. A block that agrees with a prompt only for a part is copied, and the copy is filled on: a prompt may leave a known
   text at any token.

5. Recurrent layers have a state in place of keys and values. A sequence has two, the one before a pass and the one
   after it; a copy stays with a full block at every `border`, which is so far apart that these copies take no more
   memory than the blocks. A known beginning is one that ends with such a copy. A state counts as so many blocks as it
   is large, and copies go before anything that is needed.

6. Behind the pool there may be a disk (`recall.pyx`).

Everything here holds the GIL, and runs between two steps of the decoder, never during one.
"""
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy

from lowbit._kernels.dispatch cimport (
    LB_KV_F16, LB_KV_F32, LB_KV_I8, LB_KV_SPAN, alloc_aligned, alloc_huge, checked, free_aligned, lb_kv,
    lb_kv_layout, lb_lay_out_kv,
)

from lowbit.errors import MemoryBudgetError

try:
    from _blake2 import blake2b     # hashlib would bring OpenSSL, some megabytes that a small machine does without
except ImportError:
    from hashlib import blake2b

cdef enum:
    SPARE = 4       # blocks whose memory is kept for the next that is needed

KV_TYPES = {"f32": LB_KV_F32, "f16": LB_KV_F16, "int8": LB_KV_I8}
SPAN = LB_KV_SPAN


def chain_of(bytes parent, bytes tokens):
    """Return the chain of a full block, from that of the block before it."""
    return blake2b(parent + tokens, digest_size=20).digest()


def first_chain(bytes salt):
    """Return what the first block of a sequence hangs on."""
    return blake2b(salt, digest_size=20, person=b"lowbit kv").digest()


cdef class Block:
    def __dealloc__(self):
        free_aligned(self.memory)


cdef class KVPool:
    """All blocks of keys and values of a model.

    Parameters
    ----------
    n_layers, n_kv_heads, head_dim : int
        Of the layers with attention; a head is as wide as its key.
    kv_type : str
        ``f32``, ``f16`` or ``int8``.
    state_bytes : int
        Of the recurrent layers, for one sequence.
    value_dim : int, optional
        Channels of a value, if it has not as many as a key; 0: it is the first channels of the key.

    Raises
    ------
    ValueError
        If the type has another name.
    MemoryError
        If a block is larger than the address space.
    """

    def __cinit__(self, size_t n_layers, size_t n_kv_heads, size_t head_dim, str kv_type, size_t state_bytes=0,
                  value_dim=None):
        cdef lb_kv_layout at
        if kv_type not in KV_TYPES:
            raise ValueError(f"kv_type must be one of {', '.join(KV_TYPES)}, not {kv_type!r}")
        self.kv_type = KV_TYPES[kv_type]
        at = lb_lay_out_kv({LB_KV_F32: 4, LB_KV_F16: 2, LB_KV_I8: 1}[self.kv_type], n_kv_heads, head_dim,
                           head_dim if value_dim is None else value_dim, LB_KV_SPAN, n_layers)
        self.block_bytes = checked(at.nbytes, f"keys and values of {SPAN} positions")
        self.layer_bytes = at.layer_bytes
        self.shape = lb_kv(0, at.values_at, at.key_scales_at, at.value_scales_at, at.stride, at.stride)
        self.full, self.children, self.idle, self.growing, self.spare = {}, {}, {}, [], []
        self.snapshots, self.state_bytes = {}, state_bytes
        self.state_blocks = (state_bytes + self.block_bytes - 1) // self.block_bytes
        self.border = LB_KV_SPAN * max(1, self.state_blocks)

    def resize(self, limit, kept):
        """Set how many blocks there may be, None for any number, and how many of them nobody needs to hold."""
        self.limit, self.kept = limit, kept
        self._trim()

    def fit(self, n_bytes):
        """Set how much memory all blocks may take together; MemoryBudgetError if that is not even one."""
        least = self.block_bytes * self.need(1)
        if n_bytes < least:
            raise MemoryBudgetError(f"keys and values need at least a block of {least} bytes", least)
        self.resize(n_bytes // self.block_bytes, n_bytes // self.block_bytes)

    @property
    def held(self):
        """Blocks that sequences hold."""
        return self.allocated - len(self.idle) - self.state_blocks * len(self.snapshots)

    @property
    def known(self):
        """Blocks that nobody holds and that are still known."""
        return len(self.idle)

    @property
    def free(self):
        """Blocks that could be taken now; None for any number."""
        return None if self.limit is None else self.limit - self.held

    def need(self, positions):
        """Return how many blocks a sequence of this many positions takes, its states counted as such."""
        return (positions + LB_KV_SPAN - 1) // LB_KV_SPAN + 2 * self.state_blocks

    def clear(self):
        """Forget what nobody holds."""
        while self.snapshots:
            self.drop_state(next(iter(self.snapshots)))
        while self.idle:
            self._evict()
        self.spare.clear()

    @property
    def sequences(self):
        """The sequences that hold blocks."""
        return tuple(self.growing)

    def match(self, bytes tokens, bytes salt):
        """Find what is known of the beginning of a text.

        Parameters
        ----------
        tokens : bytes of int32
        salt : bytes

        Returns
        -------
        blocks : list of Block
            Full ones.
        chain : bytes
            That of the last of them.
        part : (Block, int) or None
            A block that agrees with the next tokens, and with how many of them.
        """
        cdef size_t size = 4 * LB_KV_SPAN, at = 0
        cdef Block block
        cdef list blocks = []
        chain = first_chain(salt)
        while at + size <= <size_t>len(tokens):
            block = self.full.get(chain_of(chain, tokens[at:at + size]))
            if block is None:
                break
            blocks.append(block)
            chain = block.chain
            at += size
        if self.state_bytes:
            while blocks and (<Block>blocks[-1]).state is None:
                blocks.pop()
            return blocks, (<Block>blocks[-1]).chain if blocks else first_chain(salt), None
        return blocks, chain, self.part(chain, tokens[at:at + size])

    cdef tuple part(self, bytes chain, bytes rest):
        """A block after `chain` that agrees with the first of some tokens, and with how many; None if there is none."""
        cdef tuple part = None
        cdef Block block
        for block in self.children.get(chain, ()):
            part = better(part, block, block.tokens, rest)
        for sequence in self.growing:
            block, known = sequence.tail(chain)
            if block is not None:
                part = better(part, block, known, rest)
        return part

    def stats(self):
        """Return the counts of blocks and what became of them, and likewise of the disk, or None."""
        return {"block_bytes": self.block_bytes, "limit": self.limit, "held": self.held, "known": self.known,
                "hits": self.hits, "evictions": self.evictions,
                "disk": None if self.disk is None else self.disk.stats()}

    cdef lb_kv layer(self, int32_t index) noexcept nogil:
        cdef lb_kv kv = self.shape
        cdef size_t base = self.layer_bytes * index
        kv.keys += base
        kv.values += base
        kv.key_scales += base
        kv.value_scales += base
        return kv

    cdef Block take(self):
        """A block for one sequence to fill; None if all are held. MemoryError if the system has no more."""
        cdef Block block
        if self.limit is not None and self.allocated >= self.limit and not self.make_room():
            return None
        if self.spare:
            block = self.spare.pop()
            block.holders = 1
            self.allocated += 1
            return block
        block = Block()
        block.memory = <char *>alloc_huge(self.block_bytes)
        if block.memory == NULL and (self.idle or self.snapshots):      # what is needed is worth more
            self.clear()
            block.memory = <char *>alloc_huge(self.block_bytes)
        if block.memory == NULL:
            raise MemoryError(f"no memory for {SPAN} positions of keys and values ({self.block_bytes} bytes)")
        block.holders = 1
        self.allocated += 1
        return block

    cdef bint make_room(self) except -1:
        """Give up something that nobody needs; whether there was anything."""
        if self.idle:
            self._evict()
        elif self.snapshots:
            self.drop_state(next(iter(self.snapshots)))
        else:
            return False
        return True

    cdef Block take_state(self):
        """Memory for a recurrent state; None if all is held. MemoryError if the system has no more."""
        cdef Block state = Block()
        while self.limit is not None and self.allocated + self.state_blocks > self.limit:
            if not self.make_room():
                return None
        state.memory = <char *>alloc_aligned(self.state_bytes)
        if state.memory == NULL and (self.idle or self.snapshots):
            self.clear()
            state.memory = <char *>alloc_aligned(self.state_bytes)
        if state.memory == NULL:
            raise MemoryError(f"no memory for the state of recurrent layers ({self.state_bytes} bytes)")
        self.allocated += self.state_blocks
        return state

    cdef int keep_state(self, Block block, const float *state) except -1:
        """Keep a copy of the state behind a known block, if there is room."""
        cdef Block copy
        if block.state is not None:
            return 0
        try:
            copy = self.take_state()
        except MemoryError:
            return 0
        if copy is not None:
            memcpy(copy.memory, state, self.state_bytes)
            block.state = copy
            self.snapshots[block] = None
        return 0

    cdef int drop_state(self, Block block) except -1:
        del self.snapshots[block]
        block.state = None
        self.allocated -= self.state_blocks
        return 0

    cdef int hold(self, Block block) except -1:
        if block.holders == 0:
            del self.idle[block]
        block.holders += 1
        return 0

    cdef int let_go(self, Block block) except -1:
        block.holders -= 1
        if block.holders:
            return 0
        if block.parent is None:
            self._drop(block)
        else:
            self.idle[block] = None
            self._trim()
        return 0

    cdef Block learn(self, Block block, bytes parent, bytes tokens):
        """Make a block known, or return the one that is known already for the same tokens; hold that one then."""
        cdef Block same
        cdef bytes chain = None
        if len(tokens) == 4 * LB_KV_SPAN:
            chain = chain_of(parent, tokens)
            same = self.full.get(chain)
            if same is not None:
                self.hold(same)
                self.let_go(block)
                return same
            self.full[chain] = block
        else:
            for same in self.children.get(parent, ()):
                if same.tokens.startswith(tokens):      # nothing new: it goes, and what is known counts as used
                    if same.holders == 0:
                        del self.idle[same]
                        self.idle[same] = None
                    return block
        block.parent, block.chain, block.tokens = parent, chain, tokens
        self.children.setdefault(parent, []).append(block)
        return block

    def _trim(self):
        while self.idle and ((self.kept is not None and len(self.idle) > self.kept)
                             or (self.limit is not None and self.allocated > self.limit)):
            self._evict()

    def _evict(self):
        cdef Block block = next(iter(self.idle))
        del self.idle[block]
        siblings = self.children[block.parent]
        siblings.remove(block)
        if not siblings:
            del self.children[block.parent]
        if block.chain is not None:
            del self.full[block.chain]
        block.parent = block.chain = block.tokens = None
        if block.state is not None:
            self.drop_state(block)
        self._drop(block)
        self.evictions += 1

    cdef int _drop(self, Block block) except -1:
        """Give up a block: a few keep their memory, which the system would have to clear for the next one."""
        self.allocated -= 1
        if len(self.spare) < (SPARE if self.limit is None else min(SPARE, self.limit - self.allocated)):
            self.spare.append(block)
        return 0


cdef tuple better(tuple part, Block block, bytes known, bytes wanted):
    """The better one of a block that agrees for a part, and another: (block, tokens that agree)."""
    cdef const char *a = known
    cdef const char *b = wanted
    cdef int64_t n = min(len(known), len(wanted)), i = 0
    while i < n and a[i] == b[i]:
        i += 1
    i //= 4
    return (block, i) if i > 0 and (part is None or i > part[1]) else part
