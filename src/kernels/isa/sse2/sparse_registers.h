/* Registers of 16 bytes for sparse_simd.h: all but the dot product. */
#ifndef LB_SPARSE_REGISTERS_H
#define LB_SPARSE_REGISTERS_H

#include <string.h>

#include "../inline.h"
#include "simd.h"

#define LB_WIDTH 16

typedef __m128i vec;

LB_INLINE vec load(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)p); }
LB_INLINE vec zip8_low(vec a, vec b) { return _mm_unpacklo_epi8(a, b); }
LB_INLINE vec zip8_high(vec a, vec b) { return _mm_unpackhi_epi8(a, b); }
LB_INLINE vec zip16_low(vec a, vec b) { return _mm_unpacklo_epi16(a, b); }
LB_INLINE vec zip16_high(vec a, vec b) { return _mm_unpackhi_epi16(a, b); }
LB_INLINE vec no_sums(void) { return _mm_setzero_si128(); }
LB_INLINE vec load_acc(const int32_t *p) { return _mm_loadu_si128((const __m128i *)p); }
LB_INLINE void store_acc(int32_t *p, vec a) { _mm_storeu_si128((__m128i *)p, a); }

/* The sums are 2**shift times their value. */
LB_INLINE i32x16 load_shifted(const int32_t *acc, const int shift) {
    i32x16 s = vi_load(acc);
    for (int v = 0; v < 4; v++) s.v[v] = _mm_srai_epi32(s.v[v], shift);
    return s;
}

#endif
