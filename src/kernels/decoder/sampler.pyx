"""Choosing the next token from the logits, without Python and the same on every machine.

Order of the steps: repeat penalty, biases, presence and frequency penalties, the mask of tokens that may come next,
temperature, top-k, top-p, min-p, then one random number. Candidates are sorted by logit, the largest first and equals
by token, so every cut is a prefix. Random numbers are xoshiro256** seeded by splitmix64 (Blackman and Vigna), 53 bits
of each.
"""
from libc.math cimport INFINITY
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort
from libc.string cimport memcpy

from lowbit._kernels.dispatch cimport begin_doubles, begin_floats, checked, end_floats, lb_float_mode, lb_times, table

cdef extern from "largest.h":
    int32_t lb_largest(const float *x, int32_t n) noexcept nogil

cdef extern from "shortlist.h":
    enum:
        LB_MOST_SHORTLISTED


cdef inline uint64_t rotate(uint64_t x, int k) noexcept nogil:
    return (x << k) | (x >> (64 - k))


cdef inline float number(float x) noexcept nogil:
    """What is no number comes last: with it there would be no order."""
    return x if x == x else -INFINITY


cdef bint before(const Candidate *a, const Candidate *b) noexcept nogil:
    return a.logit > b.logit or (a.logit == b.logit and a.token < b.token)


cdef int compare(const void *a, const void *b) noexcept nogil:
    return -1 if before(<const Candidate *>a, <const Candidate *>b) else 1


cdef void sift_down(Candidate *heap, int32_t n, int32_t i) noexcept nogil:
    """Restore a heap whose root is the candidate that comes last."""
    cdef int32_t child
    cdef Candidate moved = heap[i]
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and before(&heap[child], &heap[child + 1]):
            child += 1
        if not before(&moved, &heap[child]):
            break
        heap[i] = heap[child]
        i = child
    heap[i] = moved


cdef class Sampler:
    """State of one sequence's sampling: settings, random numbers, and the tokens so far.

    Parameters
    ----------
    vocab_size : int
    temperature, top_k, top_p, min_p, repeat_penalty, seed
        As in `lowbit.sampling.SamplingParams`, checked there.
    presence_penalty, frequency_penalty : float
        Taken from the logit of each token that was made before: once, and as often as it was made.
    logit_bias : dict of int to float, optional
        Added to the logits of these tokens.

    Raises
    ------
    ValueError
        If a token of `logit_bias` is not in the vocabulary.
    MemoryError
        If the memory cannot be had.
    """

    def __cinit__(self, int32_t vocab_size, double temperature, int32_t top_k, double top_p, double min_p,
                  double repeat_penalty, uint64_t seed, double presence_penalty=0, double frequency_penalty=0,
                  logit_bias=None):
        cdef uint64_t z
        cdef int i
        cdef size_t n = vocab_size
        checked(lb_times(sizeof(Candidate), vocab_size), "a sampler")
        self.vocab_size = vocab_size
        self.temperature, self.top_p, self.min_p, self.repeat_penalty = temperature, top_p, min_p, repeat_penalty
        self.presence_penalty, self.frequency_penalty = presence_penalty, frequency_penalty
        self.top_k = top_k if 0 < top_k < vocab_size else vocab_size
        self.candidates = <Candidate *>malloc(sizeof(Candidate) * n)
        self.probabilities = <float *>malloc(sizeof(float) * n)
        self.adjusted = <float *>malloc(sizeof(float) * n)
        self.bias = <Candidate *>malloc(sizeof(Candidate) * (len(logit_bias or ()) + 1))
        self.mask = <uint32_t *>calloc(n // 32 + 1, 4)
        if presence_penalty != 0 or frequency_penalty != 0:
            self.counts = <int32_t *>calloc(n, 4)
            if self.counts == NULL:
                raise MemoryError("no memory for the sampler")
        if not (self.candidates and self.probabilities and self.adjusted and self.bias and self.mask):
            raise MemoryError("no memory for the sampler")
        for token, value in (logit_bias or {}).items():
            if not 0 <= token < vocab_size:
                raise ValueError(f"logit_bias names the token {token}, which is not in a vocabulary of {vocab_size}")
            self.bias[self.n_bias] = Candidate(<float>value, <int32_t>token)
            self.n_bias += 1
        for i in range(4):
            seed += 0x9e3779b97f4a7c15u
            z = seed
            z = (z ^ (z >> 30)) * <uint64_t>0xbf58476d1ce4e5b9u
            z = (z ^ (z >> 27)) * <uint64_t>0x94d049bb133111ebu
            self.state[i] = z ^ (z >> 31)

    def __dealloc__(self):
        free(self.candidates)
        free(self.probabilities)
        free(self.adjusted)
        free(self.bias)
        free(self.mask)
        free(self.counts)

    cdef double uniform(self) noexcept nogil:
        """A number in [0, 1) of 53 random bits."""
        cdef uint64_t *s = self.state
        cdef uint64_t result = rotate(s[1] * 5, 7) * 9, t = s[1] << 17
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = rotate(s[3], 45)
        return <double>(result >> 11) * (1.0 / 9007199254740992.0)

    cdef void remember(self, int32_t token) noexcept nogil:
        """Note a token that was made."""
        self.recent[self.n_recent % RECENT] = token
        self.n_recent += 1
        if self.counts != NULL:
            self.counts[token] += 1

    cdef void accept(self, int32_t token) noexcept nogil:
        """Note a token as if it had been chosen, where there was no choice."""
        if self.temperature != 0 and self.top_k != 1:
            self.uniform()
        self.remember(token)

    cdef void adjust(self, const float *logits) noexcept nogil:
        """Write biased, penalised and masked logits to `adjusted`."""
        cdef int32_t i, token, word
        cdef uint32_t bits
        memcpy(self.adjusted, logits, sizeof(float) * <size_t>self.vocab_size)
        if self.repeat_penalty != 1.0:
            for i in range(<int32_t>min(self.n_recent, <int64_t>RECENT)):
                token = self.recent[i]
                if token >= self.vocab_size:    # of the larger one's that it imitates
                    continue
                # each recent token is penalised once, from its original logit
                if logits[token] > 0:
                    self.adjusted[token] = <float>(logits[token] / self.repeat_penalty)
                else:
                    self.adjusted[token] = <float>(logits[token] * self.repeat_penalty)
        for i in range(self.n_bias):
            self.adjusted[self.bias[i].token] += self.bias[i].logit
        if self.counts != NULL:
            for i in range(self.vocab_size):
                if self.counts[i]:
                    self.adjusted[i] -= <float>(self.presence_penalty + self.frequency_penalty * self.counts[i])
        if self.masked:
            for word in range((self.vocab_size + 31) // 32):
                bits = self.mask[word]
                if bits != 0xffffffffu:
                    for i in range(32 * word, min(32 * word + 32, self.vocab_size)):
                        if not bits >> (i & 31) & 1:
                            self.adjusted[i] = -INFINITY

    cdef int32_t few(self) noexcept nogil:
        """How many of the largest logits decide about the next token; 0 if others may, too."""
        if self.repeat_penalty != 1.0 or self.n_bias or self.counts != NULL or self.masked:
            return 0
        if self.temperature == 0:
            return 1
        return self.top_k if self.top_k <= LB_MOST_SHORTLISTED else 0

    cdef int32_t sample(self, const float *logits) noexcept nogil:
        """Return the next token; logits that are no numbers are as small as can be."""
        cdef lb_float_mode mode = begin_doubles()
        cdef int32_t token = self._sample(logits)
        end_floats(mode)
        return token

    cdef int32_t _sample(self, const float *logits) noexcept nogil:
        cdef int32_t i, n, best, kept
        cdef double total, limit, running
        cdef lb_float_mode mode
        if self.repeat_penalty != 1.0 or self.n_bias or self.counts != NULL or self.masked:
            self.adjust(logits)
            logits = self.adjusted
        if self.temperature == 0 or self.top_k == 1:
            best = lb_largest(logits, self.vocab_size)
            self.kept = 1
            self.candidates[0].token, self.probabilities[0] = best, 1
            return best

        n = self.select(logits)
        for i in range(n):
            self.adjusted[i] = self.candidates[i].logit
        mode = begin_floats()
        table.exp(self.adjusted, self.candidates[0].logit, <float>min(1.0 / self.temperature, 1e30), n,
                  self.probabilities)
        end_floats(mode)
        kept = n
        if self.top_p < 1.0:
            total = 0
            for i in range(n):
                total += self.probabilities[i]
            limit = self.top_p * total
            running = 0
            for i in range(n):
                running += self.probabilities[i]
                if running >= limit:
                    kept = i + 1
                    break
        if self.min_p > 0.0:
            while kept > 1 and self.probabilities[kept - 1] < self.min_p * self.probabilities[0]:
                kept -= 1
        while self.masked and kept > 1 and self.probabilities[kept - 1] == 0:
            kept -= 1
        total = 0
        for i in range(kept):
            total += self.probabilities[i]
        self.kept = kept
        limit = self.uniform() * total
        running = 0
        for i in range(kept - 1):
            running += self.probabilities[i]
            if running > limit:
                return self.candidates[i].token
        return self.candidates[kept - 1].token

    cdef int32_t select(self, const float *logits) noexcept nogil:
        """Put the top_k candidates in order, and return how many there are."""
        cdef int32_t i, n = self.top_k
        cdef Candidate next
        for i in range(n):
            self.candidates[i].logit = number(logits[i])
            self.candidates[i].token = i
        if n < self.vocab_size:
            for i in range(n // 2 - 1, -1, -1):
                sift_down(self.candidates, n, i)
            for i in range(n, self.vocab_size):
                next.logit = number(logits[i])
                next.token = i
                if before(&next, &self.candidates[0]):
                    self.candidates[0] = next
                    sift_down(self.candidates, n, 0)
        qsort(self.candidates, n, sizeof(Candidate), compare)
        return n

    def note(self, tokens) -> None:
        """Note the tokens of a prompt."""
        for token in tokens:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token {token} is not in a vocabulary of {self.vocab_size}")
            self.recent[self.n_recent % RECENT] = token
            self.n_recent += 1

    def imitate(self, Sampler other not None) -> None:
        """Go on as another one would, which was made with the same settings; their vocabularies may differ in size."""
        memcpy(self.state, other.state, sizeof(self.state))
        memcpy(self.recent, other.recent, sizeof(self.recent))
        self.n_recent = other.n_recent
        if self.counts != NULL and other.counts != NULL:
            memcpy(self.counts, other.counts, 4 * <size_t>min(self.vocab_size, other.vocab_size))

    def drawn_from(self) -> tuple[list[int], list[float]]:
        """Return the tokens that the last one was drawn from, the likeliest first, and their probabilities."""
        cdef double total = 0
        for i in range(self.kept):
            total += self.probabilities[i]
        return ([self.candidates[i].token for i in range(self.kept)],
                [self.probabilities[i] / total for i in range(self.kept)])

    def allow(self, mask) -> None:
        """Say which tokens may come next, at least one: a bit of uint32 words for each, or None for all."""
        cdef const uint32_t[::1] words
        self.masked = False
        if mask is not None:
            words = mask
            if words.shape[0] < (self.vocab_size + 31) // 32:
                raise ValueError(f"a mask of {words.shape[0]} words does not fit a vocabulary of {self.vocab_size}")
            memcpy(self.mask, &words[0], 4 * ((<size_t>self.vocab_size + 31) // 32))
            self.masked = True

    def choose(self, const float[::1] logits) -> int:
        """Choose a token from logits, shape (vocab_size,), and note it."""
        if logits.shape[0] != self.vocab_size:
            raise ValueError(f"{logits.shape[0]} logits do not fit a vocabulary of {self.vocab_size}")
        token = self.sample(&logits[0])
        self.remember(token)
        return token
