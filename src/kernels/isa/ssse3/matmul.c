/*
 * SSSE3. pmaddubsw multiplies unsigned bytes (codes) by signed bytes (activations) and adds neighbours into int16,
 * with saturation. A 16-byte read is a word of four rows, a quarter of a row group; a 32-bit lane holds four columns
 * of one row, so it becomes two int16 sums. They are added up in int16 over one block and widened to int32 at its end.
 *
 * For several tokens the codes of a block are unpacked once, into the first cache, where pmaddubsw finds them ready:
 * each token then needs one broadcast per four columns, and its four sums stay in registers.
 *
 * Bounds of the int16 sums over one block:
 *     U2, 128 columns: 32 products of at most 2 * 2 * 128               -> 16,384
 *     U2, one token, fields 1 and 3 left shifted by two bits: 16 of 4 * 512 -> 32,768 = 2**15 only if all
 *         activations are -128 (negative, so it still fits); with +127 it is 32,512
 *     U4, 32 columns: 8 products of at most 2 * 15 * 128                -> 30,720
 *     small codes, two products of 2 * 63 * 128                      -> 32,256
 *     U8, one product: |w| as unsigned, activation with the sign of w, 2 * 128 * 127 = 32,512; activations of -128
 *         do not occur there (quantisation ends at +-127)
 */
#include <tmmintrin.h>

#include "../sse2/simd.h"

#define LB_ISA ssse3
#define LB_TILE 16
#define LB_U8_OFFSET 0
#include "../matmul_template.h"
#include "../streams_template.h"

enum { MAX_WORDS = 8 }; /* of a block */

LB_INLINE void look_up(const uint8_t *w, const uint8_t *table, uint8_t *codes) {
    const __m128i values = _mm_loadu_si128((const __m128i *)(const void *)table), low = _mm_set1_epi8(15);
    for (int i = 0; i < 4 * 64; i += 16) {
        const __m128i v = _mm_loadu_si128((const __m128i *)(const void *)(w + i));
        const __m128i high = _mm_and_si128(_mm_srli_epi16(v, 4), low);
        _mm_storeu_si128((__m128i *)(codes + i), _mm_shuffle_epi8(values, _mm_and_si128(v, low)));
        _mm_storeu_si128((__m128i *)(codes + 4 * 64 + i), _mm_shuffle_epi8(values, high));
    }
}
#define LB_LOOK_UP look_up
#include "../planes_template.h"

LB_INLINE __m128i broadcast4(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm_set1_epi32(four);
}

LB_INLINE __m128i load_quarter(const uint8_t *w, int q) { return _mm_loadu_si128((const __m128i *)(w + 16 * q)); }

LB_INLINE __m128i dot2(__m128i sums16, __m128i codes, __m128i x) {
    return _mm_add_epi16(sums16, _mm_maddubs_epi16(codes, x));
}

LB_INLINE __m128i widen(__m128i sums16) { return _mm_madd_epi16(sums16, _mm_set1_epi16(1)); }

/* U2: fields 1 and 3 are summed as four times their value, so that one shift serves four fields. */
LB_INLINE void one_token(const uint8_t *w, lb_run run, const int8_t *x, i32x16 *acc, const int bits) {
    const int fields = 8 / bits;
    const __m128i low = _mm_set1_epi8((1 << bits) - 1), high = _mm_set1_epi8(12);
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail, field = 4 * words;
        const __m128i zero = _mm_setzero_si128();
        __m128i s[4] = {zero, zero, zero, zero}, four_s[4] = {zero, zero, zero, zero};
        for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
            __m128i four[4];
            for (int f = 0; f < fields; f++) four[f] = broadcast4(x + f * field);
            for (int q = 0; q < 4; q++) {
                const __m128i v = load_quarter(w, q), u = _mm_srli_epi16(v, 4);
                s[q] = dot2(s[q], _mm_and_si128(v, low), four[0]);
                s[q] = dot2(s[q], _mm_and_si128(u, low), four[fields / 2]);
                if (bits == 2) {
                    four_s[q] = dot2(four_s[q], _mm_and_si128(v, high), four[1]);
                    four_s[q] = dot2(four_s[q], _mm_and_si128(u, high), four[3]);
                }
            }
        }
        x += (fields - 1) * field;
        for (int q = 0; q < 4; q++) {
            __m128i sum = widen(s[q]);
            if (bits == 2) sum = _mm_add_epi32(sum, _mm_srai_epi32(widen(four_s[q]), 2));
            acc->v[q] = _mm_add_epi32(acc->v[q], sum);
        }
    }
}

LB_INLINE void many_tokens(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens,
                           i32x16 *acc, const int bits) {
    const int fields = 8 / bits;
    const __m128i low = _mm_set1_epi8((1 << bits) - 1), zero = _mm_setzero_si128();
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail, field = 4 * words;
        __m128i codes[MAX_WORDS][4][4]; /* [word][field][quarter] */
        for (int32_t t = 0; t < words; t++, w += 64) {
            for (int q = 0; q < 4; q++) {
                const __m128i v = load_quarter(w, q);
                for (int f = 0; f < fields; f++) codes[t][f][q] = _mm_and_si128(_mm_srli_epi16(v, bits * f), low);
            }
        }
        for (int j = 0; j < tokens; j++) {
            const int8_t *xj = x + j * stride;
            __m128i s0 = zero, s1 = zero, s2 = zero, s3 = zero;
            for (int32_t t = 0; t < words; t++, xj += 4) {
                for (int f = 0; f < fields; f++) {
                    const __m128i four = broadcast4(xj + f * field);
                    s0 = dot2(s0, codes[t][f][0], four);
                    s1 = dot2(s1, codes[t][f][1], four);
                    s2 = dot2(s2, codes[t][f][2], four);
                    s3 = dot2(s3, codes[t][f][3], four);
                }
            }
            acc[j] = vi_add(acc[j], (i32x16){{widen(s0), widen(s1), widen(s2), widen(s3)}});
        }
        x += fields * field;
    }
}

LB_INLINE __m128i dot4_signed(__m128i acc, __m128i v, __m128i size, __m128i x) {
    return _mm_add_epi32(acc, widen(_mm_maddubs_epi16(size, _mm_sign_epi8(x, v))));
}

LB_INLINE void u8_one_token(const uint8_t *w, lb_run run, const int8_t *x, i32x16 *acc) {
    const int32_t words = run.full * run.words + run.tail;
    for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
        const __m128i four = broadcast4(x);
        for (int q = 0; q < 4; q++) {
            const __m128i v = _mm_xor_si128(load_quarter(w, q), _mm_set1_epi8(-128));
            acc->v[q] = dot4_signed(acc->v[q], v, _mm_abs_epi8(v), four);
        }
    }
}

LB_INLINE void u8_many_tokens(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens,
                              i32x16 *acc) {
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail;
        __m128i v[MAX_WORDS][4], size[MAX_WORDS][4]; /* [word][quarter] */
        for (int32_t t = 0; t < words; t++, w += 64) {
            for (int q = 0; q < 4; q++) {
                v[t][q] = _mm_xor_si128(load_quarter(w, q), _mm_set1_epi8(-128));
                size[t][q] = _mm_abs_epi8(v[t][q]);
            }
        }
        for (int j = 0; j < tokens; j++) {
            const int8_t *xj = x + j * stride;
            __m128i s0 = acc[j].v[0], s1 = acc[j].v[1], s2 = acc[j].v[2], s3 = acc[j].v[3];
            for (int32_t t = 0; t < words; t++, xj += 4) {
                const __m128i four = broadcast4(xj);
                s0 = dot4_signed(s0, v[t][0], size[t][0], four);
                s1 = dot4_signed(s1, v[t][1], size[t][1], four);
                s2 = dot4_signed(s2, v[t][2], size[t][2], four);
                s3 = dot4_signed(s3, v[t][3], size[t][3], four);
            }
            acc[j] = (i32x16){{s0, s1, s2, s3}};
        }
        x += 4 * words;
    }
}

/* Codes below 64, in an even number of words: two products of a pair fit int16. */
LB_INLINE void small_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens,
                          i32x16 *acc) {
    for (int32_t t = 0; t < run.words; t += 2, w += 128, x += 8) {
        for (int j = 0; j < tokens; j++) {
            const __m128i four = broadcast4(x + j * stride), next = broadcast4(x + j * stride + 4);
            for (int q = 0; q < 4; q++) {
                const __m128i sums16 = dot2(_mm_maddubs_epi16(load_quarter(w, q), four), load_quarter(w + 64, q), next);
                acc[j].v[q] = _mm_add_epi32(acc[j].v[q], widen(sums16));
            }
        }
    }
}

LB_INLINE void u2_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    if (tokens == 1) {
        one_token(w, run, x, acc, 2);
    } else {
        many_tokens(w, run, x, stride, tokens, acc, 2);
    }
}

LB_INLINE void u4_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    if (tokens == 1) {
        one_token(w, run, x, acc, 4);
    } else {
        many_tokens(w, run, x, stride, tokens, acc, 4);
    }
}

LB_INLINE void u8_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    if (tokens == 1) {
        u8_one_token(w, run, x, acc);
    } else {
        u8_many_tokens(w, run, x, stride, tokens, acc);
    }
}

LB_INT_MATMUL(lb_matmul_u2, LB_U2, 1, u2_tile)
LB_INT_MATMUL(lb_matmul_u4, LB_U4, 8, u4_tile)
LB_INT_MATMUL(lb_matmul_u8, LB_U8, LB_U8_OFFSET, u8_tile)
LB_INT_MATMUL(lb_matmul_u4m, LB_U4M, 0, u4_tile)
LB_INT_MATMUL(lb_matmul_u8m, LB_U8M, LB_U8_OFFSET, u8_tile)
LB_T5_MATMUL(LB_TILE, lb_t5_unpack)
LB_PLANES_MATMUL(0, small_tile)
LB_PLANES_STREAMS(0, small_tile)
LB_STREAMS_BY_TURNS(0)
LB_DOT_PEAK(u8_tile)
