/* Sixteen lanes in two 256-bit registers. */
#ifndef LB_SIMD_H
#define LB_SIMD_H

#include <immintrin.h>
#include <stdint.h>

typedef struct {
    __m256 a, b;
} f32x16;
typedef struct {
    __m256i a, b;
} i32x16;

#define LB_BOTH(f, x, y) ((f32x16){f((x).a, (y).a), f((x).b, (y).b)})

static inline f32x16 v_load(const float *p) { return (f32x16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void v_store(float *p, f32x16 x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
static inline f32x16 v_set1(float x) { return (f32x16){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline f32x16 v_add(f32x16 x, f32x16 y) { return LB_BOTH(_mm256_add_ps, x, y); }
static inline f32x16 v_sub(f32x16 x, f32x16 y) { return LB_BOTH(_mm256_sub_ps, x, y); }
static inline f32x16 v_mul(f32x16 x, f32x16 y) { return LB_BOTH(_mm256_mul_ps, x, y); }
static inline f32x16 v_div(f32x16 x, f32x16 y) { return LB_BOTH(_mm256_div_ps, x, y); }
static inline f32x16 v_max(f32x16 x, f32x16 y) { return LB_BOTH(_mm256_max_ps, x, y); }
static inline f32x16 v_min(f32x16 x, f32x16 y) { return LB_BOTH(_mm256_min_ps, x, y); }
static inline f32x16 v_abs(f32x16 x) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return (f32x16){_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
static inline __m256 v_larger_half(__m256 x, __m256 y) {
    const __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(y), _mm256_set1_epi32(0x7fffffff));
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(x), magnitude));
}
/* The larger of x, a magnitude, and that of y; what is no number is larger than all others. */
static inline f32x16 v_larger(f32x16 x, f32x16 y) { return LB_BOTH(v_larger_half, x, y); }
/* y where x >= limit, else 0 */
static inline f32x16 v_keep_from(f32x16 y, f32x16 x, f32x16 limit) {
    return (f32x16){_mm256_and_ps(y.a, _mm256_cmp_ps(x.a, limit.a, _CMP_GE_OQ)),
                    _mm256_and_ps(y.b, _mm256_cmp_ps(x.b, limit.b, _CMP_GE_OQ))};
}
static inline f32x16 v_load_f16(const uint16_t *p) {
    return (f32x16){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                    _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
static inline void v_store_f16(uint16_t *p, f32x16 x) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline __m256 v_widen_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
static inline f32x16 v_load_bf16(const uint16_t *p) { return (f32x16){v_widen_bf16(p), v_widen_bf16(p + 8)}; }
static inline __m256 v_widen_i8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
static inline f32x16 v_load_i8(const int8_t *p) { return (f32x16){v_widen_i8(p), v_widen_i8(p + 8)}; }

/* The lanes as a binary tree: the upper half onto the lower one, four times. */
#define LB_TREE(f, x)                                                                      \
    const __m256 half = _mm256##f((x).a, (x).b);                                           \
    __m128 quarter = _mm##f(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)); \
    quarter = _mm##f(quarter, _mm_movehl_ps(quarter, quarter));                            \
    return _mm_cvtss_f32(_mm##f(quarter, _mm_movehdup_ps(quarter)))
static inline float v_sum(f32x16 x) { LB_TREE(_add_ps, x); }
static inline float v_most(f32x16 x) { LB_TREE(_max_ps, x); }

static inline i32x16 vi_load(const int32_t *p) {
    return (i32x16){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 8))};
}
static inline void vi_store(int32_t *p, i32x16 x) {
    _mm256_storeu_si256((__m256i *)p, x.a);
    _mm256_storeu_si256((__m256i *)(p + 8), x.b);
}
static inline i32x16 vi_set1(int32_t x) { return (i32x16){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline i32x16 vi_add(i32x16 x, i32x16 y) {
    return (i32x16){_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
}
static inline f32x16 v_from_i32(i32x16 x) { return (f32x16){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
/* nearest integer, ties to even */
static inline i32x16 vi_round(f32x16 x) { return (i32x16){_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
static inline __m256 v_pow2_half(__m256i x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(x, _mm256_set1_epi32(127)), 23));
}
/* 2**x for -126 <= x <= 127 */
static inline f32x16 v_pow2(i32x16 x) { return (f32x16){v_pow2_half(x.a), v_pow2_half(x.b)}; }
static inline void vi_store_i8(int8_t *p, i32x16 x) {
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
    __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i *)p, bytes);
}

/* 32 codes of four bits of sixteen rows become what a table has for them. */
static inline void look_up(const uint8_t *w, const uint8_t *table, uint8_t *codes) {
    const __m256i values = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)table));
    const __m256i low = _mm256_set1_epi8(15);
    for (int i = 0; i < 4 * 64; i += 32) {
        const __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(w + i));
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
        _mm256_storeu_si256((__m256i *)(codes + i), _mm256_shuffle_epi8(values, _mm256_and_si256(v, low)));
        _mm256_storeu_si256((__m256i *)(codes + 4 * 64 + i), _mm256_shuffle_epi8(values, high));
    }
}
#define LB_LOOK_UP look_up

#endif
