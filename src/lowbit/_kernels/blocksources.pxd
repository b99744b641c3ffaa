# Where the blocks of a cache come from.
from libc.stdint cimport int32_t, int64_t


cdef extern from "blockcache.h":
    ctypedef int64_t lb_source_read(void *context, void *buffer, int64_t n_bytes, int64_t offset) noexcept

    ctypedef struct lb_source:
        lb_source_read *read
        void *context
        int fd
        int direct_fd


cdef class Sources:
    cdef lb_source *c
    cdef int32_t n
    cdef list names, sizes      # a size is None if it is not known
    cdef list files             # descriptors that were opened here
    cdef list objects
    cdef dict failures

    cdef object _open(self, source, direct, lb_source *out)
