"""Channel-major matrices that stay in a file: of a sparse product, only the channels that count are read.

1. A block is a few channels of one linear layer, about a page. For one token the active channels are listed, the
   blocks that hold them are asked for some way ahead, and their codes are gathered into a small channel-major matrix
   for the ordinary sparse kernel, a piece at a time. Sums are integers, so the pieces can be added in any order.
2. The blocks have a cache of their own, without an order of use. Keeping what was used last would keep nothing where
   one token needs more blocks than there is room for. So blocks are kept by how often they were used of late: one that
   was just read replaces the one of a few others that was used least, or is forgotten at once.
3. Scales are needed for every token, whatever is active: a block in the order of the other cache.
"""
from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t
from libc.string cimport memcpy, memset

from lowbit._kernels.blockcache cimport BlockCache, acquire, forget, mark, prefetch, release
from lowbit._kernels.dispatch cimport (
    LB_CHANNELS, LB_LINE_ROWS, LB_U2, alloc_aligned, free_aligned, lb_activations, lb_lines, lb_matrix,
    lb_sparse_args, parallel, table,
)
from lowbit._kernels.matrix cimport PackedMatrix
from lowbit._kernels.paging cimport CANNOT_READ, CANNOT_READ_CHANNELS, Pager
from lowbit._kernels.topk cimport tiles_of

import numpy as np

from lowbit._kernels.topk import make_channel_major
from lowbit.errors import FormatError, LowbitError


cdef extern from "kernels.h":
    int32_t lb_tile_line(const lb_matrix *m, int32_t tile) noexcept nogil

cdef enum:
    READERS = 16                # single pages: only many reads at a time keep a disk busy
    WINDOW = 512                # most blocks that are asked for ahead of their use
    LEAST_SLOTS = 64
    CANDIDATES = 8              # kept blocks of which the one that was used least makes way
    PASSES = 32                 # after so many tokens the counts of uses are halved
    PIECE_BYTES = 512 << 10     # codes that are gathered at a time
    SMALL_PIECE = 64 << 10      # codes below which a product stays on one thread
    ROW_BYTES = 24              # of a block in the table that the cache keeps
    BLOCK_BYTES = 80            # its account of a block


def channel_lines(PackedMatrix w not None, int32_t threads=1):
    """Turn up to 256 rows of a ternary matrix into lines; the matrix is channel-major afterwards.

    Returns
    -------
    codes : ndarray of uint8, shape (n_cols, 64)
    scales : ndarray of float16 or float32, shape (n_groups, 256)
    """
    cdef uint8_t[:, ::1] codes
    cdef uint8_t[::1] scales
    if w.m.n_rows > LB_LINE_ROWS:
        raise FormatError(f"{w.m.n_rows} rows are more than a line")
    make_channel_major(w, threads)
    codes_out = np.empty((w.m.n_cols, 64), np.uint8)
    scales_out = np.empty((w.m.n_groups, LB_LINE_ROWS), np.float16 if w.m.scales_f16 else np.float32)
    codes, scales = codes_out, scales_out.reshape(-1).view(np.uint8)
    memcpy(&codes[0, 0], w.m.codes, <size_t>w.m.n_cols * 64)
    memcpy(&scales[0], w.m.scales, scales.shape[0])
    return codes_out, scales_out


cdef void sparse_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    table.sparse(<const lb_sparse_args *>context, begin, end)


cdef void finish_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    table.sparse_finish(<const lb_sparse_args *>context, begin, end)


cdef class ChannelPager:
    """The blocks of channels of all linear layers, their cache, and the memory that products take.

    Parameters
    ----------
    block_bytes : int
        Of every block: whole pages.
    """

    def __cinit__(self, int64_t block_bytes):
        self.block_bytes = block_bytes
        self.parts = []

    def __dealloc__(self):
        cdef void *all[9]
        all = [self.uses, self.kept, self.active, self.needed, self.values, self.places, self.codes, self.total,
               self.partial]
        for memory in all:
            free_aligned(memory)

    @property
    def scratch_bytes(self):
        """Bytes beside the cache, for the largest matrix."""
        return 8 * self.cols + 5 * self.most + self.piece_bytes + 4 * (self.sums + self.rows)

    @property
    def own_bytes(self):
        """Bytes of the account that is kept of the blocks here."""
        return self.n_blocks * (ROW_BYTES + 5)

    @property
    def least_bytes(self):
        """A budget that `start` can do with."""
        return self.own_bytes + self.n_blocks * BLOCK_BYTES + (READERS << 15) + LEAST_SLOTS * self.block_bytes

    @property
    def most_bytes(self):
        """A budget beyond which nothing is gained."""
        return self.least_bytes + self.n_blocks * self.block_bytes

    cdef int32_t add(self, int64_t offset, const lb_matrix *m, int32_t per_block) except -1:
        cdef int32_t first = self.n_blocks, blocks = (m.n_cols + per_block - 1) // per_block
        cdef size_t channel = <size_t>lb_lines(m.n_rows) * 64
        cdef size_t piece = max(PIECE_BYTES // channel // LB_CHANNELS, 1) * LB_CHANNELS
        if per_block * channel > <size_t>self.block_bytes:
            raise FormatError(f"{per_block} channels of {channel} bytes do not fit into a block")
        self.parts.append((offset, blocks))
        self.n_blocks += blocks
        self.cols = max(self.cols, <size_t>m.n_cols)
        self.most = max(self.most, piece)
        self.piece_bytes = max(self.piece_bytes, piece * channel)
        self.rows = max(self.rows, <size_t>lb_lines(m.n_rows) * LB_LINE_ROWS)
        self.sums = max(self.sums, <size_t>m.n_groups * lb_lines(m.n_rows) * LB_LINE_ROWS)
        return first

    def start(self, source, int64_t budget):
        """Make the cache, once all matrices are known.

        Parameters
        ----------
        source : open file
        budget : int
            Bytes for the blocks and for what is kept about them; at least `least_bytes`.
        """
        cdef int32_t i, slots
        if self.cache is not None:
            raise LowbitError("a pager is started once")
        self.source = source
        blocks = np.zeros((self.n_blocks, 3), np.int64)
        blocks[:, 1] = np.concatenate([at + np.arange(n, dtype=np.int64) * self.block_bytes for at, n in self.parts])
        blocks[:, 2] = self.block_bytes
        cache = BlockCache([source.fileno()], blocks, budget - self.own_bytes, readers=READERS)
        self.uses = <uint8_t *>alloc_aligned(self.n_blocks)
        self.kept = <int32_t *>alloc_aligned(4 * <size_t>self.n_blocks)
        self.active = <int32_t *>alloc_aligned(4 * self.cols)
        self.needed = <int32_t *>alloc_aligned(4 * self.cols)
        self.values = <int8_t *>alloc_aligned(self.most)
        self.places = <int32_t *>alloc_aligned(4 * self.most)
        self.codes = <uint8_t *>alloc_aligned(self.piece_bytes)
        self.total = <int32_t *>alloc_aligned(4 * self.sums)
        self.partial = <int32_t *>alloc_aligned(4 * self.rows)
        if not (self.uses and self.kept and self.active and self.needed and self.values and self.places
                and self.codes and self.total and self.partial):
            raise MemoryError("no memory for channels")
        memset(self.uses, 0, self.n_blocks)
        memset(self.codes, 0, self.piece_bytes)
        for i in range(<int32_t>self.most):
            self.places[i] = i
        slots = cache.stats()["lru_slots"]
        self.window = max(min(slots // 4, <int32_t>WINDOW), 1)
        self.most_kept = self.n_blocks if slots == self.n_blocks else max(slots - self.window - 2, 1)
        self.open = -1
        self.cache, self.blocks = cache, cache.c

    def check(self):
        """Raise what the status CANNOT_READ_CHANNELS of a pass stands for."""
        self.cache.raise_error(self.bad_block, self.error)

    def recent_uses(self):
        """Return how often each block was used of late, uint8: the counts are halved from time to time."""
        return np.array(<uint8_t[:self.n_blocks]>self.uses)

    cdef const uint8_t *_open(self, int32_t block) noexcept nogil:
        """A block's bytes, which stay until another one is opened or `_close`; NULL if it cannot be read."""
        if block != self.open:
            self._close()
            self.bytes = <const uint8_t *>acquire(self.blocks, block, &self.error)
            if self.bytes == NULL:
                self.bad_block = block
                return NULL
            self.open = block
            self.uses[block] += self.uses[block] < 255
        return self.bytes

    cdef void _close(self) noexcept nogil:
        """Keep the block that was open, or make room for others."""
        cdef int32_t block = self.open, victim, i, other
        cdef bint known
        if block < 0:
            return
        self.open = -1
        known = mark(self.blocks, block)[0]
        mark(self.blocks, block)[0] = 1
        release(self.blocks, block)
        if known:
            return
        if self.n_kept < self.most_kept:
            self.kept[self.n_kept] = block
            self.n_kept += 1
            return
        victim = self.hand
        for i in range(1, min(<int32_t>CANDIDATES, self.n_kept)):
            other = (self.hand + i) % self.n_kept
            if self.uses[self.kept[other]] < self.uses[self.kept[victim]]:
                victim = other
        self.hand = (self.hand + CANDIDATES) % self.n_kept
        if self.uses[block] > self.uses[self.kept[victim]]:
            forget(self.blocks, self.kept[victim])
            self.kept[victim] = block
        else:
            forget(self.blocks, block)

    cdef int _sums(self, const ChannelLayer *w, const int8_t *q, int32_t threads) noexcept nogil:
        """The sums of every scale group, in `total`; 0, or a status."""
        cdef size_t rows = <size_t>lb_lines(w.m.n_rows) * LB_LINE_ROWS, i
        cdef int32_t n = 0, blocks = 0, block, channel, g, at = 0, end, stop
        cdef int32_t piece = <int32_t>(self.piece_bytes // (<size_t>lb_lines(w.m.n_rows) * 64)) & -LB_CHANNELS
        cdef int32_t *total
        piece = min(piece, <int32_t>self.most)
        for channel in range(w.m.n_cols):
            if q[channel]:
                self.active[n] = channel
                n += 1
                block = w.first_block + channel // w.per_block
                if blocks == 0 or self.needed[blocks - 1] != block:
                    self.needed[blocks] = block
                    blocks += 1
        self.n_needed, self.next_needed, self.n_asked = blocks, 0, 0
        for g in range(w.m.n_groups):
            total = self.total + g * rows
            end = at
            while end < n and (g == w.m.n_groups - 1 or self.active[end] < (g + 1) * w.m.group_cols):
                end += 1
            if at == end:
                memset(total, 0, rows * 4)
            elif not self._piece(w, q, at, min(end, at + piece), piece, total, threads):
                return CANNOT_READ_CHANNELS
            at = min(end, at + piece)
            while at < end:
                stop = min(end, at + piece)
                if not self._piece(w, q, at, stop, piece, self.partial, threads):
                    return CANNOT_READ_CHANNELS
                for i in range(rows):
                    total[i] += self.partial[i]
                at = stop
        return 0

    cdef bint _piece(self, const ChannelLayer *w, const int8_t *q, int32_t begin, int32_t end, int32_t room,
                     int32_t *sums, int32_t threads) noexcept nogil:
        """Gather some active channels of one scale group, and multiply; False if a block cannot be read."""
        cdef lb_matrix m = w.m
        cdef lb_sparse_args args
        cdef int32_t ends[2]
        cdef int32_t i, tile, first, lines, channel, n = end - begin
        cdef size_t size = <size_t>lb_lines(m.n_rows) * 64
        cdef const uint8_t *source
        m.codes, m.n_cols = self.codes, room
        for i in range(n):
            channel = self.active[begin + i]
            source = self._block_of(w, channel)
            if source == NULL:
                return False
            source += size * (channel % w.per_block)
            self.values[i] = q[channel]
            for tile in range(m.tiles):
                first = lb_tile_line(&m, tile)
                lines = lb_tile_line(&m, tile + 1) - first
                memcpy(self.codes + (<size_t>first * room + <size_t>lines * i) * 64,
                       source + <size_t>first * 64, <size_t>lines * 64)
        while n % LB_CHANNELS:
            self.values[n] = 0
            n += 1
        ends[0], ends[1] = 0, n
        args.w, args.channels, args.q, args.ends, args.n_parts = &m, self.places, self.values, ends, 1
        args.partial, args.scale, args.sum, args.y, args.sums = sums, NULL, NULL, NULL, NULL
        if n * size < SMALL_PIECE:
            threads = 1
        parallel(sparse_work, &args, m.tiles, m.tiles if threads == 1 else 1, threads)
        return True

    cdef const uint8_t *_block_of(self, const ChannelLayer *w, int32_t channel) noexcept nogil:
        """The block that a channel is in, while more of those that are needed are on their way."""
        cdef int32_t block = w.first_block + channel // w.per_block, stop
        if block == self.open:
            return self.bytes
        self.next_needed += 1
        stop = min(self.next_needed + self.window, self.n_needed)
        if self.n_asked < stop and (self.n_asked - self.next_needed < self.window // 2 or stop == self.n_needed):
            prefetch(self.blocks, self.needed + self.n_asked, stop - self.n_asked)
            self.n_asked = stop
        return self._open(block)

    cdef void _age(self) noexcept nogil:
        cdef int32_t i
        self.passes += 1
        if self.passes % PASSES == 0:
            for i in range(self.n_blocks):
                self.uses[i] >>= 1


cdef class PagedChannels:
    """A ternary linear layer whose channels are read when they count.

    In its file there are first the blocks of channels, each filled up to `ChannelPager.block_bytes`, and then the
    scales, as `kernels.h` has them.

    Parameters
    ----------
    pager : Pager
        For the scales.
    channels : ChannelPager
    pattern : PackedMatrix
        Of 16 rows as those of this matrix are.
    n_rows, per_block : int
        Outputs, and channels in a block.
    source, offset : int
        Which file of `pager`, and where the blocks begin in it.
    """

    def __cinit__(self, Pager pager not None, ChannelPager channels not None, PackedMatrix pattern not None,
                  int64_t n_rows, int32_t per_block, int32_t source, int64_t offset):
        cdef size_t scale_bytes
        if pattern.m.format != LB_U2 or pattern.m.tiles:
            raise FormatError("not a ternary matrix")
        self.layer.m = pattern.m
        self.layer.m.n_rows, self.layer.m.codes, self.layer.m.scales = <int32_t>n_rows, NULL, NULL
        self.layer.m.tiles = tiles_of(&self.layer.m)
        self.pager, self.channels, self.layer.per_block = pager, channels, per_block
        self.layer.first_block = channels.add(offset, &self.layer.m, per_block)
        offset += <int64_t>(channels.n_blocks - self.layer.first_block) * channels.block_bytes
        scale_bytes = <size_t>pattern.m.n_groups * lb_lines(<int32_t>n_rows) * LB_LINE_ROWS
        scale_bytes *= 2 if pattern.m.scales_f16 else 4
        self.scale_block = pager.add(source, offset, scale_bytes, 1, 1, True)

    @property
    def shape(self):
        """(n_rows, n_cols)"""
        return self.layer.m.n_rows, self.layer.m.n_cols

    cdef int multiply_channels(self, const lb_activations *x, float *y, ptrdiff_t y_stride,
                               int32_t threads) noexcept nogil:
        """y = x W^T, token by token; 0, or a status for `Pager.check`."""
        cdef lb_sparse_args args
        cdef lb_matrix m = self.layer.m
        cdef int32_t token, lines = lb_lines(m.n_rows)
        cdef int status = 0
        if self.layer.first_block == 0:
            self.channels._age()
        m.scales = acquire(self.pager.blocks, self.scale_block, &self.pager.error)
        if m.scales == NULL:
            self.pager.bad_block = self.scale_block
            return CANNOT_READ
        args.w, args.n_parts, args.partial, args.sums = &m, m.n_groups, self.channels.total, NULL
        for token in range(x.n_tokens):
            status = self.channels._sums(&self.layer, x.q + <size_t>token * x.stride, threads)
            self.channels._close()
            if status:
                break
            args.scale, args.sum = x.scale + token * x.n_groups, x.sum + token * x.n_groups
            args.y = y + token * y_stride
            parallel(finish_work, &args, lines, max(lines // (2 * threads), 1), threads)
        release(self.pager.blocks, self.scale_block)
        return status

    def __repr__(self):
        rows, cols = self.shape
        return f"PagedChannels({rows} x {cols}, {self.layer.per_block} channels in a block)"
