"""Proposals from what was said before: by the text itself, its prompt included, and by earlier texts.

1. The longest end of the text that occurred before says what may come next: what followed it the last time.
2. How far that is trusted depends on how long the match is, and on how often proposals after such matches were right
   in this text. A token is proposed if it is likelier to be right than its row is worth.
3. Of earlier texts those of the same salt are known, as many tokens as there is room for: two automatons, of which the
   older one goes when the newer one is full.

The text never depends on any of this, only the time that it takes.
"""
from libc.stdint cimport int32_t

from lowbit._kernels.suffixes cimport Automaton, Place, Suffixes, append, follow

cdef enum:
    LOOK_BACK = 64      # tokens of a text that are looked up in texts that are new to it
    BETWEEN = -1        # stands between two texts
    MOST_SALTS = 4
    PRIOR = 4           # proposals that the first guess counts as
    MEMORY = 48         # proposals of a kind after which the older ones count half

cdef float[6] GUESS = [0.2, 0.45, 0.65, 0.8, 0.9, 0.95]    # of each kind, before anything was tried


cdef inline int32_t kind(int32_t length) noexcept nogil:
    cdef int32_t k = 0
    while k < <int32_t>N_LENGTHS - 1 and length >> (k + 1):
        k += 1
    return k


cdef class Earlier:
    """Earlier texts of one salt.

    Parameters
    ----------
    capacity : int
        Most tokens of the newer ones, and of the older ones.
    """

    def __cinit__(self, int32_t capacity):
        self.capacity = capacity

    @property
    def n_tokens(self):
        """Tokens that are remembered."""
        return sum(texts.n_tokens for texts in (self.newer, self.older) if texts is not None)

    def remember(self, const int32_t[::1] tokens not None):
        """Take in a text, but for what it has in common with those that are known, and of a long one its end."""
        cdef int32_t n = <int32_t>tokens.shape[0], first = max(0, n - self.capacity + 1), i
        cdef Place place = Place(0, 0)
        cdef Automaton *texts
        if self.newer is not None:
            for i in range(first, n):
                follow(&self.newer.a, &place, tokens[i])
                if place.length != i - first + 1:
                    first = max(first, i - LOOK_BACK)
                    break
            else:
                return
        if n <= first:
            return
        if self.newer is None or self.newer.a.n_tokens + n - first + 1 > self.capacity:
            try:
                fresh = Suffixes(self.capacity)
            except MemoryError:
                return
            self.newer, self.older = fresh, self.newer
            self.texts[0] = &self.newer.a
            self.texts[1] = &self.older.a if self.older is not None else NULL
            self.generation += 1
        texts = &self.newer.a
        for i in range(first, n):
            append(texts, tokens[i])
        append(texts, BETWEEN)


class EarlierTexts:
    """What was said, by salt; that of the salt that was not asked for the longest goes.

    Parameters
    ----------
    most : int
        Tokens that are remembered of each salt; 0: nothing is.
    """

    def __init__(self, most):
        self._most, self._texts = most, {}

    def of(self, salt):
        """Return the earlier texts of a salt, to which more can be added; None if nothing is remembered."""
        if self._most < 4:
            return None
        found = self._texts.pop(salt, None) or Earlier(self._most // 2)
        self._texts[salt] = found
        if len(self._texts) > MOST_SALTS:
            del self._texts[next(iter(self._texts))]
        return found

    def __len__(self):
        return len(self._texts)


cdef class Lookup:
    """What may follow in one text.

    Parameters
    ----------
    capacity : int
        Most tokens of the text.
    earlier : Earlier, optional
    """

    def __cinit__(self, int32_t capacity, Earlier earlier=None):
        self.own, self.earlier, self.generation = Suffixes(capacity), earlier, -1

    cdef void look(self, const int32_t *text, int32_t n) noexcept nogil:
        """Take in the new tokens of the text, and find the best match."""
        cdef Automaton *own = &self.own.a
        cdef Automaton *other
        cdef int32_t i, j, first = self.seen
        while own.n_tokens < min(n, own.capacity):
            append(own, text[own.n_tokens])
        self.source, self.length, self.at = own, own.before.length, own.end
        self.seen = n
        if self.earlier is None:
            return
        if self.generation != self.earlier.generation:
            self.generation, first = self.earlier.generation, max(0, n - LOOK_BACK)
            self.places[0] = self.places[1] = Place(0, 0)
        for j in range(2):
            other = self.earlier.texts[j]
            if other == NULL:
                break
            for i in range(first, n):
                follow(other, &self.places[j], text[i])
            if self.places[j].length > self.length:
                self.source, self.length = other, self.places[j].length
                self.at = other.nodes[self.places[j].node].end

    cdef int32_t propose(self, const int32_t *text, int32_t n, int32_t *out, int32_t most, float cost) noexcept nogil:
        """Write down what may follow, at most so many tokens; `cost` is that of a row, in passes of one. Return how
        many there are."""
        cdef float chance = 1, expected = 1, spent = 1
        cdef int32_t i = 0, k, at, token
        self.look(text, n)
        at = self.at
        while self.length and i < most:
            k = kind(self.length + i)
            chance *= (self.right[k] + PRIOR * GUESS[k]) / (self.tried[k] + PRIOR)
            if chance * spent < cost * expected:
                break
            if at == self.source.n_tokens:      # a text that repeats itself goes on repeating itself
                at = self.at
            token = self.source.tokens[at]
            if token == BETWEEN:
                break
            out[i] = token
            expected += chance
            spent += cost
            at += 1
            i += 1
        self.value = expected / spent
        return i

    cdef void learn(self, int32_t right, int32_t proposed) noexcept nogil:
        """Learn how many of the last proposal's tokens were right."""
        cdef int32_t i, k
        for i in range(min(right + 1, proposed)):
            k = kind(self.length + i)
            self.tried[k] += 1
            self.right[k] += i < right
            if self.tried[k] > MEMORY:
                self.tried[k] /= 2
                self.right[k] /= 2

    def proposal(self, const int32_t[::1] text not None, int32_t most, float cost):
        """Return what may follow a text, as a list of tokens."""
        cdef int32_t out[MAX_DRAFT]
        cdef int32_t n = self.propose(&text[0], <int32_t>text.shape[0], out, min(most, <int32_t>MAX_DRAFT), cost)
        return [out[i] for i in range(n)]

    def note(self, int32_t right, int32_t proposed):
        """Learn how many of the last proposal's tokens were right."""
        self.learn(right, proposed)
