"""Matrices that are larger than the memory for them: their row groups come from a block cache as they are needed.

1. A matrix is cut into blocks of whole row groups. A block is a span, a matrix of its own: all codes, then all scales,
   so that the kernels take it with their tiles as they take a matrix in memory.
2. A block is read as it lies in the file; that of a stored TQ2_0, I2_S, Q4_0, Q4_1 or Q8_0 tensor takes no more bytes
   packed. It is packed into scratch memory, and goes back into the cache's unless it only passes through. Memory is
   changed only if all codes and scales are good; if one is not, every pass that comes to it fails alike.
3. Types that would take more bytes packed (`STORED_TYPES`) stay in the cache as they are in the file. Each thread
   unpacks some row groups into scratch memory of its own, and multiplies with them while they are in its caches.
4. What no kernel can read from the file is packed at load into a spill file, row group by row group.
5. Rows beyond the last whole row group stay resident.
6. One thread walks through the blocks and the pool shares their row groups, those of neighbouring blocks that stay in
   memory in one job; while it works, the cache reads ahead. A read that fails ends the pass with a status, never with a
   wrong sum.
"""
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy, memset

from lowbit._kernels.blockcache cimport Cache, acquire, mark, passes_through, prefetch, release
from lowbit._kernels.dispatch cimport (
    LB_ROWS, alloc_aligned, free_aligned, lb_activations, lb_matmul_args, lb_matrix, lb_round_up, lb_row_groups,
    lb_stored, parallel, table,
)
from lowbit._kernels.filling cimport Fill, fill_blocks, matrix_row
from lowbit._kernels.matrix cimport PackedMatrix, block_layout, group_code_bytes, group_scale_bytes
from lowbit._kernels.products cimport multiply, multiply_all
from lowbit._kernels.stored cimport Stored

import numpy as np

from lowbit._kernels.blockcache import BlockCache
from lowbit.errors import FormatError, LowbitError


cdef extern from "os.h":
    ctypedef int32_t lb_atomic
    void lb_trim_heap() noexcept nogil
    void lb_atomic_store(lb_atomic *a, int32_t v) noexcept nogil
    int32_t lb_atomic_add(lb_atomic *a, int32_t v) noexcept nogil

cdef enum:
    SPANS = 32              # blocks in one job
    PARTS = 256             # experts that are looked at together
    CODES_AT = 64           # what codes are aligned to
    PACKED = 1              # mark of a block that was packed in place
    PIECE_BYTES = 64 << 10  # of row groups that a thread unpacks at a time
    ALONE = 1 << 17         # weights that one thread unpacks in less time than it takes to wake another


def trim_heap():
    """Give memory that was freed back to the system, before what is in use is counted."""
    lb_trim_heap()


cdef void split_groups(void *context, int32_t begin, int32_t end) noexcept nogil:
    """Row groups with their codes and scales become all codes and all scales."""
    cdef Fill *c = <Fill *>context
    cdef size_t codes = group_code_bytes(c.m), scales = group_scale_bytes(c.m)
    cdef int32_t i
    for i in range(begin, end):
        memcpy(<uint8_t *>c.m.codes + i * codes, c.source + i * (codes + scales), codes)
        memcpy(<uint8_t *>c.m.scales + i * scales, c.source + i * (codes + scales) + codes, scales)


cdef struct Pieces:
    const lb_stored *stored
    const lb_matmul_args *each      # whose weights have codes as they lie in the file
    int32_t groups                  # of a piece
    int32_t of_each, total          # pieces
    uint8_t *scratch
    size_t scratch_bytes            # of a thread
    lb_atomic next
    bint bad[SPANS]


cdef void multiply_pieces(void *context, int32_t begin, int32_t end) noexcept nogil:
    """A unit is a thread's scratch memory: whoever has it unpacks pieces and multiplies with them, until none is left.
    """
    cdef Pieces *c = <Pieces *>context
    cdef lb_matmul_args product
    cdef lb_matrix m
    cdef const uint8_t *source
    cdef int32_t unit, piece, i, first, n
    for unit in range(begin, end):
        piece = lb_atomic_add(&c.next, 1)
        while piece < c.total:
            i, first = piece // c.of_each, piece % c.of_each * c.groups
            product = c.each[i]
            m = product.w[0]
            n = min(c.groups, lb_row_groups(m.n_rows) - first)
            if n > 0:
                source = m.codes + <size_t>first * LB_ROWS * (m.n_cols // c.stored.block_cols) * c.stored.block_bytes
                m.n_rows = n * LB_ROWS
                m.codes = c.scratch + unit * c.scratch_bytes
                m.scales = m.codes + n * group_code_bytes(&m)
                if table.unpack(c.stored, source, &m, 0, n):
                    product.w, product.y = &m, product.y + first * LB_ROWS
                    table.matmul[m.format](&product, 0, n)
                else:
                    c.bad[i] = True
            piece = lb_atomic_add(&c.next, 1)


cdef class Pager:
    """The blocks of all paged matrices of a model, in the order in which a pass uses them, and their cache.

    Parameters
    ----------
    block_bytes : int
        Most bytes of a block, unless a single row group is longer.
    part_bytes : int
        Likewise, of an expert's block: what most experts take. Each block of experts has a slot as long as the longest.
    threads : int
        Most threads that a pass has.
    """

    def __cinit__(self, int64_t block_bytes, int64_t part_bytes, int32_t threads):
        self.block_bytes, self.part_bytes, self.threads = block_bytes, part_bytes, threads
        self.table, self.order = [], []

    def __dealloc__(self):
        free_aligned(self.scratch)

    def start(self, sources, int64_t budget):
        """Make the cache, once all matrices are known.

        Parameters
        ----------
        sources : sequence of str, open file or object
            What the matrices' `source` counts; files, or objects that a `BlockCache` takes.
        budget : int
            Bytes for blocks and for what the cache keeps about them.

        Raises
        ------
        MemoryBudgetError
            If the budget is too small.
        """
        if self.cache is not None:
            raise LowbitError("a pager is started once")
        self.sources = list(sources)    # open files stay open with the cache
        files = [s.fileno() if hasattr(s, "fileno") else s for s in self.sources]
        cdef Cache cache = BlockCache(files, self.table, budget)
        cache.set_order(self.order, budget // (16 if self.has_parts else 64))
        if self.has_parts:
            cache.count_uses()
        self.scratch = <uint8_t *>alloc_aligned(self.scratch_bytes)
        if self.scratch == NULL:
            raise MemoryError(f"no memory for a block of {self.scratch_bytes} bytes")
        self.cache, self.blocks = cache, cache.c
        self.held = min(<int64_t>SPANS, cache.stats()["lru_slots"] // 2)

    @property
    def scratch_bytes(self):
        """Bytes beside the cache, for the longest block that is packed, or for each thread's piece of one."""
        return max(<size_t>CODES_AT, self.longest, self.threads * self.piece_bytes)

    def record(self, int64_t n):
        """Keep the numbers of the next n blocks of experts that are used, for those who study a cache."""
        self.uses, self.n_uses = np.empty(n, np.int32), 0

    def recorded(self):
        """Return what was kept: ndarray of int32, in the order of use."""
        return np.array(self.uses[:self.n_uses]) if self.uses is not None else np.empty(0, np.int32)

    cdef void note(self, int32_t block, int32_t n) noexcept nogil:
        cdef int32_t i
        if self.uses is not None:
            for i in range(<int32_t>min(<int64_t>n, self.uses.shape[0] - self.n_uses)):
                self.uses[self.n_uses] = block + i
                self.n_uses += 1

    def check(self, int status):
        """Raise what a status other than 0 of a pass stands for."""
        if status == BAD_CODE or status == BAD_SCALE:
            source, offset, length = self.table[self.bad_block]
            what = "a ternary weight has the code 3, which does not exist" if status == BAD_CODE else (
                "a scale is not finite")
            raise FormatError(f"{self.sources[source]}: {what} ({length} bytes at {offset})")
        if status == CANNOT_READ:
            self.cache.raise_error(self.bad_block, self.error)

    cdef int32_t add(self, int32_t source, int64_t offset, size_t group_bytes, int32_t groups, int32_t block_groups,
                     bint in_order) except -1:
        cdef int32_t first = len(self.table), g
        for g in range(0, groups, block_groups):
            self.table.append((source, offset + g * group_bytes, min(block_groups, groups - g) * group_bytes))
        if in_order:
            self.order.extend(range(first, len(self.table)))
        return first


cdef class PagedMatrix:
    """A matrix of weights whose row groups are read when they are used.

    Parameters
    ----------
    pager : Pager
    pattern : PackedMatrix
        Of one row group, as those of this matrix are; with the scale in it, if all rows share one.
    n_rows : int
    stored : str, Stored or None
        Type of the tensor as it lies in the file, or how it is unpacked; None if its row groups were packed before
        (`PackedMatrix.groups`).
    source, offset : int
        Which file of the cache, and where the tensor begins.
    tail : PackedMatrix, optional
        The rows beyond the last whole row group.
    product, lookup : bool
        Whether every pass multiplies with it, and whether single rows are looked up: one of them, or both.
    parts : int
        Of how many matrices the rows are, experts of which a pass uses some; 1 is one that every pass uses.
    """

    def __cinit__(self, Pager pager not None, PackedMatrix pattern not None, int64_t n_rows, stored, int32_t source,
                  int64_t offset, PackedMatrix tail=None, bint product=True, bint lookup=False, int32_t parts=1):
        cdef const uint8_t[::1] scales
        if pattern.m.n_rows != LB_ROWS or (n_rows % LB_ROWS != 0) != (tail is not None):
            raise FormatError("a paged matrix needs a pattern of one row group, and a tail where rows are left over")
        self.m = pattern.m
        self.m.n_rows = <int32_t>n_rows
        self.m.codes, self.m.scales = NULL, NULL
        self.pager, self.tail = pager, tail
        self.code_bytes, self.group_bytes = group_code_bytes(&pattern.m), pattern.nbytes
        self.unpacked = stored if isinstance(stored, Stored) else None
        self.unpacks = self.unpacked is not None
        self.stored = stored is not None and not self.unpacks
        self.own_scales = pattern.m.scales_f16 or (not self.stored and pattern.nbytes > self.code_bytes)
        self.packs = (self.stored or self.own_scales) and not self.unpacks
        if self.stored:
            self.fill.layout = block_layout(stored, &pattern.m)
            self.fill.blocks_per_row = pattern.m.n_cols // self.fill.layout.cols
            self.fill.one_scale = not pattern.m.scales_f16
            self.group_bytes = <size_t>LB_ROWS * self.fill.blocks_per_row * self.fill.layout.block_bytes
        elif self.unpacks:
            self.group_bytes = LB_ROWS * self.unpacked.row_bytes(pattern.format, &pattern.m)
            self.piece_groups = <int32_t>max(1, PIECE_BYTES // pattern.nbytes)
            pager.piece_bytes = max(pager.piece_bytes, lb_round_up(self.piece_groups * pattern.nbytes, CODES_AT))
        self.n_groups = <int32_t>(n_rows // LB_ROWS)
        self.block_groups = <int32_t>max(
            1, (pager.part_bytes if parts > 1 else pager.block_bytes) // <int64_t>self.group_bytes)
        self.first_block = self.first_row_block = -1
        self.part_groups = self.n_groups // parts
        if parts > 1:       # blocks of an expert are about as long, since each takes a slot as long as the longest
            self.part_blocks = (self.part_groups + self.block_groups - 1) // self.block_groups
            self.block_groups = (self.part_groups + self.part_blocks - 1) // self.part_blocks
            self.first_block, pager.has_parts = len(pager.table), True
            for part in range(parts):
                pager.add(source, offset + part * self.part_groups * self.group_bytes, self.group_bytes,
                          self.part_groups, self.block_groups, False)
        elif product:
            self.first_block = pager.add(source, offset, self.group_bytes, self.n_groups, self.block_groups, True)
        if lookup:
            self.first_row_block = pager.add(source, offset, self.group_bytes, self.n_groups, 1, False)
        if self.packs:
            pager.longest = max(pager.longest, self.block_groups * self.group_bytes)
        if self.stored and not self.own_scales:
            one = np.asarray(<const uint8_t[:pattern.nbytes - self.code_bytes]>pattern.m.scales)
            scales = self.scales = np.tile(one, self.block_groups)
            self.m.scales = &scales[0]
            self.nbytes = scales.shape[0]
        self.nbytes += tail.nbytes if tail is not None else 0

    @property
    def shape(self):
        """(n_rows, n_cols)"""
        return self.m.n_rows, self.m.n_cols

    @property
    def stored_bytes(self):
        """Bytes that a pass over the matrix needs from the file."""
        return self.n_groups * self.group_bytes

    cdef int span(self, int32_t block, int32_t groups, int32_t threads, lb_matrix *out) noexcept nogil:
        """Get hold of a block as a matrix of its row groups; 0, to be followed by `release`, or a status."""
        cdef Fill fill = self.fill
        cdef uint8_t *memory = <uint8_t *>acquire(self.pager.blocks, block, &self.pager.error)
        cdef uint8_t *packed
        if memory == NULL:
            self.pager.bad_block = block
            return CANNOT_READ
        out[0] = self.m
        out.n_rows = groups * LB_ROWS
        out.codes = memory
        if not self.packs:
            return 0
        packed = memory - <size_t>memory % CODES_AT     # a block may use its pages from their beginning on
        if mark(self.pager.blocks, block)[0] != PACKED:
            self._place(out, self.pager.scratch)
            fill.m, fill.source, fill.rows = out, memory, out.n_rows
            parallel(fill_blocks if self.stored else split_groups, &fill, groups, max(1, groups // (4 * threads)),
                     threads)
            if fill.bad_code or fill.bad_scale:
                self.pager.bad_block = block
                release(self.pager.blocks, block)
                return BAD_CODE if fill.bad_code else BAD_SCALE
            if passes_through(self.pager.blocks, block):
                return 0
            memcpy(packed, self.pager.scratch,
                   groups * (self.group_bytes if self.own_scales else self.code_bytes))
            mark(self.pager.blocks, block)[0] = PACKED
        self._place(out, packed)
        return 0

    cdef void _place(self, lb_matrix *m, uint8_t *memory) noexcept nogil:
        m.codes = memory
        if self.own_scales:
            m.scales = memory + m.n_rows // LB_ROWS * self.code_bytes

    cdef int multiply_paged(self, const lb_activations *x, float *y, ptrdiff_t y_stride,
                            int32_t threads) noexcept nogil:
        """y = x W^T; 0, or a status for `Pager.check`."""
        cdef int status = self._multiply(self.first_block, self.n_groups, x, y, y_stride, threads)
        if status == 0 and self.tail is not None:
            multiply(&self.tail.m, x, y + self.n_groups * LB_ROWS, NULL, y_stride, threads, NULL, 0)
        return status

    cdef int multiply_parts(self, const int32_t *parts, const lb_matmul_args *args, int32_t n,
                            int32_t threads) noexcept nogil:
        """The same with n of the matrices that it consists of, whose weights `args` lacks.

        Those that are there come first, many in one job, and the others as they come from the disk.
        """
        cdef lb_matrix spans[SPANS]
        cdef lb_matmul_args products[SPANS]
        cdef int32_t blocks[SPANS]
        cdef bint there[PARTS]
        cdef int32_t start = 0, i, b, block, held = 0
        cdef int status = 0
        while start < n and status == 0:
            for i in range(start, min(n, start + PARTS)):
                block = self.first_block + parts[i] * self.part_blocks
                self.pager.note(block, self.part_blocks)
                there[i - start] = self.part_blocks <= self.pager.held and self.prefetch_part(parts[i])
                if not there[i - start]:
                    continue
                if held + self.part_blocks > self.pager.held:
                    status = self._job(products, blocks, held, threads, status)
                    held = 0
                for b in range(self.part_blocks):
                    if status == 0:
                        status = self.span(block + b, min(self.block_groups, self.part_groups - b * self.block_groups),
                                           threads, &spans[held])
                    if status == 0:
                        products[held], blocks[held] = args[i], block + b
                        products[held].w = &spans[held]
                        products[held].y += b * self.block_groups * LB_ROWS
                        held += 1
            status = self._job(products, blocks, held, threads, status)
            held = 0
            for i in range(start, min(n, start + PARTS)):
                if status == 0 and not there[i - start]:
                    status = self._multiply(self.first_block + parts[i] * self.part_blocks, self.part_groups,
                                            args[i].x, args[i].y, args[i].y_stride, threads)
            start += PARTS
        return status

    cdef bint prefetch_part(self, int32_t part) noexcept nogil:
        """Ask for the blocks of a part, soon to be used; whether all are there, as those of an only part never are."""
        cdef int32_t block = self.first_block + part * self.part_blocks
        return self.part_blocks > 0 and prefetch(self.pager.blocks, block, self.part_blocks)

    cdef int _multiply(self, int32_t block, int32_t left, const lb_activations *x, float *y, ptrdiff_t y_stride,
                       int32_t threads) noexcept nogil:
        cdef lb_matrix spans[SPANS]
        cdef lb_matmul_args products[SPANS]
        cdef int32_t blocks[SPANS]
        cdef int32_t n
        cdef bint alone
        cdef int status = 0
        while left > 0 and status == 0:
            n, alone = 0, False
            while left > 0 and n < SPANS and not alone:
                # what passes through takes a slot, and its span may be the scratch; of experts there may be two slots
                alone = self.part_blocks > 0 or passes_through(self.pager.blocks, block + n)
                if alone and n > 0:
                    break
                status = self.span(block + n, min(self.block_groups, left), threads, &spans[n])
                if status:
                    break
                products[n].w, products[n].x, products[n].y, products[n].sums = &spans[n], x, y, NULL
                products[n].y_stride, blocks[n] = y_stride, block + n
                y += spans[n].n_rows
                left -= self.block_groups
                n += 1
            status = self._job(products, blocks, n, threads, status)
            block += n
        return status

    cdef int _job(self, const lb_matmul_args *products, const int32_t *blocks, int32_t n, int32_t threads,
                  int status) noexcept nogil:
        """Multiply with n blocks that are in memory, unless there is a status already, and release them; a status."""
        cdef int32_t i
        if status == 0 and n and self.unpacks:
            status = self._multiply_pieces(products, blocks, n, threads)
        elif status == 0 and n:
            multiply_all(products, n, threads)
        for i in range(n):
            release(self.pager.blocks, blocks[i])
        return status

    cdef int _multiply_pieces(self, const lb_matmul_args *products, const int32_t *blocks, int32_t n,
                              int32_t threads) noexcept nogil:
        """Multiply with n blocks that are in memory as they lie in the file; 0, or a status."""
        cdef Pieces c
        cdef int32_t i
        cdef bint small = <int64_t>n * products[0].w.n_rows * self.m.n_cols * products[0].x.n_tokens <= ALONE
        threads = 1 if small else min(threads, self.pager.threads)
        c.stored, c.each, c.groups = &self.unpacked.c, products, self.piece_groups
        c.of_each = (self.block_groups + c.groups - 1) // c.groups
        c.total = n * c.of_each
        c.scratch, c.scratch_bytes = self.pager.scratch, self.pager.piece_bytes
        lb_atomic_store(&c.next, 0)
        memset(c.bad, 0, sizeof(c.bad))
        parallel(multiply_pieces, &c, threads, 1, threads)
        for i in range(n):
            if c.bad[i]:
                self.pager.bad_block = blocks[i]
                return BAD_SCALE
        return 0

    cdef int row(self, int32_t row, float *out) noexcept nogil:
        """Dequantise one row; 0, or a status for `Pager.check`."""
        cdef lb_matrix group
        cdef const uint8_t *source
        cdef int32_t g = row // LB_ROWS
        cdef int status
        if g == self.n_groups:
            matrix_row(&self.tail.m, row % LB_ROWS, out)
            return 0
        status = self.span(self.first_row_block + g, 1, 1, &group)
        if status:
            return status
        if self.unpacks:
            source = group.codes
            group.codes = self.pager.scratch
            group.scales = group.codes + self.code_bytes
            if not table.unpack(&self.unpacked.c, source, &group, 0, 1):
                self.pager.bad_block = self.first_row_block + g
                status = BAD_SCALE
        if status == 0:
            matrix_row(&group, row % LB_ROWS, out)
        release(self.pager.blocks, self.first_row_block + g)
        return status

    def __repr__(self):
        return f"PagedMatrix({self.m.n_rows} x {self.m.n_cols}, {self.stored_bytes} bytes in the file)"
