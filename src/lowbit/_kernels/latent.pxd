# Latent attention: the matrices of a layer's heads, what is kept of a pass, and the walk.
from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, int64_t

from lowbit._kernels.dispatch cimport Buffers, lb_activations, lb_kv, lb_matmul_args, lb_matrix


# One matrix for each head.
cdef struct HeadMatrices:
    lb_matrix m             # that of one head; codes and scales are those of the first
    size_t codes, scales    # bytes from one head to the next


# What a pass hands over.
cdef struct LatentRows:
    float *q                # (n, q_stride): of each head `nope` channels, and then `rope` that are rotated
    float *kv               # (n, kv_stride): the latent, and then one rotated key for all heads
    float *out              # (n, n_heads, value_size)
    char ***blocks
    const int32_t *positions
    const float *cos
    const float *sin
    lb_kv place
    int64_t q_stride, kv_stride
    int32_t kv_type
    int32_t n, threads
    int32_t halves
    float eps, q_scale
    bint per_token


cdef class LatentLayer:
    cdef readonly int32_t n_heads, nope, rope, rank, value_size, q_rank
    cdef readonly size_t nbytes
    cdef HeadMatrices k_b, v_b
    cdef const float *norm              # (rank,)
    cdef list keep

    cdef int _heads(self, matrix, int32_t n_out, int32_t n_in, HeadMatrices *out) except -1


cdef class LatentScratch(Buffers):
    cdef float *queries                 # (rows, heads, nope + rope), or in their place (rows, heads, rank)
    cdef float *absorbed                # (rows, heads, rank + rope)
    cdef int8_t *q8                     # (heads, rows, ...): inputs of the heads' matrices
    cdef float *scales
    cdef int32_t *sums
    cdef lb_matmul_args *products       # one of each head
    cdef lb_activations *inputs
    cdef lb_matrix *matrices

    cdef void run(self, LatentLayer layer, const LatentRows *rows) noexcept nogil
    cdef void _multiply(self, const HeadMatrices *heads, int32_t n_heads, const float *x, int64_t x_row,
                        int64_t x_head, float *y, int64_t y_row, int64_t y_head,
                        const LatentRows *rows) noexcept nogil
