"""Where the time of passes goes, operation by operation.

A pass tells its profile, if it has one, what it did since it last told it something. So every nanosecond counts for one
operation, and a pass without a profile pays a comparison per operation.
"""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from lowbit._kernels.dispatch cimport lb_matrix, lb_row_groups, nanoseconds
from lowbit._kernels.matrix cimport group_code_bytes, group_scale_bytes

OPERATIONS = (
    "other products", "embedding", "norm and int8", "attn_qkv", "rope and store", "attention", "recurrent state",
    "attn_output", "residual", "router", "experts", "ffn_gate_up", "activation", "ffn_down", "output", "sampling",
)


cdef class Profile:
    """The operations of all passes that a decoder makes while this is its `profile`."""

    cdef void begin(self) noexcept nogil:
        """Leave out what was done since the last lap."""
        memset(&self.open, 0, sizeof(Lap))
        self.last = nanoseconds()

    cdef void lap(self, int32_t operation) noexcept nogil:
        """Count what was done since the last lap as this operation."""
        cdef Lap *lap = &self.all[operation]
        cdef int64_t now = nanoseconds()
        lap.calls += 1
        lap.ns += now - self.last
        lap.bytes += self.open.bytes
        lap.products += self.open.products
        memset(&self.open, 0, sizeof(Lap))
        self.last = now

    cdef void read(self, const lb_matrix *w, int32_t tokens) noexcept nogil:
        """Count a product with a matrix as part of the next lap; one in channel-major order reads what it needs."""
        if not w.tiles:
            self.open.bytes += <int64_t>lb_row_groups(w.n_rows) * <int64_t>(group_code_bytes(w) + group_scale_bytes(w))
            self.open.products += <int64_t>w.n_rows * w.n_cols * tokens

    def laps(self):
        """Return what was measured.

        Returns
        -------
        list of dict
            Of each operation that occurred: ``operation``, ``calls``, ``ns`` (nanoseconds), ``bytes`` (of weights, or
            of keys and values, read from memory; 0 where that is not counted) and ``products`` (multiply-adds).
        """
        return [{"operation": name, **dict(self.all[i])} for i, name in enumerate(OPERATIONS) if self.all[i].calls]
