/* Sixteen lanes in four 128-bit registers. SSE2 has no instruction for float16: the formulas of half.h, by lanes. */
#ifndef LB_SIMD_H
#define LB_SIMD_H

#include <emmintrin.h>
#include <stdint.h>

#include "half.h"

typedef struct {
    __m128 v[4];
} f32x16;
typedef struct {
    __m128i v[4];
} i32x16;

#define LB_FOUR(type, f, x) ((type){{f((x).v[0]), f((x).v[1]), f((x).v[2]), f((x).v[3])}})
#define LB_FOUR2(type, f, x, y) \
    ((type){{f((x).v[0], (y).v[0]), f((x).v[1], (y).v[1]), f((x).v[2], (y).v[2]), f((x).v[3], (y).v[3])}})

static inline f32x16 v_load(const float *p) {
    return (f32x16){{_mm_loadu_ps(p), _mm_loadu_ps(p + 4), _mm_loadu_ps(p + 8), _mm_loadu_ps(p + 12)}};
}
static inline void v_store(float *p, f32x16 x) {
    _mm_storeu_ps(p, x.v[0]);
    _mm_storeu_ps(p + 4, x.v[1]);
    _mm_storeu_ps(p + 8, x.v[2]);
    _mm_storeu_ps(p + 12, x.v[3]);
}
static inline f32x16 v_set1(float x) {
    const __m128 all = _mm_set1_ps(x);
    return (f32x16){{all, all, all, all}};
}
static inline f32x16 v_add(f32x16 x, f32x16 y) { return LB_FOUR2(f32x16, _mm_add_ps, x, y); }
static inline f32x16 v_sub(f32x16 x, f32x16 y) { return LB_FOUR2(f32x16, _mm_sub_ps, x, y); }
static inline f32x16 v_mul(f32x16 x, f32x16 y) { return LB_FOUR2(f32x16, _mm_mul_ps, x, y); }
static inline f32x16 v_div(f32x16 x, f32x16 y) { return LB_FOUR2(f32x16, _mm_div_ps, x, y); }
static inline f32x16 v_max(f32x16 x, f32x16 y) { return LB_FOUR2(f32x16, _mm_max_ps, x, y); }
static inline f32x16 v_min(f32x16 x, f32x16 y) { return LB_FOUR2(f32x16, _mm_min_ps, x, y); }
static inline __m128 v_abs_quarter(__m128 x) { return _mm_andnot_ps(_mm_set1_ps(-0.0f), x); }
static inline f32x16 v_abs(f32x16 x) { return LB_FOUR(f32x16, v_abs_quarter, x); }
static inline __m128 v_larger_quarter(__m128 x, __m128 y) { return _mm_max_ps(v_abs_quarter(y), x); }
/* The larger of x, a magnitude, and that of y; what is no number is larger than all others, and may be negative. It
 * makes no maximum by itself: it is set in by hand, two registers at a time, and stays as the second operand. */
static inline f32x16 v_larger(f32x16 x, f32x16 y) {
    f32x16 r = LB_FOUR2(f32x16, v_larger_quarter, x, y);
    r.v[0] = _mm_or_ps(r.v[0], _mm_cmpunord_ps(y.v[0], y.v[1]));
    r.v[2] = _mm_or_ps(r.v[2], _mm_cmpunord_ps(y.v[2], y.v[3]));
    return r;
}
/* y where x >= limit, else 0 */
static inline f32x16 v_keep_from(f32x16 y, f32x16 x, f32x16 limit) {
    const f32x16 keep = LB_FOUR2(f32x16, _mm_cmpge_ps, x, limit);
    return LB_FOUR2(f32x16, _mm_and_ps, y, keep);
}
/* Float16 in the upper halves of 32-bit lanes. Read as a float its exponent is 112 too small, for normal numbers as for
 * subnormals, so a multiplication by 2**112 is exact; Inf and NaN then get their exponent of ones. */
static inline __m128 v_from_half(__m128i h) {
    const __m128i moved = _mm_and_si128(_mm_srai_epi32(h, 3), _mm_set1_epi32((int32_t)0x8fffe000));
    const __m128 value = _mm_mul_ps(_mm_castsi128_ps(moved), _mm_castsi128_ps(_mm_set1_epi32((112 + 127) << 23)));
    const __m128i rest = _mm_and_si128(h, _mm_set1_epi32(0x7fff0000));
    const __m128i ones = _mm_and_si128(_mm_cmpgt_epi32(rest, _mm_set1_epi32(0x7bffffff)), _mm_set1_epi32(0x7f800000));
    return _mm_or_ps(value, _mm_castsi128_ps(ones));
}
static inline f32x16 v_load_f16(const uint16_t *p) {
    const __m128i zero = _mm_setzero_si128(), a = _mm_loadu_si128((const __m128i *)p),
                  b = _mm_loadu_si128((const __m128i *)(p + 8));
    return (f32x16){{v_from_half(_mm_unpacklo_epi16(zero, a)), v_from_half(_mm_unpackhi_epi16(zero, a)),
                     v_from_half(_mm_unpacklo_epi16(zero, b)), v_from_half(_mm_unpackhi_epi16(zero, b))}};
}
static inline void v_store_f16(uint16_t *p, f32x16 x) {
    float all[16];
    v_store(all, x);
    for (int i = 0; i < 16; i++) p[i] = lb_float_to_half(all[i]);
}
static inline f32x16 v_load_bf16(const uint16_t *p) {
    const __m128i zero = _mm_setzero_si128(), a = _mm_loadu_si128((const __m128i *)p),
                  b = _mm_loadu_si128((const __m128i *)(p + 8));
    return (f32x16){{_mm_castsi128_ps(_mm_unpacklo_epi16(zero, a)), _mm_castsi128_ps(_mm_unpackhi_epi16(zero, a)),
                     _mm_castsi128_ps(_mm_unpacklo_epi16(zero, b)), _mm_castsi128_ps(_mm_unpackhi_epi16(zero, b))}};
}
/* The high byte of each 32-bit lane, with its sign. */
static inline __m128 v_from_high_byte(__m128i x) { return _mm_cvtepi32_ps(_mm_srai_epi32(x, 24)); }
static inline f32x16 v_load_i8(const int8_t *p) {
    const __m128i zero = _mm_setzero_si128(), bytes = _mm_loadu_si128((const __m128i *)p),
                  a = _mm_unpacklo_epi8(zero, bytes), b = _mm_unpackhi_epi8(zero, bytes);
    return (f32x16){{v_from_high_byte(_mm_unpacklo_epi16(zero, a)), v_from_high_byte(_mm_unpackhi_epi16(zero, a)),
                     v_from_high_byte(_mm_unpacklo_epi16(zero, b)), v_from_high_byte(_mm_unpackhi_epi16(zero, b))}};
}

/* The lanes as a binary tree: the upper half onto the lower one, four times. */
#define LB_TREE(f, x)                                                 \
    __m128 quarter = f(f((x).v[0], (x).v[2]), f((x).v[1], (x).v[3])); \
    quarter = f(quarter, _mm_movehl_ps(quarter, quarter));            \
    return _mm_cvtss_f32(f(quarter, _mm_shuffle_ps(quarter, quarter, 1)))
static inline float v_sum(f32x16 x) { LB_TREE(_mm_add_ps, x); }
static inline float v_most(f32x16 x) { LB_TREE(_mm_max_ps, x); }

static inline i32x16 vi_load(const int32_t *p) {
    const __m128i *q = (const __m128i *)p;
    return (i32x16){{_mm_loadu_si128(q), _mm_loadu_si128(q + 1), _mm_loadu_si128(q + 2), _mm_loadu_si128(q + 3)}};
}
static inline void vi_store(int32_t *p, i32x16 x) {
    __m128i *q = (__m128i *)p;
    _mm_storeu_si128(q, x.v[0]);
    _mm_storeu_si128(q + 1, x.v[1]);
    _mm_storeu_si128(q + 2, x.v[2]);
    _mm_storeu_si128(q + 3, x.v[3]);
}
static inline i32x16 vi_set1(int32_t x) {
    const __m128i all = _mm_set1_epi32(x);
    return (i32x16){{all, all, all, all}};
}
static inline i32x16 vi_add(i32x16 x, i32x16 y) { return LB_FOUR2(i32x16, _mm_add_epi32, x, y); }
static inline f32x16 v_from_i32(i32x16 x) { return LB_FOUR(f32x16, _mm_cvtepi32_ps, x); }
/* nearest integer, ties to even */
static inline i32x16 vi_round(f32x16 x) { return LB_FOUR(i32x16, _mm_cvtps_epi32, x); }
static inline __m128 v_pow2_quarter(__m128i x) {
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_add_epi32(x, _mm_set1_epi32(127)), 23));
}
/* 2**x for -126 <= x <= 127 */
static inline f32x16 v_pow2(i32x16 x) { return LB_FOUR(f32x16, v_pow2_quarter, x); }
static inline void vi_store_i8(int8_t *p, i32x16 x) {
    const __m128i a = _mm_packs_epi32(x.v[0], x.v[1]), b = _mm_packs_epi32(x.v[2], x.v[3]);
    _mm_storeu_si128((__m128i *)p, _mm_packs_epi16(a, b));
}

#endif
