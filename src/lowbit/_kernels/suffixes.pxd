from libc.stdint cimport int32_t


# Strings that end at the same places of the text.
cdef struct Node:
    int32_t length          # of the longest of them
    int32_t link            # the node of its longest end that ends elsewhere, too
    int32_t end             # tokens of the text up to the last of these places, as far as it was noted
    int32_t edge            # its newest edge; 0 if there is none


# From the strings of a node to those that are one token longer.
cdef struct Edge:
    int32_t node
    int32_t token
    int32_t to
    int32_t sibling         # another edge of the node, or 0
    int32_t chain           # another edge of the bucket, or 0


# How far the end of another text is known: the node and the length of its longest end that occurs.
cdef struct Place:
    int32_t node
    int32_t length


cdef struct Automaton:
    int32_t capacity        # most tokens
    int32_t n_tokens
    int32_t n_nodes
    int32_t n_edges         # and one, since 0 is none
    int32_t last            # node of the whole text
    int32_t mask            # buckets, less one
    Node *nodes
    Edge *edges
    int32_t *buckets
    int32_t *tokens
    Place before            # the longest end of the text that has occurred before
    int32_t end             # and where it did so last


cdef void append(Automaton *a, int32_t token) noexcept nogil
cdef void follow(const Automaton *a, Place *place, int32_t token) noexcept nogil


cdef class Suffixes:
    cdef Automaton a
