/* Registers of 32 bytes for sparse_simd.h: all but the dot product. */
#ifndef LB_SPARSE_REGISTERS_H
#define LB_SPARSE_REGISTERS_H

#include <string.h>

#include "../inline.h"
#include "simd.h"

#define LB_WIDTH 32

typedef __m256i vec;
typedef __m256i four_q;

LB_INLINE vec load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
LB_INLINE vec zip8_low(vec a, vec b) { return _mm256_unpacklo_epi8(a, b); }
LB_INLINE vec zip8_high(vec a, vec b) { return _mm256_unpackhi_epi8(a, b); }
LB_INLINE vec zip16_low(vec a, vec b) { return _mm256_unpacklo_epi16(a, b); }
LB_INLINE vec zip16_high(vec a, vec b) { return _mm256_unpackhi_epi16(a, b); }
LB_INLINE vec no_sums(void) { return _mm256_setzero_si256(); }
LB_INLINE vec load_acc(const int32_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
LB_INLINE void store_acc(int32_t *p, vec a) { _mm256_storeu_si256((__m256i *)p, a); }

LB_INLINE four_q broadcast4(const int8_t *q) {
    int32_t four;
    memcpy(&four, q, sizeof four);
    return _mm256_set1_epi32(four);
}

/* Four registers hold a piece of four sums each; they are 2**shift times the sums. */
LB_INLINE i32x16 load_pieces(const int32_t *acc, const int shift) {
    const __m128i *p = (const __m128i *)acc;
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(p)), _mm_loadu_si128(p + 2), 1),
                  high = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(p + 4)), _mm_loadu_si128(p + 6),
                                                 1);
    return (i32x16){_mm256_srai_epi32(low, shift), _mm256_srai_epi32(high, shift)};
}

#endif
