/*
 * AVX2, channel-major. Field f is taken as 4**f times its code, but field 3 is shifted down: with eight channels, an
 * int16 lane of vpmaddubsw sums adds up four products of at most 32 * 128, 2**14, and field 3 would not fit. A part of
 * 2**16 channels sums to at most 32 * 128 * 2**16 = 2**28.
 */
#define LB_ISA avx2
#include "sparse_registers.h"

LB_INLINE vec field_of(vec v, const int f) {
    if (f == 3) return _mm256_and_si256(_mm256_srli_epi16(v, 6), _mm256_set1_epi8(3));
    return _mm256_and_si256(v, _mm256_set1_epi8((char)(3 << (2 * f))));
}

LB_INLINE vec dot_eight(vec acc, vec a, four_q qa, vec b, four_q qb) {
    const __m256i sums16 = _mm256_add_epi16(_mm256_maddubs_epi16(a, qa), _mm256_maddubs_epi16(b, qb));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(sums16, _mm256_set1_epi16(1)));
}

LB_INLINE i32x16 load_sums(const int32_t *acc, const int field) { return load_pieces(acc, field == 3 ? 0 : 2 * field); }

#include "../sparse_simd.h"
#include "../sparse_template.h"
#include "../transpose_sse2.h"
#include "../transpose_template.h"
