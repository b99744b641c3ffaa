from libc.stdint cimport int32_t, int64_t

from lowbit._kernels.kvpool cimport Block, KVPool


cdef int store(KVPool pool, Block block, const float *state, int64_t began, int32_t index) except -1
cdef list recall(KVPool pool, bytes tokens, bytes chain, int32_t known)
