/*
 * AVX-512 VBMI, which looks bytes up: T5 codes. A byte b is 84 c4 + p, and 84 is a multiple of four: a table of 64
 * entries gives 84 c4 for b / 4, and one of 128 gives for p = b - 84 c4 what would be a byte of U2. From there on it is
 * the product of AVX-512 VNNI, which also multiplies everything else.
 *
 * For one token 84 c4 is summed as it is, and divided by 84 once at the end: by 4 with a shift, by 21 with the number
 * whose product with 21 is 1 modulo 2**32. The largest sum is 168 * 128 * n_cols / 5 < 2**31 for n_cols <= 2**18.
 */
#include "../avx512vnni/simd.h"

#define LB_ISA avx512vbmi
#define LB_TILE 16
#include "../matmul_template.h"
#include "../streams_template.h"
#include "../avx512vnni/ternary.h"
#include "t5.h"

lb_streams_fn lb_streams__avx512vnni;

enum { FIELDS = 5 };

/* A block of up to four streams `apart` bytes from one another; a[] has the sums of a stream, for each code of a byte.
 */
LB_INLINE void t5_words(const uint8_t *w, size_t apart, const int streams, const int8_t *x, const int8_t *fifth_x,
                        const int32_t words, __m512i a[][FIELDS]) {
    const __m512i fifths = _mm512_loadu_si512(fifth_of), u2_low = _mm512_loadu_si512(u2_of),
                  u2_high = _mm512_loadu_si512(u2_of + 64);
    const __m512i m0 = _mm512_set1_epi8(3), m1 = _mm512_set1_epi8(12), m2 = _mm512_set1_epi8(48),
                  m3 = _mm512_set1_epi8((char)192);
    const int32_t field = 4 * words;
    LB_UNROLL(8)
    for (int32_t t = 0; t < words; t++, w += 64, x += 4, fifth_x += 4) {
        for (int s = 0; s < streams; s++) {
            const uint8_t *ws = w + s * apart;
            if (streams > 1) _mm_prefetch((const char *)((uintptr_t)ws + LB_STREAM_AHEAD), _MM_HINT_T0);
            const __m512i v = _mm512_loadu_si512(ws);
            const __m512i fifth = _mm512_permutexvar_epi8(_mm512_srli_epi16(v, 2), fifths); /* looks at 6 bits */
            const __m512i four = _mm512_permutex2var_epi8(u2_low, _mm512_sub_epi8(v, fifth), u2_high);
            a[s][0] = dot4(a[s][0], _mm512_and_si512(four, m0), x);
            a[s][1] = dot4(a[s][1], _mm512_and_si512(four, m1), x + field);
            a[s][2] = dot4(a[s][2], _mm512_and_si512(four, m2), x + 2 * field);
            a[s][3] = dot4(a[s][3], _mm512_and_si512(four, m3), x + 3 * field);
            a[s][4] = dot4(a[s][4], fifth, fifth_x);
        }
    }
}

LB_INLINE void t5_few(const uint8_t *w, size_t apart, const int streams, lb_run run, const int8_t *x, i32x16 *acc) {
    const int8_t *fifth_x = x + 16 * (8 * run.full + run.tail);
    __m512i a[4][FIELDS];
    for (int s = 0; s < streams; s++) {
        a[s][0] = acc[s];
        for (int f = 1; f < FIELDS; f++) a[s][f] = _mm512_setzero_si512();
    }
    for (int32_t b = 0; b < run.full; b++, w += 8 * 64, x += 128, fifth_x += 32) {
        t5_words(w, apart, streams, x, fifth_x, 8, a);
    }
    if (run.tail == 5) { /* scale groups of 256 columns are 13 words */
        t5_words(w, apart, streams, x, fifth_x, 5, a);
    } else if (run.tail) {
        t5_words(w, apart, streams, x, fifth_x, run.tail, a);
    }
    for (int s = 0; s < streams; s++) {
        const __m512i low = _mm512_add_epi32(a[s][0], _mm512_srai_epi32(a[s][1], 2));
        const __m512i high = _mm512_add_epi32(_mm512_srai_epi32(a[s][2], 4), _mm512_srai_epi32(a[s][3], 6));
        const __m512i fifth = _mm512_mullo_epi32(_mm512_srai_epi32(a[s][4], 2), vi_set1(0x3cf3cf3d));
        acc[s] = _mm512_add_epi32(_mm512_add_epi32(low, high), fifth);
    }
}

LB_INLINE void t5_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    if (tokens == 1) {
        t5_few(w, 0, 1, run, x, acc);
    } else {
        lb_t5_tile(w, run, x, stride, tokens, acc, t5_unpack, u2_tile);
    }
}

LB_TILED_INT_MATMUL(lb_matmul_t5, LB_T5, 1, LB_TILE, t5_tile)

LB_INLINE void t5_streams(const uint8_t *w, size_t apart, int streams, lb_run run, const int8_t *x, i32x16 *acc) {
    if (streams == 4) {
        t5_few(w, apart, 4, run, x, acc);
    } else if (streams == 2) {
        t5_few(w, apart, 2, run, x, acc);
    } else {
        for (int s = 0; s < streams; s++) t5_few(w + s * apart, 0, 1, run, x, acc + s);
    }
}

void LB_NAME(lb_streams)(const lb_matmul_args *args, int32_t streams, int32_t begin, int32_t end) {
    if (args->w->format != LB_T5) {
        lb_streams__avx512vnni(args, streams, begin, end);
        return;
    }
    LB_FOR_UNITS(lb_int_streams(args, row_group, apart, n, LB_T5, 1, t5_streams))
}
