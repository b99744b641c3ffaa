/*
 * AVX-512 VNNI. vpdpbusd multiplies four unsigned bytes (codes) by four signed bytes (activations) in each 32-bit
 * lane and adds the sum to the lane, in int32 and without saturation. One 64-byte read of U2 codes holds 16 columns
 * of 16 rows; a mask per field separates them:
 *
 *     bits of a byte   7 6 | 5 4 | 3 2 | 1 0
 *     field             3     2     1     0      columns 4*W*field + 4*t + byte
 *
 * For one token the fields are not shifted down: field f is summed as 4**f times its value in an accumulator of its
 * own, and the sums are shifted once at the end. That halves the work on the vector ports. The largest sum is
 * 3 * 64 * 128 * n_cols / 4 < 2**31 for n_cols <= 2**18, which packing enforces.
 */
#include "simd.h"

#define LB_NAME(f) f##__avx512vnni
#define LB_TILE 16
#define LB_FLOAT_TILE 8
#define LB_U8_OFFSET 128
#include "../matmul_template.h"

LB_INLINE __m512i dot4(__m512i acc, __m512i codes, const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm512_dpbusd_epi32(acc, codes, _mm512_set1_epi32(four));
}

LB_INLINE void u2_tile_1(const uint8_t *w, lb_run run, const int8_t *x, __m512i *acc) {
    const __m512i low = _mm512_set1_epi8(3);
    const __m512i m1 = _mm512_slli_epi16(low, 2), m2 = _mm512_slli_epi16(low, 4), m3 = _mm512_slli_epi16(low, 6);
    __m512i a0 = acc[0], a1 = _mm512_setzero_si512(), a2 = a1, a3 = a1;
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail, field = 4 * words;
        for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
            const __m512i v = _mm512_loadu_si512(w);
            _mm_prefetch((const char *)w + LB_AHEAD, _MM_HINT_T0);
            a0 = dot4(a0, _mm512_and_si512(v, low), x);
            a1 = dot4(a1, _mm512_and_si512(v, m1), x + field);
            a2 = dot4(a2, _mm512_and_si512(v, m2), x + 2 * field);
            a3 = dot4(a3, _mm512_and_si512(v, m3), x + 3 * field);
        }
        x += 3 * field;
    }
    a0 = _mm512_add_epi32(a0, _mm512_srai_epi32(a1, 2));
    a2 = _mm512_add_epi32(_mm512_srai_epi32(a2, 4), _mm512_srai_epi32(a3, 6));
    acc[0] = _mm512_add_epi32(a0, a2);
}

LB_INLINE void u2_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    if (tokens == 1) {
        u2_tile_1(w, run, x, acc);
        return;
    }
    const __m512i low = _mm512_set1_epi8(3);
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail, field = 4 * words;
        for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
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

LB_INLINE void u4_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail, field = 4 * words;
        for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
            const __m512i v = _mm512_loadu_si512(w);
            const __m512i c0 = _mm512_and_si512(v, low), c1 = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
            for (int j = 0; j < tokens; j++) {
                acc[j] = dot4(acc[j], c0, x + j * stride);
                acc[j] = dot4(acc[j], c1, x + j * stride + field);
            }
        }
        x += field;
    }
}

/* U8 sums stay below 255 * 128 * group_cols < 2**31 for group_cols <= 2**16. */
LB_INLINE void u8_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    const int32_t words = run.full * run.words + run.tail;
    for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
        const __m512i v = _mm512_loadu_si512(w);
        if (tokens == 1) _mm_prefetch((const char *)w + LB_AHEAD, _MM_HINT_T0);
        for (int j = 0; j < tokens; j++) acc[j] = dot4(acc[j], v, x + j * stride);
    }
}

LB_INT_MATMUL(lb_matmul_u2, LB_U2, 1, u2_tile)
LB_INT_MATMUL(lb_matmul_u4, LB_U4, 8, u4_tile)
LB_INT_MATMUL(lb_matmul_u8, LB_U8, LB_U8_OFFSET, u8_tile)
LB_FLOAT_MATMUL(lb_matmul_f32, LB_F32)
LB_FLOAT_MATMUL(lb_matmul_f16, LB_F16)
LB_FLOAT_MATMUL(lb_matmul_bf16, LB_BF16)
LB_DOT_PEAK(u8_tile)
