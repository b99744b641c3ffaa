/* lb_transpose_word with registers of 16 bytes, for every instruction set that has SSE2. */
#ifndef LB_TRANSPOSE_SSE2_H
#define LB_TRANSPOSE_SSE2_H

#include <emmintrin.h>

#include "transpose.h"

#define LB_TRANSPOSE_WORD lb_transpose_word_sse2

static inline void lb_transpose_word_sse2(const uint8_t *const from[4][4], uint8_t *const to[4]) {
    const __m128i pairs = _mm_set1_epi8(0x33), low = _mm_set1_epi8(0x0f);
    __m128i t[4][4]; /* [row group][byte of the word] */
    for (int b = 0; b < 4; b++) {
        __m128i s[4];
        for (int f = 0; f < 4; f++) s[f] = _mm_loadu_si128((const __m128i *)from[b][f]);
        const __m128i even = _mm_or_si128(_mm_and_si128(s[0], pairs), _mm_slli_epi16(_mm_and_si128(s[1], pairs), 2)),
                      odd = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(s[0], 2), pairs), _mm_andnot_si128(pairs, s[1])),
                      even2 = _mm_or_si128(_mm_and_si128(s[2], pairs), _mm_slli_epi16(_mm_and_si128(s[3], pairs), 2)),
                      odd2 = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(s[2], 2), pairs), _mm_andnot_si128(pairs, s[3]));
        t[0][b] = _mm_or_si128(_mm_and_si128(even, low), _mm_slli_epi16(_mm_and_si128(even2, low), 4));
        t[1][b] = _mm_or_si128(_mm_and_si128(odd, low), _mm_slli_epi16(_mm_and_si128(odd2, low), 4));
        t[2][b] = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(even, 4), low), _mm_andnot_si128(low, even2));
        t[3][b] = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(odd, 4), low), _mm_andnot_si128(low, odd2));
    }
    for (int g = 0; g < 4; g++) {
        const __m128i ab = _mm_unpacklo_epi8(t[g][0], t[g][1]), ab2 = _mm_unpackhi_epi8(t[g][0], t[g][1]),
                      cd = _mm_unpacklo_epi8(t[g][2], t[g][3]), cd2 = _mm_unpackhi_epi8(t[g][2], t[g][3]);
        __m128i *out = (__m128i *)to[g];
        _mm_storeu_si128(out, _mm_unpacklo_epi16(ab, cd));
        _mm_storeu_si128(out + 1, _mm_unpackhi_epi16(ab, cd));
        _mm_storeu_si128(out + 2, _mm_unpacklo_epi16(ab2, cd2));
        _mm_storeu_si128(out + 3, _mm_unpackhi_epi16(ab2, cd2));
    }
}

#endif
