/* T5 codes by look-ups of bytes; matmul.c says how. */
#ifndef LB_AVX512VBMI_T5_H
#define LB_AVX512VBMI_T5_H

/* What lookups give: all codes c0 + 3 c1 + 9 c2 + 27 c3 as fields of two bits, and 84 c4 for each four bytes. */
#define C0(x) (x), (x) + 1, (x) + 2
#define C1(x) C0(x), C0((x) + 4), C0((x) + 8)
#define C2(x) C1(x), C1((x) + 16), C1((x) + 32)
static const uint8_t u2_of[128] = {C2(0), C2(64), C2(128)};
#define SEVEN(x) x, x, x, x, x, x, x
#define FIFTHS(x) SEVEN(x), SEVEN(x), SEVEN(x)
static const uint8_t fifth_of[64] = {FIFTHS(0), FIFTHS(84), FIFTHS(168)},
                     fifth_code_of[64] = {FIFTHS(0), FIFTHS(1), FIFTHS(2)};

/* The first four codes of each byte, as a word of U2. */
LB_INLINE __m512i t5_four(__m512i v) {
    const __m512i fifth = _mm512_permutexvar_epi8(_mm512_srli_epi16(v, 2), _mm512_loadu_si512(fifth_of));
    return _mm512_permutex2var_epi8(_mm512_loadu_si512(u2_of), _mm512_sub_epi8(v, fifth),
                                    _mm512_loadu_si512(u2_of + 64));
}

/* The fifth codes of up to four words, `apart` words from one another and of `words`, as a word of U2. */
LB_INLINE __m512i t5_fifths(const uint8_t *w, int32_t words, int32_t apart) {
    __m512i fields = _mm512_setzero_si512();
    for (int32_t t = 0, shift = 0; t < words; t += apart, shift += 2) {
        const __m512i quarter = _mm512_srli_epi16(_mm512_loadu_si512(w + 64 * (size_t)t), 2);
        const __m512i code = _mm512_permutexvar_epi8(quarter, _mm512_loadu_si512(fifth_code_of));
        fields = _mm512_or_si512(fields, _mm512_sll_epi16(code, _mm_cvtsi32_si128(shift)));
    }
    return fields;
}

/* Words of T5 as words of U2, and the fifth codes as a quarter more of them. */
LB_INLINE void t5_unpack(const uint8_t *w, int32_t words, uint8_t *codes, uint8_t *fifths) {
    const int32_t n = (words + 3) / 4;
    for (int32_t t = 0; t < words; t++) _mm512_storeu_si512(codes + 64 * t, t5_four(_mm512_loadu_si512(w + 64 * t)));
    for (int32_t t = 0; t < n; t++) _mm512_storeu_si512(fifths + 64 * t, t5_fifths(w + 64 * t, words - t, n));
}

#endif
