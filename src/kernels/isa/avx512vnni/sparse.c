/*
 * AVX-512 VNNI, channel-major. The fields are masked and not shifted down: field f is summed as 4**f times its value,
 * at most 2 * 64 * 128 * 2**16 = 2**30 in a part, and shifted at the end.
 */
#include "simd.h"

#define LB_ISA avx512vnni
#define LB_WIDTH 64
#include "../inline.h"

#include <string.h>

typedef __m512i vec;
typedef __m512i four_q;

LB_INLINE vec load(const uint8_t *p) { return _mm512_loadu_si512(p); }
LB_INLINE vec zip8_low(vec a, vec b) { return _mm512_unpacklo_epi8(a, b); }
LB_INLINE vec zip8_high(vec a, vec b) { return _mm512_unpackhi_epi8(a, b); }
LB_INLINE vec zip16_low(vec a, vec b) { return _mm512_unpacklo_epi16(a, b); }
LB_INLINE vec zip16_high(vec a, vec b) { return _mm512_unpackhi_epi16(a, b); }
LB_INLINE vec no_sums(void) { return _mm512_setzero_si512(); }
LB_INLINE vec load_acc(const int32_t *p) { return _mm512_loadu_si512(p); }
LB_INLINE void store_acc(int32_t *p, vec a) { _mm512_storeu_si512(p, a); }

LB_INLINE four_q broadcast4(const int8_t *q) {
    int32_t four;
    memcpy(&four, q, sizeof four);
    return _mm512_set1_epi32(four);
}

LB_INLINE vec field_of(vec v, const int f) { return _mm512_and_si512(v, _mm512_set1_epi8((char)(3 << (2 * f)))); }

LB_INLINE vec dot_eight(vec acc, vec a, four_q qa, vec b, four_q qb) {
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(acc, a, qa), b, qb);
}

/* Four registers hold a piece of four sums each. */
LB_INLINE i32x16 load_sums(const int32_t *acc, const int field) {
    __m512i s = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)acc));
    s = _mm512_inserti32x4(s, _mm_loadu_si128((const __m128i *)(acc + 16)), 1);
    s = _mm512_inserti32x4(s, _mm_loadu_si128((const __m128i *)(acc + 32)), 2);
    s = _mm512_inserti32x4(s, _mm_loadu_si128((const __m128i *)(acc + 48)), 3);
    return _mm512_srai_epi32(s, (unsigned)(2 * field));
}

#include "../sparse_simd.h"
#include "../sparse_template.h"
#include "../transpose_sse2.h"
#include "../transpose_template.h"
