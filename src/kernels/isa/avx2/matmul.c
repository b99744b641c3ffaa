/*
 * AVX2. vpmaddubsw multiplies unsigned bytes (codes) by signed bytes (activations) and adds neighbours into int16,
 * with saturation; a 32-bit lane holds four columns of one row, so it becomes two int16 sums. They are added up in
 * int16 over one block and widened to int32 at its end. A row group is two halves of eight rows.
 *
 * Bounds of the int16 sums over one block:
 *     U2, 128 columns: 32 products of at most 2 * 2 * 128               -> 16,384
 *     U2, one token, fields 1 and 3 left shifted by two bits: 16 of 4 * 512 -> 32,768 = 2**15 only if all
 *         activations are -128 (negative, so it still fits); with +127 it is 32,512
 *     U4, 32 columns: 8 products of at most 2 * 15 * 128                -> 30,720
 *     U8, one product: |w| as unsigned, activation with the sign of w, 2 * 128 * 127 = 32,512; activations of -128
 *         do not occur there (quantisation ends at +-127)
 */
#include "simd.h"

#define LB_NAME(f) f##__avx2
#define LB_TILE 8
#define LB_FLOAT_TILE 2
#define LB_U8_OFFSET 0
#include "../matmul_template.h"

LB_INLINE __m256i broadcast4(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm256_set1_epi32(four);
}

LB_INLINE __m256i load_half(const uint8_t *w, int half) { return _mm256_loadu_si256((const __m256i *)(w + 32 * half)); }

LB_INLINE __m256i widen_add(__m256i acc, __m256i sums16) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(sums16, _mm256_set1_epi16(1)));
}

/* One block for one token; four_a are sums of fields 1 and 3, four times their value. */
LB_INLINE void u2_words(const uint8_t *w, const int8_t *x, const int32_t words, __m256i a[2], __m256i four_a[2]) {
    const __m256i low = _mm256_set1_epi8(3), high = _mm256_set1_epi8(12);
    const int32_t field = 4 * words;
    __m256i s[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()}, four_s[2] = {s[0], s[1]};
    for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
        const __m256i x0 = broadcast4(x), x1 = broadcast4(x + field), x2 = broadcast4(x + 2 * field),
                      x3 = broadcast4(x + 3 * field);
        for (int h = 0; h < 2; h++) {
            const __m256i v = load_half(w, h), u = _mm256_srli_epi16(v, 4);
            s[h] = _mm256_add_epi16(s[h], _mm256_maddubs_epi16(_mm256_and_si256(v, low), x0));
            four_s[h] = _mm256_add_epi16(four_s[h], _mm256_maddubs_epi16(_mm256_and_si256(v, high), x1));
            s[h] = _mm256_add_epi16(s[h], _mm256_maddubs_epi16(_mm256_and_si256(u, low), x2));
            four_s[h] = _mm256_add_epi16(four_s[h], _mm256_maddubs_epi16(_mm256_and_si256(u, high), x3));
        }
    }
    for (int h = 0; h < 2; h++) {
        a[h] = widen_add(a[h], s[h]);
        four_a[h] = widen_add(four_a[h], four_s[h]);
    }
}

LB_INLINE void u2_tile_1(const uint8_t *w, lb_run run, const int8_t *x, i32x16 *acc) {
    __m256i a[2] = {acc->a, acc->b}, four_a[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int32_t b = 0; b < run.full; b++, w += run.words * 64, x += 16 * run.words) {
        u2_words(w, x, run.words, a, four_a);
    }
    if (run.tail) u2_words(w, x, run.tail, a, four_a);
    acc->a = _mm256_add_epi32(a[0], _mm256_srai_epi32(four_a[0], 2));
    acc->b = _mm256_add_epi32(a[1], _mm256_srai_epi32(four_a[1], 2));
}

LB_INLINE void u2_half(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, int half,
                       __m256i *acc) {
    const __m256i low = _mm256_set1_epi8(3);
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail, field = 4 * words;
        __m256i s[LB_TILE];
        for (int j = 0; j < tokens; j++) s[j] = _mm256_setzero_si256();
        for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
            if (half == 0) _mm_prefetch((const char *)w + LB_AHEAD, _MM_HINT_T0);
            const __m256i v = load_half(w, half);
            const __m256i c0 = _mm256_and_si256(v, low), c1 = _mm256_and_si256(_mm256_srli_epi16(v, 2), low),
                          c2 = _mm256_and_si256(_mm256_srli_epi16(v, 4), low),
                          c3 = _mm256_and_si256(_mm256_srli_epi16(v, 6), low);
            for (int j = 0; j < tokens; j++) {
                const int8_t *xj = x + j * stride;
                const __m256i p0 = _mm256_maddubs_epi16(c0, broadcast4(xj)),
                              p1 = _mm256_maddubs_epi16(c1, broadcast4(xj + field)),
                              p2 = _mm256_maddubs_epi16(c2, broadcast4(xj + 2 * field)),
                              p3 = _mm256_maddubs_epi16(c3, broadcast4(xj + 3 * field));
                s[j] = _mm256_add_epi16(_mm256_add_epi16(s[j], p0), _mm256_add_epi16(p1, _mm256_add_epi16(p2, p3)));
            }
        }
        x += 3 * field;
        for (int j = 0; j < tokens; j++) acc[j] = widen_add(acc[j], s[j]);
    }
}

LB_INLINE void u4_half(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, int half,
                       __m256i *acc) {
    const __m256i low = _mm256_set1_epi8(15);
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail, field = 4 * words;
        __m256i s[LB_TILE];
        for (int j = 0; j < tokens; j++) s[j] = _mm256_setzero_si256();
        for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
            const __m256i v = load_half(w, half);
            const __m256i c0 = _mm256_and_si256(v, low), c1 = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
            for (int j = 0; j < tokens; j++) {
                const int8_t *xj = x + j * stride;
                s[j] = _mm256_add_epi16(s[j], _mm256_add_epi16(_mm256_maddubs_epi16(c0, broadcast4(xj)),
                                                               _mm256_maddubs_epi16(c1, broadcast4(xj + field))));
            }
        }
        x += field;
        for (int j = 0; j < tokens; j++) acc[j] = widen_add(acc[j], s[j]);
    }
}

LB_INLINE void u8_half(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, int half,
                       __m256i *acc) {
    const int32_t words = run.full * run.words + run.tail;
    for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
        const __m256i v = _mm256_xor_si256(load_half(w, half), _mm256_set1_epi8(-128)), size = _mm256_abs_epi8(v);
        for (int j = 0; j < tokens; j++) {
            acc[j] = widen_add(acc[j], _mm256_maddubs_epi16(size, _mm256_sign_epi8(broadcast4(x + j * stride), v)));
        }
    }
}

/* Both halves of a row group, one after the other: eight rows, eight tokens and four fields fit the 16 registers. */
#define LB_HALVES(name, half_fn)                                                                           \
    LB_INLINE void name(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, \
                        i32x16 *acc) {                                                                     \
        __m256i part[LB_TILE];                                                                             \
        for (int j = 0; j < tokens; j++) part[j] = acc[j].a;                                               \
        half_fn(w, run, x, stride, tokens, 0, part);                                                       \
        for (int j = 0; j < tokens; j++) acc[j].a = part[j];                                               \
        for (int j = 0; j < tokens; j++) part[j] = acc[j].b;                                               \
        half_fn(w, run, x, stride, tokens, 1, part);                                                       \
        for (int j = 0; j < tokens; j++) acc[j].b = part[j];                                               \
    }

LB_HALVES(u2_tile_many, u2_half)
LB_HALVES(u4_tile, u4_half)
LB_HALVES(u8_tile, u8_half)

LB_INLINE void u2_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    if (tokens == 1) {
        u2_tile_1(w, run, x, acc);
    } else {
        u2_tile_many(w, run, x, stride, tokens, acc);
    }
}

LB_INT_MATMUL(lb_matmul_u2, LB_U2, 1, u2_tile)
LB_INT_MATMUL(lb_matmul_u4, LB_U4, 8, u4_tile)
LB_INT_MATMUL(lb_matmul_u8, LB_U8, LB_U8_OFFSET, u8_tile)
LB_FLOAT_MATMUL(lb_matmul_f32, LB_F32)
LB_FLOAT_MATMUL(lb_matmul_f16, LB_F16)
LB_FLOAT_MATMUL(lb_matmul_bf16, LB_BF16)
LB_DOT_PEAK(u8_tile)
