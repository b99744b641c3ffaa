from libc.stdint cimport int32_t, int64_t

from lowbit._kernels.dispatch cimport lb_matrix

# What a pass does, in the order of a layer; `OPERATIONS` names them.
cdef enum:
    PRODUCT = 0             # of a linear layer that has no name here
    EMBED
    NORM
    QKV
    ROPE
    ATTENTION
    MIX
    ATTN_OUTPUT
    ADD
    ROUTER
    EXPERTS
    GATE_UP
    GLU
    FFN_DOWN
    HEAD
    SAMPLE
    N_OPERATIONS


cdef struct Lap:
    int64_t calls
    int64_t ns
    int64_t bytes           # of weights, or of keys and values, that were read
    int64_t products        # multiply-adds


cdef class Profile:
    cdef Lap all[N_OPERATIONS]
    cdef Lap open           # what was done since the last lap
    cdef int64_t last       # nanoseconds

    cdef void begin(self) noexcept nogil
    cdef void lap(self, int32_t operation) noexcept nogil
    cdef void read(self, const lb_matrix *w, int32_t tokens) noexcept nogil
