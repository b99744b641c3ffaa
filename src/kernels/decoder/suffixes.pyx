"""Where the end of a text has occurred before: a suffix automaton over tokens, grown by one token at a time.

A node stands for all strings that end at the same places of the text, so that n tokens make at most 2n nodes and 3n
edges, and a token costs a few steps on average (A. Blumer et al., "The smallest automaton recognizing the subwords of a
text", 1985). Besides, each node knows where its strings ended last. All memory is taken at once.
"""
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport calloc, free, malloc

from lowbit._kernels.dispatch cimport checked, lb_times

cdef enum:
    MOST_NOTED = 16     # nodes whose last end is noted for a token: a text of one token only has as many as it is long

BYTES_PER_TOKEN = 2 * sizeof(Node) + 3 * sizeof(Edge) + 3 * sizeof(int32_t)


cdef inline uint32_t bucket(const Automaton *a, int32_t node, int32_t token) noexcept nogil:
    cdef uint32_t h = (<uint32_t>node * 0x9e3779b1u) ^ (<uint32_t>token * 0x85ebca6bu)
    return (h ^ (h >> 15)) & <uint32_t>a.mask


cdef Edge *find(const Automaton *a, int32_t node, int32_t token) noexcept nogil:
    """The edge of a node for a token, or NULL."""
    cdef int32_t i = a.buckets[bucket(a, node, token)]
    while i:
        if a.edges[i].node == node and a.edges[i].token == token:
            return &a.edges[i]
        i = a.edges[i].chain
    return NULL


cdef void connect(Automaton *a, int32_t node, int32_t token, int32_t to) noexcept nogil:
    cdef int32_t *head = &a.buckets[bucket(a, node, token)]
    cdef Edge *edge = &a.edges[a.n_edges]
    edge.node, edge.token, edge.to = node, token, to
    edge.sibling, edge.chain = a.nodes[node].edge, head[0]
    a.nodes[node].edge = head[0] = a.n_edges
    a.n_edges += 1


cdef int32_t divide(Automaton *a, int32_t node, int32_t token, int32_t whole) noexcept nogil:
    """Give those strings of `whole` that end one of `node` a node of their own: they have just occurred alone."""
    cdef int32_t part = a.n_nodes, i
    cdef Edge *edge
    a.n_nodes += 1
    a.nodes[part] = a.nodes[whole]
    a.nodes[part].length, a.nodes[part].edge = a.nodes[node].length + 1, 0
    i = a.nodes[whole].edge
    while i:
        connect(a, part, a.edges[i].token, a.edges[i].to)
        i = a.edges[i].sibling
    while node >= 0:
        edge = find(a, node, token)
        if edge.to != whole:
            break
        edge.to = part
        node = a.nodes[node].link
    a.nodes[whole].link = part
    return part


cdef void append(Automaton *a, int32_t token) noexcept nogil:
    """Take in the next token; there must be room for it."""
    cdef int32_t new = a.n_nodes, node = a.last, i
    cdef Edge *edge = NULL
    a.tokens[a.n_tokens] = token
    a.n_tokens += 1
    a.n_nodes += 1
    a.nodes[new] = Node(a.nodes[a.last].length + 1, 0, a.n_tokens, 0)
    while node >= 0:
        edge = find(a, node, token)
        if edge != NULL:
            break
        connect(a, node, token, new)
        node = a.nodes[node].link
    if node >= 0:
        i = edge.to
        a.nodes[new].link = i if a.nodes[i].length == a.nodes[node].length + 1 else divide(a, node, token, i)
    a.last, node = new, a.nodes[new].link
    a.before, a.end = Place(node, a.nodes[node].length), a.nodes[node].end
    i = 0
    while node > 0 and i < MOST_NOTED:
        a.nodes[node].end = a.n_tokens
        node = a.nodes[node].link
        i += 1


cdef void follow(const Automaton *a, Place *place, int32_t token) noexcept nogil:
    """Take in the next token of another text."""
    cdef int32_t node = place.node, length = place.length
    cdef Edge *edge
    while node and a.nodes[a.nodes[node].link].length >= length:    # it has been divided meanwhile
        node = a.nodes[node].link
    edge = find(a, node, token)
    while edge == NULL and node:
        node = a.nodes[node].link
        length = a.nodes[node].length
        edge = find(a, node, token)
    if edge == NULL:
        place.node, place.length = 0, 0
    else:
        place.node, place.length = edge.to, length + 1


cdef class Suffixes:
    """The strings of a text.

    Parameters
    ----------
    capacity : int
        Most tokens; each takes at most `BYTES_PER_TOKEN` bytes.

    Raises
    ------
    MemoryError
        If the memory cannot be had.
    """

    def __cinit__(self, int32_t capacity):
        cdef Automaton *a = &self.a
        cdef size_t n = max(capacity, 1), buckets = 1
        checked(lb_times(n, BYTES_PER_TOKEN), "a suffix automaton")
        while buckets < n:
            buckets *= 2
        a.capacity, a.mask = capacity, <int32_t>(buckets - 1)
        a.nodes = <Node *>malloc(sizeof(Node) * (2 * n + 1))
        a.edges = <Edge *>malloc(sizeof(Edge) * (3 * n + 1))
        a.buckets = <int32_t *>calloc(buckets, sizeof(int32_t))
        a.tokens = <int32_t *>malloc(sizeof(int32_t) * n)
        if a.nodes == NULL or a.edges == NULL or a.buckets == NULL or a.tokens == NULL:
            raise MemoryError(f"no memory for the strings of {capacity} tokens")
        a.nodes[0] = Node(0, -1, 0, 0)
        a.n_nodes = a.n_edges = 1

    def __dealloc__(self):
        free(self.a.nodes)
        free(self.a.edges)
        free(self.a.buckets)
        free(self.a.tokens)

    @property
    def n_tokens(self):
        """Tokens of the text."""
        return self.a.n_tokens

    def extend(self, tokens):
        """Let the text go on; ValueError if there is no room."""
        for token in tokens:
            if self.a.n_tokens >= self.a.capacity:
                raise ValueError(f"there is room for {self.a.capacity} tokens")
            append(&self.a, token)

    def before(self):
        """Return the length of the longest end of the text that occurred before, and where that ended last."""
        return self.a.before.length, self.a.end

    def find(self, tokens):
        """Return the length of the longest end of another text that occurs, and where that ended last."""
        cdef Place place = Place(0, 0)
        for token in tokens:
            follow(&self.a, &place, token)
        return place.length, self.a.nodes[place.node].end
