/*
 * pmaddwd multiplies four lanes, which are eight codes that need not be taken apart first: three instructions for eight
 * weights. The sum of a span has the product of the row below in its lower eleven bits, with a sign; what is left when
 * these are gone from the sum of all spans is that of the row above.
 *
 * A row of 8-bit codes takes four instructions for four weights.
 */
#include "../sketch.h"
#include "scale.h"

enum { GROUPS = 32, LOW = 32 - 11, QUADS = LB_ROWS / 4, PAIRS = LB_SPAN_COLS / 2 };

LB_INLINE __m64 product(const __m64 *codes, const __m64 *z) { return _mm_madd_pi16(*codes, *z); }

LB_INLINE void add_span(const __m64 *w, const __m64 *z, __m64 *all, __m64 *low) {
    __m64 sum = product(w, z);
    sum = _mm_add_pi32(sum, product(w + 1, z + 1));
    sum = _mm_add_pi32(sum, product(w + 2, z + 2));
    sum = _mm_add_pi32(sum, product(w + 3, z + 3));
    *all = _mm_add_pi32(*all, sum);
    *low = _mm_add_pi32(*low, _mm_srai_pi32(_mm_slli_pi32(sum, LOW), LOW));
}

void LB_NAME(lb_sketch)(const lb_sketch *s, const int16_t *z, int32_t begin, int32_t end, float *y, float *best) {
    const __m64 *codes = (const __m64 *)(const void *)s->codes + (size_t)begin * s->spans * QUADS * PAIRS;
    for (int32_t group = begin; group < end; group++, codes += (size_t)s->spans * QUADS * PAIRS) {
        union {
            __m64 pairs[LB_ROWS / 2];
            int32_t rows[LB_ROWS];
        } sums;
        for (int quad = 0; quad < QUADS; quad++) {
            const __m64 *w = codes + quad * PAIRS, *x = (const __m64 *)(const void *)z;
            __m64 all = _mm_setzero_si64(), low = _mm_setzero_si64();
            int32_t left = s->spans;
            for (; left >= 12; left -= 12, w += 12 * QUADS * PAIRS, x += 12 * PAIRS) {
                LB_ONE_POINTER(w);
                LB_ONE_POINTER(x);
                LB_UNROLL(12)
                for (int i = 0; i < 12; i++) add_span(w + i * QUADS * PAIRS, x + i * PAIRS, &all, &low);
            }
            for (; left > 0; left--, w += QUADS * PAIRS, x += PAIRS) add_span(w, x, &all, &low);
            sums.pairs[2 * quad] = low;
            sums.pairs[2 * quad + 1] = _mm_srai_pi32(_mm_sub_pi32(all, low), 11);
        }
        _mm_empty();
        lb_sketch_values(s, group, sums.rows, y, best);
    }
}

LB_INLINE __m64 add_word(__m64 sum, const uint8_t *w, const __m64 *x, __m64 zero) {
    const __m64 codes = _mm_unpacklo_pi8(_mm_cvtsi32_si64(*(const int32_t *)(const void *)w), zero);
    return _mm_add_pi32(sum, _mm_madd_pi16(codes, *x));
}

float LB_NAME(lb_row_u8)(const lb_matmul_args *args, const int16_t *x, int32_t row) {
    const lb_matrix *m = args->w;
    const lb_activations *a = args->x;
    const int32_t group = row / LB_ROWS, words = m->group_cols / 4;
    const uint8_t *w = m->codes + (size_t)group * m->words * 64 + row % LB_ROWS * 4;
    const __m64 zero = _mm_setzero_si64(), *pairs = (const __m64 *)(const void *)x;
    int32_t sums[GROUPS];
    float y = 0.0f;
    for (int32_t first = 0; first < m->n_groups; first += GROUPS) {
        const int32_t n = m->n_groups - first < GROUPS ? m->n_groups - first : GROUPS;
        for (int32_t i = 0; i < n; i++) {
            int32_t left = first + i == m->n_groups - 1 ? m->words - (first + i) * words : words;
            __m64 sum = _mm_cvtsi32_si64(-128 * a->sum[first + i]);
            for (; left >= 8; left -= 8, w += 8 * 64, pairs += 8) {
                LB_UNROLL(8)
                for (int t = 0; t < 8; t++) sum = add_word(sum, w + 64 * t, pairs + t, zero);
            }
            for (; left > 0; left--, w += 64, pairs++) sum = add_word(sum, w, pairs, zero);
            sums[i] = _mm_cvtsi64_si32(_mm_add_pi32(sum, _mm_srli_si64(sum, 32)));
        }
        _mm_empty();
        for (int32_t i = 0; i < n; i++) {
            y = y + (float)sums[i] * (lb_scale_of(m, row, first + i) * a->scale[first + i]);
        }
    }
    return y;
}
