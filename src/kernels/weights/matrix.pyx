"""Packed matrices: weights in the order in which the kernels read them (`kernels.h` draws it).

1. `PackedMatrix` owns the memory. It is made empty, and filled by rows: several tensors of a file can become one
   matrix (query, key and value; gate and up), so that one pass over the activations serves them all.
2. Filling, whose loops are in `filling.pyx`, checks what the kernels rely on: codes in range, finite scales and minima.
"""
from libc.math cimport isfinite
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t
from libc.string cimport memcpy, memset

from lowbit._kernels.dispatch cimport (
    LB_BF16, LB_F16, LB_F32, LB_ROWS, LB_T5, LB_U2, LB_U4, LB_U4M, LB_U8, LB_U8M, LB_UP, LB_UPM, LB_UT,
    alloc_weights, begin_floats, checked, end_floats, free_weights, lb_float_mode, lb_has_minima, lb_has_planes,
    lb_matrix, lb_plus, lb_row_groups, lb_scales_at, lb_super_bytes, lb_super_shift, lb_times, parallel, work_fn,
)
from lowbit._kernels.filling cimport (
    BlockLayout, Fill, empty_byte, fields_of, fill_blocks, fill_codes, fill_dense, fill_floats, fill_planes,
    fill_rounded, fill_trits, matrix_row, trit_words, value_size,
)
from lowbit._kernels.stored cimport Stored

import numpy as np

from lowbit._kernels.stored import STORED
from lowbit.errors import FormatError


cdef extern from "planes.h":
    enum:
        LB_PLANE_COLS
        LB_IQ4_TABLE
        LB_FP4_TABLE

FORMATS = {  # their numbers, the bits of codes in planes, and the table of these
    "u2": (LB_U2, 0, 0), "u4": (LB_U4, 0, 0), "u8": (LB_U8, 0, 0), "u4m": (LB_U4M, 0, 0), "u8m": (LB_U8M, 0, 0),
    "t5": (LB_T5, 0, 0), "u3": (LB_UP, 3, 0), "u5": (LB_UP, 5, 0), "u6": (LB_UP, 6, 0), "u2m": (LB_UPM, 2, 0),
    "u5m": (LB_UPM, 5, 0), "iq4": (LB_UT, 4, LB_IQ4_TABLE), "fp4": (LB_UT, 4, LB_FP4_TABLE),
    "f32": (LB_F32, 0, 0), "f16": (LB_F16, 0, 0), "bf16": (LB_BF16, 0, 0),
}
MAX_COLS = 1 << 18  # int32 sums: see the bounds in isa/*/matmul.c
MAX_GROUP_COLS_OF_BYTES = 1 << 16


cdef bint is_float(int32_t format) noexcept nogil:
    return format >= LB_F32


cdef size_t group_code_bytes(const lb_matrix *m) noexcept nogil:
    """Bytes of the codes, or float values, of one row group."""
    return <size_t>m.n_cols * LB_ROWS * value_size(m.format) if is_float(m.format) else <size_t>m.words * 64


cdef size_t group_scale_bytes(const lb_matrix *m) noexcept nogil:
    """Bytes of the scales of one row group, with their minima."""
    if is_float(m.format):
        return 0
    if m.scales_super:
        return <size_t>(m.n_groups >> lb_super_shift(m)) * lb_super_bytes(m)
    return <size_t>m.n_groups * LB_ROWS * (2 if m.scales_f16 else 4) * (2 if lb_has_minima(m.format) else 1)


cdef int32_t padded_cols(const lb_matrix *m) noexcept nogil:
    """Columns that the activations need: a multiple of the last block's words; of T5 those of its last group."""
    cdef int32_t words
    if m.format == LB_T5:
        words = trit_words(m.n_cols - (m.n_groups - 1) * m.group_cols)
        return (m.n_groups - 1) * m.group_cols + 16 * words + (words + 3) // 4 * 16
    if lb_has_planes(m.format):
        return m.words // m.bits * LB_PLANE_COLS
    return m.n_cols if is_float(m.format) else m.words * 4 * fields_of(m.format)


cdef int32_t row_stride(const lb_matrix *m) noexcept nogil:
    """Bytes from one row of int8 activations to the next: an odd number of cache lines.

    A tile reads the same columns of 16 rows at once; with a power of two between them they would all fall into the
    same set of the first cache.
    """
    return ((padded_cols(m) + 63) // 64 | 1) * 64


cdef const float[:, ::1] aligned(const float[:, ::1] x):
    """The same, where C may read floats: an array over a buffer can begin at any byte."""
    return np.array(x) if x.size and <size_t>&x[0, 0] % sizeof(float) else x


cdef dict LAYOUTS = {
    # type: (format, columns per stored block, bytes, codes at, scale at, minimum at, fifths at, words, reverse, flip)
    "TQ2_0": ("u2", 256, 66, 0, 64, 0, 0, 16, False, 0),
    "I2_S": ("u2", 128, 32, 0, -1, 0, 0, 8, True, 0),
    "Q4_0": ("u4", 32, 18, 2, 0, 0, 0, 4, False, 0),
    "IQ4_NL": ("iq4", 32, 18, 2, 0, 0, 0, 4, False, 0),
    "Q4_1": ("u4m", 32, 20, 4, 0, 2, 0, 4, False, 0),
    "Q5_0": ("u5", 32, 22, 6, 0, 0, 2, 5, False, 0),
    "Q5_1": ("u5m", 32, 24, 8, 0, 2, 4, 5, False, 0),
    "Q8_0": ("u8", 32, 34, 2, 0, 0, 0, 8, False, 0x80808080),
}


cdef BlockLayout block_layout(str type, const lb_matrix *m) except *:
    """How stored blocks of a type become words of a matrix; FormatError if they do not fit it."""
    if type not in LAYOUTS:
        raise FormatError(f"{type} is not packed by blocks")
    format, cols, block_bytes, codes_at, scale_at, minimum_at, fifths_at, words, reverse, flip = LAYOUTS[type]
    if FORMATS[format] != (m.format, m.bits, m.table) or m.n_cols % cols:
        raise FormatError(f"{type} needs rows of a multiple of {cols} weights, not {m.n_cols}")
    if minimum_at and not m.scales_f16:
        raise FormatError(f"{type} needs float16 scales")
    return BlockLayout(cols, block_bytes, codes_at, scale_at, minimum_at, fifths_at, words, reverse, flip)


cdef int check_bytes(const uint8_t[::1] raw, int64_t rows, size_t row_bytes, str what) except -1:
    if <size_t>raw.shape[0] < <size_t>rows * row_bytes:
        raise FormatError(f"{raw.shape[0]} bytes are too few for {rows} rows of {what}")
    return 0


FLOAT_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
BLOCK_TYPES = {name: layout[:2] for name, layout in LAYOUTS.items()}
UNPACKED_TYPES = {  # the format that `fill_stored` wants, and the other options of such a matrix
    name: (format, {"group_cols": group, "scales_super": super_, **({"block_cols": group} if format == "u8" else {})})
    for name, (_, _, _, format, group, super_, _) in STORED.items()
}


cdef class PackedMatrix:
    """A matrix of weights in the kernels' order.

    Parameters
    ----------
    format : str
        ``u2`` (ternary), ``t5`` (ternary, five to a byte), codes of some bits (``u3``, ``u4``, ``u5``, ``u6``, ``u8``),
        the same with minima (``u2m``, ``u4m``, ``u5m``, ``u8m``), of IQ4_NL and IQ4_XS (``iq4``) or MXFP4
        (``fp4``), ``f32``, ``f16`` or ``bf16``.
    n_rows, n_cols : int
        Outputs and inputs.
    group_cols : int, optional
        Columns per scale; None is one scale per row. A multiple of the block: 128 (or 64) for ``u2``, 128 for ``t5``,
        32 otherwise; or 16 where 3, 5, 6 or, with minima, 2 bits make a code.
    scales_f16 : bool
        Keep the scales as float16 rather than float32.
    block_cols : int, optional
        Columns of a block, for ``u2`` with groups of 64.
    scales_super : bool
        For codes of K types, with 16 or 32 columns per scale and rows of a multiple of 256: keep scales and minima as
        small multiples of floats. Only `fill_stored` can set these.

    Raises
    ------
    FormatError
        If a size is out of range.
    MemoryError
        If the memory cannot be had.
    """

    def __cinit__(self, str format, int64_t n_rows, int64_t n_cols, group_cols=None, bint scales_f16=False,
                  block_cols=None, bint scales_super=False):
        cdef size_t code_bytes, scale_bytes = 0
        cdef bint planes
        if format not in FORMATS:
            raise FormatError(f"unknown matrix format {format!r}")
        if not (1 <= n_rows < 1 << 30 and 1 <= n_cols <= MAX_COLS):
            raise FormatError(f"a matrix of {n_rows} x {n_cols} is out of range")
        self.m.format, self.m.bits, self.m.table = FORMATS[format]
        planes = lb_has_planes(self.m.format)
        self.m.n_rows, self.m.n_cols = n_rows, n_cols
        if is_float(self.m.format):
            self.m.block_cols = self.m.group_cols = n_cols
            self.m.n_groups = 1
        else:
            usual = 128 if format in ("u2", "t5") else 32
            block = block_cols or usual
            group = group_cols or n_cols
            fields = fields_of(self.m.format)
            if block % (4 * fields) or not (block == usual if format == "t5" or planes else 0 < block <= usual):
                raise FormatError(f"blocks of {block} columns do not fit format {format}")
            if group < 1 or (group < n_cols and group % block and not (planes and group == 16)):
                raise FormatError(f"scale groups of {group_cols} columns are no multiple of {block}")
            if group > (MAX_GROUP_COLS_OF_BYTES if format in ("u8", "u8m", "iq4", "fp4") else MAX_COLS):
                raise FormatError(f"scale groups of {group} columns are too long for format {format}")
            self.m.block_cols = block
            self.m.group_cols = min(group, n_cols)
            self.m.n_groups = (n_cols + group - 1) // group
            self.m.words = n_cols // block * (block // (4 * fields)) + -(-(n_cols % block) // (4 * fields))
            if self.m.format == LB_T5:
                self.m.words = ((self.m.n_groups - 1) * trit_words(group)
                                + trit_words(n_cols - (self.m.n_groups - 1) * group))
            if planes:
                self.m.words = (n_cols + LB_PLANE_COLS - 1) // LB_PLANE_COLS * self.m.bits
            if scales_super and (not (planes or format == "u4m") or self.m.group_cols not in (16, 32) or n_cols % 256
                                 or scales_f16):
                raise FormatError("scales as K types have them do not fit the matrix")
            self.m.scales_f16, self.m.scales_super = scales_f16, scales_super
            scale_bytes = lb_times(lb_row_groups(n_rows), group_scale_bytes(&self.m))
        code_bytes = lb_times(lb_row_groups(n_rows), group_code_bytes(&self.m))
        checked(lb_plus(code_bytes, scale_bytes), f"a matrix of {n_rows} x {n_cols}")
        self.m.codes = <const uint8_t *>alloc_weights(code_bytes)
        self.m.scales = alloc_weights(scale_bytes)
        if self.m.codes == NULL or self.m.scales == NULL:
            raise MemoryError(f"no memory for a matrix of {n_rows} x {n_cols}")
        self.nbytes = code_bytes + scale_bytes
        self.source_type = format
        self._clear_padding()

    def __dealloc__(self):
        free_weights(<void *>self.m.codes)
        free_weights(<void *>self.m.scales)

    def _clear_padding(self):
        """Rows and columns beyond the matrix have weight 0 and scale 0; rows in it are all written by fill."""
        cdef lb_matrix *m = &self.m
        cdef int32_t last = lb_row_groups(m.n_rows) - 1
        cdef size_t group_bytes = group_code_bytes(m), scale_bytes = group_scale_bytes(m)
        if scale_bytes:
            memset(<uint8_t *>m.scales + last * scale_bytes, 0, scale_bytes)
        memset(<uint8_t *>m.codes + last * group_bytes, empty_byte(m.format), group_bytes)

    @property
    def shape(self):
        """(n_rows, n_cols)"""
        return self.m.n_rows, self.m.n_cols

    @property
    def format(self):
        """Name of the number format."""
        return {v: k for k, v in FORMATS.items()}[self.m.format, self.m.bits, self.m.table]

    @property
    def group_cols(self):
        """Columns that share a scale."""
        return self.m.group_cols

    @property
    def n_groups(self):
        """Scales of a row."""
        return self.m.n_groups

    def _check_rows(self, int64_t first_row, int64_t rows):
        if self.m.tiles:
            raise FormatError("a channel-major matrix cannot be filled")
        if first_row % LB_ROWS or first_row < 0 or rows < 1 or first_row + rows > self.m.n_rows:
            raise FormatError(f"rows {first_row} to {first_row + rows} do not fit a matrix of {self.m.n_rows} rows")
        if rows % LB_ROWS and first_row + rows != self.m.n_rows:
            raise FormatError(f"{rows} rows do not end at a row group")

    cdef void _fill(self, work_fn *work, Fill *c, const uint8_t *source, int64_t rows, int64_t first_row,
                    int32_t threads) noexcept:
        c.m, c.source, c.first_group, c.rows = &self.m, source, <int32_t>(first_row // LB_ROWS), <int32_t>rows
        c.bad_code = c.bad_scale = False
        with nogil:
            parallel(work, c, lb_row_groups(c.rows), 4, threads)

    def fill_blocks(self, str type, const uint8_t[::1] raw, int64_t rows, scale=None, int64_t first_row=0,
                    int32_t threads=1):
        """Fill rows from the stored bytes of a tensor of one of `BLOCK_TYPES`.

        Parameters
        ----------
        type : str
        raw : uint8, at least the tensor's bytes
        rows : int
        scale : float, optional
            One scale for all of it, if the matrix has float32 scales: that of I2_S, or the common one of all blocks.
        first_row : int
            A multiple of 16.
        """
        cdef Fill c
        self._check_rows(first_row, rows)
        c.layout = block_layout(type, &self.m)
        c.one_scale = scale is not None
        if c.one_scale == bool(self.m.scales_f16):
            raise FormatError("a matrix of float32 scales needs the scale, one of float16 scales takes the stored ones")
        if not c.one_scale and (self.m.group_cols != min(c.layout.cols, self.m.n_cols) or c.layout.scale_at < 0):
            raise FormatError(f"{type} does not store a scale for each {self.m.group_cols} weights")
        c.blocks_per_row = self.m.n_cols // c.layout.cols
        check_bytes(raw, rows, <size_t>c.blocks_per_row * c.layout.block_bytes, type)
        self._fill(fill_blocks, &c, &raw[0], rows, first_row, threads)
        if c.bad_code:
            raise FormatError("a ternary weight has the code 3, which does not exist")
        if c.bad_scale:
            raise FormatError("a scale is not finite")
        if c.one_scale:
            self.fill_scales(np.full((rows, self.m.n_groups), scale, np.float32), first_row)
        self.source_type = type

    def fill_codes(self, const uint8_t[:, ::1] codes, int64_t first_row=0, int32_t threads=1):
        """Fill rows from codes of shape (rows, n_cols): 0..2 if ternary, else what the bits of the format can tell."""
        cdef Fill c
        cdef work_fn *work = (fill_trits if self.m.format == LB_T5 else
                              fill_planes if lb_has_planes(self.m.format) else fill_codes)
        self._check_rows(first_row, codes.shape[0])
        if is_float(self.m.format) or codes.shape[1] != self.m.n_cols:
            raise FormatError(f"codes of {codes.shape[1]} columns do not fit a matrix of {self.m.n_cols}")
        self._fill(work, &c, &codes[0, 0], codes.shape[0], first_row, threads)
        if c.bad_code:
            raise FormatError("a weight has a code that does not exist")

    def fill_dense(self, PackedMatrix rows not None, int64_t first_row=0, int32_t threads=1):
        """Fill rows of a ``t5`` matrix, and their scales, from those of a ``u2`` matrix with the same scale groups.

        Raises FormatError if the columns, or how they are scaled, differ, or are no multiple of 4.
        """
        cdef Fill c
        cdef const lb_matrix *m = &rows.m
        cdef size_t nbytes = group_scale_bytes(m)
        self._check_rows(first_row, m.n_rows)
        if (self.m.format, m.format) != (LB_T5, LB_U2) or m.tiles or m.n_cols % 4 or (
                (m.n_cols, m.group_cols, m.scales_f16) != (self.m.n_cols, self.m.group_cols, self.m.scales_f16)):
            raise FormatError("the rows are not ternary with the same columns and scales")
        c.u2 = m
        self._fill(fill_dense, &c, NULL, m.n_rows, first_row, threads)
        memcpy(<char *>self.m.scales + first_row // LB_ROWS * nbytes, m.scales, lb_row_groups(m.n_rows) * nbytes)

    def fill_scales(self, scales, int64_t first_row=0, minima=None):
        """Set the scales of rows, and the minima that come with them, both float32 and of shape (rows, n_groups).

        Raises FormatError if one is not finite. Float16 scales, without minima, must be float16 numbers.
        """
        if (minima is not None) != lb_has_minima(self.m.format):
            raise FormatError("minima belong to the formats whose names end with m, and only to these")
        self._fill_scales(scales, first_row, 0)
        if minima is not None:
            self._fill_scales(minima, first_row, LB_ROWS)

    def _fill_scales(self, const float[:, ::1] scales, int64_t first_row, int32_t behind):
        cdef const uint16_t[:, ::1] bits = None
        cdef int64_t row, g
        cdef size_t at
        scales = aligned(scales)
        self._check_rows(first_row, scales.shape[0])
        halves = np.asarray(scales).astype(np.float16) if self.m.scales_f16 else None
        if is_float(self.m.format) or self.m.scales_super or scales.shape[1] != self.m.n_groups or (
                halves is not None and (lb_has_minima(self.m.format) or (halves != np.asarray(scales)).any())):
            raise FormatError("the scales do not fit the matrix")
        if halves is not None:
            bits = halves.view(np.uint16)
        for row in range(scales.shape[0]):
            for g in range(scales.shape[1]):
                if not isfinite(scales[row, g]):
                    raise FormatError("a scale is not finite")
                at = lb_scales_at(&self.m, (first_row + row) // LB_ROWS, g) + behind + (first_row + row) % LB_ROWS
                if halves is None:
                    (<float *>self.m.scales)[at] = scales[row, g]
                else:
                    (<uint16_t *>self.m.scales)[at] = bits[row, g]

    def fill_floats(self, const uint8_t[::1] raw, int64_t rows, int64_t first_row=0, int32_t threads=1):
        """Fill rows of a float matrix from their stored bytes, in the matrix's own format."""
        cdef Fill c
        self._check_rows(first_row, rows)
        if not is_float(self.m.format):
            raise FormatError("float bytes do not fit a matrix of codes")
        check_bytes(raw, rows, self.m.n_cols * value_size(self.m.format), "floats")
        self._fill(fill_floats, &c, &raw[0], rows, first_row, threads)

    def fill_rounded(self, str type, const uint8_t[::1] raw, int64_t rows, int64_t first_row=0, int32_t threads=1):
        """Fill rows of a ``u8`` matrix with 32 columns per float16 scale from F32, F16 or BF16, as Q8_0 rounds.

        Raises FormatError if a weight is not finite, or too large for a float16 scale.
        """
        cdef Fill c
        self._check_rows(first_row, rows)
        if type not in FLOAT_TYPES:
            raise FormatError(f"{type} is not rounded from its stored bytes")
        c.source_format = FORMATS[FLOAT_TYPES[type]][0]
        if self.m.format != LB_U8 or not self.m.scales_f16 or self.m.group_cols != min(32, self.m.n_cols):
            raise FormatError("rounding to 8 bits needs a u8 matrix with a float16 scale for each 32 weights")
        check_bytes(raw, rows, self.m.n_cols * value_size(c.source_format), type)
        self._fill(fill_rounded, &c, &raw[0], rows, first_row, threads)
        if c.bad_scale:
            raise FormatError("a weight is not finite, or too large")

    def fill_stored(self, Stored stored not None, const uint8_t[::1] raw, int64_t rows, int64_t first_row=0,
                    int32_t threads=1):
        """Unpack rows of a tensor from stored bytes; FormatError if a scale is not finite."""
        cdef lb_matrix m = self.m
        self._check_rows(first_row, rows)
        check_bytes(raw, rows, stored.row_bytes(self.format, &m), stored.type)
        m.n_rows = <int32_t>rows
        m.codes += first_row // LB_ROWS * group_code_bytes(&m)
        m.scales = <const uint8_t *>m.scales + first_row // LB_ROWS * group_scale_bytes(&m)
        stored.unpack(&m, &raw[0], threads)
        self.source_type = stored.type

    def groups(self):
        """Return the row groups one after the other, each with its codes and then its scales.

        Returns
        -------
        ndarray of uint8, shape (row groups, bytes)
        """
        cdef size_t n = lb_row_groups(self.m.n_rows), codes = group_code_bytes(&self.m)
        cdef size_t scales = self.nbytes // n - codes
        cdef uint8_t[:, ::1] out
        cdef size_t g
        result = np.empty((n, codes + scales), np.uint8)
        out = result
        for g in range(n):
            memcpy(&out[g, 0], self.m.codes + g * codes, codes)
            if scales:
                memcpy(&out[g, codes], <const uint8_t *>self.m.scales + g * scales, scales)
        return result

    def rows(self, indices):
        """Dequantise rows.

        Parameters
        ----------
        indices : sequence of int

        Returns
        -------
        ndarray of float32, shape (len(indices), n_cols)
        """
        cdef float[:, ::1] out
        cdef int64_t row
        cdef lb_float_mode mode
        if self.m.tiles:
            raise FormatError("a channel-major matrix has no rows of its own")
        result = np.empty((len(indices), self.m.n_cols), np.float32)
        out = result
        for position, row in enumerate(indices):
            if not 0 <= row < self.m.n_rows:
                raise IndexError(f"row {row} is not in a matrix of {self.m.n_rows} rows")
            mode = begin_floats()
            matrix_row(&self.m, row, &out[position, 0])
            end_floats(mode)
        return result

    def __repr__(self):
        return f"PackedMatrix({self.format}, {self.m.n_rows} x {self.m.n_cols}, {self.nbytes} bytes)"
