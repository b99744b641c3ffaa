/* Sixteen lanes in one 512-bit register. */
#ifndef LB_SIMD_H
#define LB_SIMD_H

#include <immintrin.h>
#include <stdint.h>

typedef __m512 f32x16;
typedef __m512i i32x16;

static inline f32x16 v_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void v_store(float *p, f32x16 a) { _mm512_storeu_ps(p, a); }
static inline f32x16 v_set1(float a) { return _mm512_set1_ps(a); }
static inline f32x16 v_add(f32x16 a, f32x16 b) { return _mm512_add_ps(a, b); }
static inline f32x16 v_sub(f32x16 a, f32x16 b) { return _mm512_sub_ps(a, b); }
static inline f32x16 v_mul(f32x16 a, f32x16 b) { return _mm512_mul_ps(a, b); }
static inline f32x16 v_div(f32x16 a, f32x16 b) { return _mm512_div_ps(a, b); }
static inline f32x16 v_max(f32x16 a, f32x16 b) { return _mm512_max_ps(a, b); }
static inline f32x16 v_min(f32x16 a, f32x16 b) { return _mm512_min_ps(a, b); }
static inline f32x16 v_abs(f32x16 a) { return _mm512_abs_ps(a); }
/* The larger of a, a magnitude, and that of b; what is no number is larger than all others. */
static inline f32x16 v_larger(f32x16 a, f32x16 b) {
    const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(b), _mm512_set1_epi32(0x7fffffff));
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), magnitude));
}
/* a where x >= limit, else 0 */
static inline f32x16 v_keep_from(f32x16 a, f32x16 x, f32x16 limit) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ), a);
}
static inline f32x16 v_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
static inline void v_store_f16(uint16_t *p, f32x16 a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline f32x16 v_load_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
static inline f32x16 v_load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

/* The lanes as a binary tree: the upper half onto the lower one, four times. */
#define LB_TREE(f, x)                                                                      \
    __m256 half = _mm256##f(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));      \
    __m128 quarter = _mm##f(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)); \
    quarter = _mm##f(quarter, _mm_movehl_ps(quarter, quarter));                            \
    return _mm_cvtss_f32(_mm##f(quarter, _mm_movehdup_ps(quarter)))
static inline float v_sum(f32x16 a) { LB_TREE(_add_ps, a); }
static inline float v_most(f32x16 a) { LB_TREE(_max_ps, a); }

static inline i32x16 vi_load(const int32_t *p) { return _mm512_loadu_si512(p); }
static inline void vi_store(int32_t *p, i32x16 a) { _mm512_storeu_si512(p, a); }
static inline i32x16 vi_set1(int32_t a) { return _mm512_set1_epi32(a); }
static inline i32x16 vi_add(i32x16 a, i32x16 b) { return _mm512_add_epi32(a, b); }
static inline f32x16 v_from_i32(i32x16 a) { return _mm512_cvtepi32_ps(a); }
/* nearest integer, ties to even */
static inline i32x16 vi_round(f32x16 a) { return _mm512_cvtps_epi32(a); }
/* 2**a for -126 <= a <= 127 */
static inline f32x16 v_pow2(i32x16 a) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(a, _mm512_set1_epi32(127)), 23));
}
static inline void vi_store_i8(int8_t *p, i32x16 a) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a)); }

#endif
