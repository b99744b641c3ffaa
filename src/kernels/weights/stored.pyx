"""Types that stay in their blocks until they are used, and the tables that the kernel needs which unpacks them."""
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint8_t, uint64_t

from lowbit._kernels.dispatch cimport lb_matrix, lb_row_groups, lb_stored, parallel, table as kernels

from lowbit.errors import FormatError


cdef extern from "kernels.h":
    enum:
        LB_IQ1_S
        LB_IQ1_M
        LB_IQ2_XXS
        LB_IQ2_XS
        LB_IQ2_S
        LB_IQ3_XXS
        LB_IQ3_S
        LB_IQ4_XS
        LB_MXFP4
        LB_Q2_K
        LB_Q3_K
        LB_Q4_K
        LB_Q5_K
        LB_Q6_K

STORED = {
    # type: (number, weights in a block, bytes, format of the matrix, columns per scale, scales_super, table's words)
    "IQ1_S": (LB_IQ1_S, 256, 50, "u8", 32, False, 2048),
    "IQ1_M": (LB_IQ1_M, 256, 56, "u8", 16, False, 2048),
    "IQ2_XXS": (LB_IQ2_XXS, 256, 66, "u8", 32, False, 256 + 128),
    "IQ2_XS": (LB_IQ2_XS, 256, 74, "u8", 16, False, 512 + 128),
    "IQ2_S": (LB_IQ2_S, 256, 82, "u8", 16, False, 1024 + 256),
    "IQ3_XXS": (LB_IQ3_XXS, 256, 98, "u8", 32, False, 256 + 128),
    "IQ3_S": (LB_IQ3_S, 256, 110, "u8", 32, False, 512 + 256),
    "IQ4_XS": (LB_IQ4_XS, 256, 136, "iq4", 32, True, 0),
    "MXFP4": (LB_MXFP4, 32, 17, "fp4", 32, False, 0),
    "Q2_K": (LB_Q2_K, 256, 84, "u2m", 16, True, 0),
    "Q3_K": (LB_Q3_K, 256, 110, "u3", 16, True, 0),
    "Q4_K": (LB_Q4_K, 256, 144, "u4m", 32, True, 0),
    "Q5_K": (LB_Q5_K, 256, 176, "u5m", 32, True, 0),
    "Q6_K": (LB_Q6_K, 256, 210, "u6", 16, True, 0),
}
STORED_TYPES = {name: row[6] for name, row in STORED.items()}


cdef struct Unpacking:
    const lb_stored *stored
    const uint8_t *source
    const lb_matrix *m
    bint bad


cdef void unpack_work(void *context, int32_t begin, int32_t end) noexcept nogil:
    cdef Unpacking *c = <Unpacking *>context
    if not kernels.unpack(c.stored, c.source, c.m, begin, end):
        c.bad = True


cdef class Stored:
    """How blocks of a type are unpacked.

    Parameters
    ----------
    type : str
        A key of `STORED_TYPES`, whose values are the lengths of tables.
    table : ndarray of uint64
        What `lowbit.formats.unpacked.table_of` returns.
    """

    def __cinit__(self, str type not None, const uint64_t[::1] table not None):
        if type not in STORED:
            raise FormatError(f"{type} is not unpacked where it is used")
        self.c.type, self.c.block_cols, self.c.block_bytes, *matrix, words = STORED[type]
        self.format, self.group_cols, self.scales_super = matrix
        if table.shape[0] != words:
            raise FormatError(f"a table of {table.shape[0]} words does not fit {type}")
        self.type, self.table = type, table
        if words:
            self.c.table = &self.table[0]

    cdef size_t row_bytes(self, str format, const lb_matrix *m) except 0:
        """Bytes of a stored row; FormatError if a matrix of this format does not take rows of this type."""
        if (format != self.format or m.n_cols % self.c.block_cols or m.group_cols != self.group_cols or m.scales_f16
                or bool(m.scales_super) != self.scales_super):
            raise FormatError(f"{self.type} needs rows of a multiple of {self.c.block_cols} weights as {self.format}")
        return <size_t>(m.n_cols // self.c.block_cols) * self.c.block_bytes

    cdef int unpack(self, const lb_matrix *m, const uint8_t *source, int32_t threads) except -1:
        """Unpack all rows of a matrix; FormatError if a scale is not finite."""
        cdef Unpacking work
        work.stored, work.source, work.m, work.bad = &self.c, source, m, False
        with nogil:
            parallel(unpack_work, &work, lb_row_groups(m.n_rows), 4, threads)
        if work.bad:
            raise FormatError("a scale is infinite or not a number")
        return 0
