/* The product of U2 codes for AVX-512 VNNI; matmul.c says how. */
#ifndef LB_AVX512VNNI_TERNARY_H
#define LB_AVX512VNNI_TERNARY_H

LB_INLINE __m512i dot4(__m512i acc, __m512i codes, const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm512_dpbusd_epi32(acc, codes, _mm512_set1_epi32(four));
}

/*
 * One block for up to four tokens, or for one and up to four streams `apart` bytes from one another; a[] has the sums
 * of the tokens, or of the streams. The usual 8 words are unrolled: the end of a short loop is often mispredicted.
 */
LB_INLINE void u2_words(const uint8_t *w, size_t apart, const int streams, const int8_t *x, ptrdiff_t stride,
                        const int tokens, const int32_t words, __m512i a[][4]) {
    const __m512i low = _mm512_set1_epi8(3);
    const __m512i m1 = _mm512_slli_epi16(low, 2), m2 = _mm512_slli_epi16(low, 4), m3 = _mm512_slli_epi16(low, 6);
    const int32_t field = 4 * words;
    LB_UNROLL(8)
    for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
        for (int s = 0; s < streams; s++) {
            const uint8_t *ws = w + s * apart;
            if (tokens > 1) _mm_prefetch((const char *)ws + LB_AHEAD, _MM_HINT_T0);
            if (streams > 1) _mm_prefetch((const char *)((uintptr_t)ws + LB_STREAM_AHEAD), _MM_HINT_T0);
            const __m512i v = _mm512_loadu_si512(ws);
            const __m512i c0 = _mm512_and_si512(v, low), c1 = _mm512_and_si512(v, m1), c2 = _mm512_and_si512(v, m2),
                          c3 = _mm512_and_si512(v, m3);
            for (int j = 0; j < tokens; j++) {
                const int8_t *xj = x + j * stride;
                a[s + j][0] = dot4(a[s + j][0], c0, xj);
                a[s + j][1] = dot4(a[s + j][1], c1, xj + field);
                a[s + j][2] = dot4(a[s + j][2], c2, xj + 2 * field);
                a[s + j][3] = dot4(a[s + j][3], c3, xj + 3 * field);
            }
        }
    }
}

LB_INLINE void u2_few(const uint8_t *w, size_t apart, const int streams, lb_run run, const int8_t *x, ptrdiff_t stride,
                      const int tokens, i32x16 *acc) {
    const int n = streams * tokens;
    __m512i a[4][4];
    for (int j = 0; j < n; j++) {
        a[j][0] = acc[j];
        a[j][1] = a[j][2] = a[j][3] = _mm512_setzero_si512();
    }
    if (run.words == 8) {
        for (int32_t b = 0; b < run.full; b++, w += 8 * 64, x += 128) {
            u2_words(w, apart, streams, x, stride, tokens, 8, a);
        }
    } else {
        for (int32_t b = 0; b < run.full; b++, w += run.words * 64, x += 16 * run.words) {
            u2_words(w, apart, streams, x, stride, tokens, run.words, a);
        }
    }
    if (run.tail) u2_words(w, apart, streams, x, stride, tokens, run.tail, a);
    for (int j = 0; j < n; j++) {
        const __m512i low = _mm512_add_epi32(a[j][0], _mm512_srai_epi32(a[j][1], 2));
        const __m512i high = _mm512_add_epi32(_mm512_srai_epi32(a[j][2], 4), _mm512_srai_epi32(a[j][3], 6));
        acc[j] = _mm512_add_epi32(low, high);
    }
}

LB_INLINE void u2_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    if (tokens <= 4) {
        u2_few(w, 0, 1, run, x, stride, tokens, acc);
        return;
    }
    const __m512i low = _mm512_set1_epi8(3);
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail, field = 4 * words;
        for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
            _mm_prefetch((const char *)w + LB_AHEAD, _MM_HINT_T0);
            const __m512i v = _mm512_loadu_si512(w);
            const __m512i c0 = _mm512_and_si512(v, low), c1 = _mm512_and_si512(_mm512_srli_epi16(v, 2), low),
                          c2 = _mm512_and_si512(_mm512_srli_epi16(v, 4), low),
                          c3 = _mm512_and_si512(_mm512_srli_epi16(v, 6), low);
            for (int j = 0; j < tokens; j++) {
                const int8_t *xj = x + j * stride;
                acc[j] = dot4(acc[j], c0, xj);
                acc[j] = dot4(acc[j], c1, xj + field);
                acc[j] = dot4(acc[j], c2, xj + 2 * field);
                acc[j] = dot4(acc[j], c3, xj + 3 * field);
            }
        }
        x += 3 * field;
    }
}

#endif
