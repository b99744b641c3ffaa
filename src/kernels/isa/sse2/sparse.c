/*
 * SSE2, channel-major. The low bytes of the int16 lanes (channels 0 and 2 of four) and the high ones (1 and 3) become
 * int16 codes for pmaddwd, which adds the two of an output into its int32 lane. Field f is taken as 4**f times its
 * code: a pmaddwd is at most 2 * 128 * 128, and a part of 2**16 channels sums to at most 2 * 64 * 128 * 2**16 = 2**30.
 */
#define LB_ISA sse2
#include "sparse_registers.h"

typedef struct {
    __m128i even, odd; /* int16 */
} four_q;

LB_INLINE four_q broadcast4(const int8_t *q) {
    int32_t four;
    memcpy(&four, q, sizeof four);
    const __m128i all = _mm_set1_epi32(four);
    return (four_q){_mm_srai_epi16(_mm_slli_epi16(all, 8), 8), _mm_srai_epi16(all, 8)};
}

LB_INLINE vec field_of(vec v, const int f) { return _mm_and_si128(v, _mm_set1_epi8((char)(3 << (2 * f)))); }

LB_INLINE vec dot_four(vec acc, vec codes, four_q q) {
    const __m128i even = _mm_madd_epi16(_mm_and_si128(codes, _mm_set1_epi16(255)), q.even);
    return _mm_add_epi32(acc, _mm_add_epi32(even, _mm_madd_epi16(_mm_srli_epi16(codes, 8), q.odd)));
}

LB_INLINE vec dot_eight(vec acc, vec a, four_q qa, vec b, four_q qb) { return dot_four(dot_four(acc, a, qa), b, qb); }

LB_INLINE i32x16 load_sums(const int32_t *acc, const int field) { return load_shifted(acc, 2 * field); }

#include "../sparse_simd.h"
#include "../sparse_template.h"
#include "../transpose_sse2.h"
#include "../transpose_template.h"
