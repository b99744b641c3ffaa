"""Where the blocks of a cache come from: files, or Python objects.

1. A file is opened twice where it can be read past the page cache of the system, unless that is not wanted.
2. Objects are called back with the GIL, from the cache's reader threads too: for tests, and for data that is in no
   file. What one raises goes to whoever waits for the block.
"""
cimport cython
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

import errno
import os

import numpy as np

from lowbit.errors import FormatError


@cython.final
@cython.no_gc_clear
cdef class _Source:
    """One that is an object."""
    cdef object read_at
    cdef dict failures      # of the cache


cdef int64_t read_object(void *context, void *buffer, int64_t n_bytes, int64_t offset) noexcept with gil:
    cdef _Source source = <_Source>context
    cdef const unsigned char[::1] view
    try:
        view = source.read_at(offset, n_bytes)
        if view.shape[0] > n_bytes:
            raise ValueError(f"read_at returned {view.shape[0]} bytes for {n_bytes}")
        if view.shape[0]:
            memcpy(buffer, &view[0], view.shape[0])
        return view.shape[0]
    except BaseException as failure:
        source.failures[PyThread_get_thread_ident()] = failure
        code = getattr(failure, "errno", None)
        return -(code if isinstance(code, int) and 0 < code < 1 << 31 else errno.EIO)


def _open_direct(path):
    """Open a file so that reads bypass the page cache; None where the system or the file system cannot."""
    flag = getattr(os, "O_DIRECT", 0)
    if not flag:
        return None
    try:
        return os.open(path, os.O_RDONLY | flag | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return None


@cython.final
@cython.no_gc_clear
cdef class Sources:
    """The sources of a cache.

    Parameters
    ----------
    sources : list of str, PathLike, int or object
        As `BlockCache` takes them.
    direct : bool or None
        Likewise.
    failures : dict
        Takes what an object raised last in each thread.
    """

    def __cinit__(self, list sources not None, direct, dict failures not None):
        cdef int32_t i
        self.n, self.failures = len(sources), failures
        self.names, self.files, self.objects, self.sizes = [], [], [], []
        self.c = <lb_source *>malloc((self.n + 1) * sizeof(lb_source))
        if self.c == NULL:
            raise MemoryError
        try:
            for i in range(self.n):
                self.sizes.append(self._open(sources[i], direct, &self.c[i]))
        except BaseException:
            self.close()
            raise

    def __dealloc__(self):
        free(self.c)

    cdef object _open(self, source, direct, lb_source *out):
        """Prepare a source; return its size, None if that is unknown."""
        cdef _Source wrapper
        out.read, out.context, out.fd, out.direct_fd = NULL, NULL, -1, -1
        if hasattr(source, "read_at"):
            if direct:
                raise FormatError("direct reads need a file")
            wrapper = _Source.__new__(_Source)
            wrapper.read_at, wrapper.failures = source.read_at, self.failures
            self.objects.append(wrapper)
            self.names.append(getattr(source, "name", None) or type(source).__name__)
            out.read, out.context = read_object, <void *>wrapper
            return None
        if isinstance(source, (int, np.integer)) and not isinstance(source, bool):
            out.fd = source
            self.names.append(f"file descriptor {source}")
            path = f"/proc/self/fd/{source}"
        else:
            path = os.fspath(source)
            self.names.append(os.fsdecode(path))
            out.fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
            self.files.append(out.fd)
        if direct is None or direct:
            opened = _open_direct(path)
            if opened is not None:
                self.files.append(opened)
                out.direct_fd = opened
        size = os.fstat(out.fd).st_size
        if direct:
            if out.direct_fd < 0:
                raise OSError(errno.EINVAL, "direct reads do not work here", self.names[-1])
            out.fd = -1
        return size

    def check(self, table):
        """Raise FormatError if a row of a table, which is source, offset and length of a block, lies outside."""
        which, offsets, lengths = table.T
        bad = (which < 0) | (which >= self.n) | (offsets < 0) | (lengths <= 0) | (offsets >= 1 << 61)
        bad |= lengths >= 1 << 40
        for i, size in enumerate(self.sizes):
            if size is not None:
                bad |= (which == i) & (offsets > size - lengths)
        if bad.any():
            b = int(bad.argmax())
            name = self.names[which[b]] if 0 <= which[b] < self.n else f"source {which[b]}"
            raise FormatError(f"{name}: block {b}, {lengths[b]} bytes at {offsets[b]}, lies outside")

    def close(self):
        """Close the files that were opened here."""
        for file in self.files:
            os.close(file)
        self.files, self.objects = [], []
