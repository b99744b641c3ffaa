/*
 * pmaddwd multiplies four lanes, which are eight codes that need not be taken apart first: three instructions for eight
 * weights. The sum of a span has the product of the row below in its lower eleven bits, with a sign; what is left when
 * these are gone from the sum of all spans is that of the row above.
 */
#include "scale.h"

enum { LOW = 32 - 11 };

LB_INLINE __m64 product(const __m64 *codes, const __m64 *z) { return _mm_madd_pi16(*codes, *z); }

void LB_NAME(lb_sketch)(const lb_sketch *s, const int16_t *z, int32_t begin, int32_t end, float *best) {
    enum { QUADS = LB_ROWS / 4, PAIRS = LB_SPAN_COLS / 2 };
    const __m64 *codes = (const __m64 *)(const void *)s->codes + (size_t)begin * s->spans * QUADS * PAIRS;
    for (int32_t group = begin; group < end; group++, codes += (size_t)s->spans * QUADS * PAIRS) {
        const float *scales = s->scales + (size_t)group * LB_ROWS;
        union {
            __m64 pairs[LB_ROWS / 2];
            int32_t rows[LB_ROWS];
        } sums;
        for (int quad = 0; quad < QUADS; quad++) {
            const __m64 *w = codes + quad * PAIRS, *x = (const __m64 *)(const void *)z;
            __m64 all = _mm_setzero_si64(), low = _mm_setzero_si64();
            LB_UNROLL(4)
            for (int32_t span = 0; span < s->spans; span++, w += QUADS * PAIRS, x += PAIRS) {
                __m64 sum = product(w, x);
                sum = _mm_add_pi32(sum, product(w + 1, x + 1));
                sum = _mm_add_pi32(sum, product(w + 2, x + 2));
                sum = _mm_add_pi32(sum, product(w + 3, x + 3));
                all = _mm_add_pi32(all, sum);
                low = _mm_add_pi32(low, _mm_srai_pi32(_mm_slli_pi32(sum, LOW), LOW));
            }
            sums.pairs[2 * quad] = low;
            sums.pairs[2 * quad + 1] = _mm_srai_pi32(_mm_sub_pi32(all, low), 11);
        }
        _mm_empty();
        float most = (float)sums.rows[0] * scales[0];
        LB_UNROLL(16)
        for (int r = 1; r < LB_ROWS; r++) {
            const float one = (float)sums.rows[r] * scales[r];
            most = one > most ? one : most;
        }
        best[group] = most;
    }
}
