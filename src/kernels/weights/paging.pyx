"""Matrices that are larger than the memory for them: their row groups come from a block cache as they are needed.

1. A matrix is cut into blocks of whole row groups. A block is read as it lies in the file; a row group of a stored
   TQ2_0, I2_S, Q4_0 or Q8_0 tensor takes the same bytes packed, so it is packed in place, once, by the thread that
   multiplies with it first. A row group is changed only if its codes and scales are good; if one is not, its block is
   marked so, and every pass that comes to it fails alike.
2. What no kernel can read from the file is packed at load into a spill file, and comes back ready.
3. Rows beyond the last whole row group stay resident.
4. One thread walks through the blocks and the pool shares the row groups of each; while it works, the cache reads
   ahead. A read that fails ends the pass with a status, never with a wrong sum.
"""
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy

from lowbit._kernels.blockcache cimport BlockCache, acquire, mark, release
from lowbit._kernels.dispatch cimport (
    LB_ROWS, alloc_aligned, free_aligned, lb_activations, lb_matmul_args, lb_matrix, parallel, table,
)
from lowbit._kernels.matrix cimport (
    FillBlocks, PackedMatrix, block_layout, fill_blocks, group_code_bytes, matrix_row,
)
from lowbit._kernels.products cimport multiply

from lowbit.errors import FormatError, LowbitError


cdef extern from "os.h":
    void lb_trim_heap() noexcept nogil

cdef enum:
    SMALL_WORK = 1 << 18    # products below which a block stays on one thread
    PACKED = 255            # mark of a block whose row groups were packed in place; BAD_CODE, BAD_SCALE: could not be


def trim_heap():
    """Give memory that was freed back to the system, before what is in use is counted."""
    lb_trim_heap()


cdef struct PageWork:
    const lb_matrix *pattern    # a matrix of one row group
    const lb_activations *x
    float *y                    # outputs of the block's first row
    ptrdiff_t y_stride
    uint8_t *block
    uint8_t *packed             # where row groups are packed
    size_t group_bytes, code_bytes
    bint own_scales             # a row group's scales follow its codes; else all share the pattern's
    const FillBlocks *fill      # NULL if the block is packed already
    bint bad_code, bad_scale    # in any row group


cdef lb_matrix group_at(const PageWork *c, const uint8_t *memory) noexcept nogil:
    cdef lb_matrix group = c.pattern[0]
    group.codes = memory
    if c.own_scales:
        group.scales = memory + c.code_bytes
    return group


cdef void page_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef PageWork *c = <PageWork *>context
    cdef lb_matrix group
    cdef lb_matmul_args args
    cdef FillBlocks fill
    cdef int32_t i
    cdef uint8_t *memory
    for i in range(begin, end):
        memory = c.block + i * c.group_bytes
        if c.fill != NULL:
            group = group_at(c, c.packed + i * c.group_bytes)
            fill = c.fill[0]
            fill.m, fill.source = &group, memory
            fill_blocks(&fill, 0, 1)
            if fill.bad == BAD_CODE:
                c.bad_code = True
            elif fill.bad:
                c.bad_scale = True
            if fill.bad:
                continue
            memcpy(memory, group.codes, c.group_bytes)
        else:
            group = group_at(c, memory)
        if c.x != NULL:
            args.w, args.x, args.y, args.sums, args.y_stride = &group, c.x, c.y + i * LB_ROWS, NULL, c.y_stride
            table.matmul[group.format](&args, 0, 1)


cdef class Pager:
    """The blocks of all paged matrices of a model, in the order in which a pass uses them, and their cache.

    Parameters
    ----------
    block_bytes : int
        Most bytes of a block, unless a single row group is longer.
    """

    def __cinit__(self, int64_t block_bytes):
        self.block_bytes = block_bytes
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
        cache = BlockCache([s.fileno() if hasattr(s, "fileno") else s for s in self.sources], self.table, budget)
        cache.set_order(self.order, budget // 64)
        self.scratch = <uint8_t *>alloc_aligned(self.longest)
        if self.scratch == NULL:
            raise MemoryError(f"no memory for a block of {self.longest} bytes")
        self.cache, self.blocks = cache, cache.c

    @property
    def scratch_bytes(self):
        """Bytes beside the cache, for the longest block."""
        return self.longest

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
        self.longest = max(self.longest, block_groups * group_bytes)
        return first


cdef class PagedMatrix:
    """A matrix of weights whose row groups are read when they are used.

    Parameters
    ----------
    pager : Pager
    pattern : PackedMatrix
        Of one row group, as those of this matrix are; with the scale in it, if all rows share one.
    n_rows : int
    stored : str or None
        Type of the tensor as it lies in the file; None if its row groups were packed before (`PackedMatrix.groups`).
    source, offset : int
        Which file of the cache, and where the tensor begins.
    tail : PackedMatrix, optional
        The rows beyond the last whole row group.
    product, lookup : bool
        Whether every pass multiplies with it, and whether single rows are looked up: one of them, or both.
    """

    def __cinit__(self, Pager pager not None, PackedMatrix pattern not None, int64_t n_rows, stored, int32_t source,
                  int64_t offset, PackedMatrix tail=None, bint product=True, bint lookup=False):
        if pattern.m.n_rows != LB_ROWS or (n_rows % LB_ROWS != 0) != (tail is not None):
            raise FormatError("a paged matrix needs a pattern of one row group, and a tail where rows are left over")
        self.m = pattern.m
        self.m.n_rows = <int32_t>n_rows
        self.m.codes, self.m.scales = NULL, NULL
        self.pager, self.pattern, self.tail = pager, pattern, tail
        self.code_bytes, self.group_bytes = group_code_bytes(&pattern.m), pattern.nbytes
        self.stored = stored is not None
        self.own_scales = pattern.m.scales_f16 or (not self.stored and pattern.nbytes > self.code_bytes)
        if self.stored:
            self.fill.layout = block_layout(stored, &pattern.m)
            self.fill.blocks_per_row = pattern.m.n_cols // self.fill.layout.cols
            self.fill.first_group, self.fill.rows = 0, LB_ROWS
            self.fill.one_scale, self.fill.bad = not pattern.m.scales_f16, 0
            self.group_bytes = <size_t>LB_ROWS * self.fill.blocks_per_row * self.fill.layout.block_bytes
        self.n_groups = <int32_t>(n_rows // LB_ROWS)
        self.block_groups = <int32_t>max(1, pager.block_bytes // <int64_t>self.group_bytes)
        self.first_block = self.first_row_block = -1
        if product:
            self.first_block = pager.add(source, offset, self.group_bytes, self.n_groups, self.block_groups, True)
        if lookup:
            self.first_row_block = pager.add(source, offset, self.group_bytes, self.n_groups, 1, False)
        self.nbytes = pattern.nbytes + (tail.nbytes if tail is not None else 0)

    @property
    def shape(self):
        """(n_rows, n_cols)"""
        return self.m.n_rows, self.m.n_cols

    @property
    def stored_bytes(self):
        """Bytes that a pass over the matrix needs from the file."""
        return self.n_groups * self.group_bytes

    cdef int _open(self, PageWork *work, int32_t block) noexcept nogil:
        """Get hold of a block; 0, to be followed by `_close`, or a status."""
        cdef uint8_t seen
        work.block = <uint8_t *>acquire(self.pager.blocks, block, &self.pager.error)
        if work.block == NULL:
            self.pager.bad_block = block
            return CANNOT_READ
        seen = mark(self.pager.blocks, block)[0] if self.stored else PACKED
        if seen == BAD_CODE or seen == BAD_SCALE:
            self.pager.bad_block = block
            release(self.pager.blocks, block)
            return seen
        work.pattern, work.x = &self.pattern.m, NULL
        work.packed = self.pager.scratch
        work.group_bytes, work.code_bytes, work.own_scales = self.group_bytes, self.code_bytes, self.own_scales
        work.fill = NULL if seen == PACKED else &self.fill
        work.bad_code = work.bad_scale = False
        return 0

    cdef int _close(self, const PageWork *work, int32_t block) noexcept nogil:
        cdef int status = BAD_CODE if work.bad_code else BAD_SCALE if work.bad_scale else 0
        if work.fill != NULL:
            mark(self.pager.blocks, block)[0] = status or PACKED
        if status:
            self.pager.bad_block = block
        release(self.pager.blocks, block)
        return status

    cdef int multiply_paged(self, const lb_activations *x, float *y, ptrdiff_t y_stride,
                            int32_t threads) noexcept nogil:
        """y = x W^T; 0, or a status for `Pager.check`."""
        cdef PageWork work
        cdef int32_t block = self.first_block, g = 0, groups, chunk
        cdef int status
        while g < self.n_groups:
            groups = min(self.block_groups, self.n_groups - g)
            status = self._open(&work, block)
            if status:
                return status
            work.x, work.y, work.y_stride = x, y + <size_t>g * LB_ROWS, y_stride
            chunk = groups
            if <int64_t>groups * LB_ROWS * self.m.n_cols * x.n_tokens >= SMALL_WORK:
                chunk = max(1, groups // (threads * 4))
            parallel(page_work, &work, groups, chunk, threads)
            status = self._close(&work, block)
            if status:
                return status
            block += 1
            g += groups
        if self.tail is not None:
            multiply(&self.tail.m, x, y + <size_t>self.n_groups * LB_ROWS, NULL, y_stride, threads)
        return 0

    cdef int row(self, int32_t row, float *out) noexcept nogil:
        """Dequantise one row; 0, or a status for `Pager.check`."""
        cdef PageWork work
        cdef lb_matrix group
        cdef int32_t g = row // LB_ROWS
        cdef int status
        if g == self.n_groups:
            matrix_row(&self.tail.m, row % LB_ROWS, out)
            return 0
        status = self._open(&work, self.first_row_block + g)
        if status:
            return status
        page_work(&work, 0, 1)
        if not work.bad_code and not work.bad_scale:
            group = group_at(&work, work.block)
            matrix_row(&group, row % LB_ROWS, out)
        return self._close(&work, self.first_row_block + g)

    def __repr__(self):
        return f"PagedMatrix({self.m.n_rows} x {self.m.n_cols}, {self.stored_bytes} bytes in the file)"
