/*
 * SSE2: x86-64 as it began, and 32-bit CPUs since the Pentium 4. The widest product is pmaddwd: pairs of int16 times
 * pairs of int16, added into int32. A 16-byte read is a word of four rows, a quarter of a row group:
 *
 *     int16 lane       7     6   |  5     4   |  3     2   |  1     0
 *     bytes           3 2   1 0  | 3 2   1 0  | 3 2   1 0  | 3 2   1 0
 *                       row 3    |   row 2    |   row 1    |   row 0
 *
 * The low bytes of the lanes ("even": bytes 0 and 2) and the high bytes ("odd": 1 and 3) become int16 codes, which
 * meet the activations of the same two columns; pmaddwd adds the two, so that an int32 lane is a row throughout.
 *
 * For one token the fields are masked but not shifted down: field f of `bits` bits is 2**(bits f) times its code, and
 * its activations are taken 2**(8 - bits - bits f) times, so all fields of a block share one sum, 2**(8 - bits) times
 * the true one. For several tokens the codes of a block are unpacked once, into the first cache.
 *
 * Bounds:
 *     an activation times 64 is at most 8,192, in int16; a U4 or U8 code at most 255, so a pmaddwd is at most
 *         2 * 255 * 128 (U8), 2 * 15 * 16 * 128 (U4), 2 * 2 * 64 * 128 (U2) < 2**17
 *     a block has at most 8 words, 4 fields, 2 halves: < 2**6 * 2**17 = 2**23 before the shift
 *     a scale group: U2 2 * 128 * 2**18 columns = 2**26, U4 15 * 128 * 2**18 < 2**29, U8 255 * 128 * 2**16 < 2**31
 */
#include "simd.h"

#define LB_ISA sse2
#define LB_TILE 16
#define LB_FLOAT_TILE 4
#define LB_U8_OFFSET 128
#include "../matmul_template.h"
#include "../streams_template.h"
#include "../planes_template.h"

enum { MAX_WORDS = 8 }; /* of a block */

LB_INLINE __m128i broadcast4(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm_set1_epi32(four);
}

LB_INLINE __m128i load_quarter(const uint8_t *w, int q) { return _mm_loadu_si128((const __m128i *)(w + 16 * q)); }

/* The low bytes of the 16-bit lanes as int16, times 2**shift. */
LB_INLINE __m128i even_bytes(__m128i x, const int shift) { return _mm_srai_epi16(_mm_slli_epi16(x, 8), 8 - shift); }

LB_INLINE __m128i odd_bytes(__m128i x, const int shift) {
    if (shift) x = _mm_and_si128(x, _mm_set1_epi16((int16_t)0xff00));
    return _mm_srai_epi16(x, 8 - shift);
}

LB_INLINE __m128i dot2(__m128i acc, __m128i codes, __m128i x) { return _mm_add_epi32(acc, _mm_madd_epi16(codes, x)); }

LB_INLINE void one_token(const uint8_t *w, lb_run run, const int8_t *x, i32x16 *acc, const int bits) {
    const int fields = 8 / bits, mask = (1 << bits) - 1;
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail, field = 4 * words;
        __m128i s[4] = {_mm_setzero_si128(), _mm_setzero_si128(), _mm_setzero_si128(), _mm_setzero_si128()};
        for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
            __m128i even_x[4], odd_x[4];
            for (int f = 0; f < fields; f++) {
                const __m128i four = broadcast4(x + f * field);
                even_x[f] = even_bytes(four, 8 - bits - bits * f);
                odd_x[f] = odd_bytes(four, 8 - bits - bits * f);
            }
            for (int q = 0; q < 4; q++) {
                const __m128i v = load_quarter(w, q), odd = _mm_srli_epi16(v, 8);
                for (int f = 0; f < fields; f++) {
                    const __m128i m = _mm_set1_epi16((int16_t)(mask << (bits * f)));
                    s[q] = dot2(s[q], _mm_and_si128(v, m), even_x[f]);
                    s[q] = dot2(s[q], bits == 8 ? odd : _mm_and_si128(odd, m), odd_x[f]);
                }
            }
        }
        x += (fields - 1) * field;
        for (int q = 0; q < 4; q++) acc->v[q] = _mm_add_epi32(acc->v[q], _mm_srai_epi32(s[q], 8 - bits));
    }
}

LB_INLINE void many_tokens(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens,
                           i32x16 *acc, const int bits) {
    const int fields = 8 / bits;
    const __m128i mask = _mm_set1_epi16((int16_t)((1 << bits) - 1));
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail, field = 4 * words;
        __m128i even[MAX_WORDS][4][4], odd[MAX_WORDS][4][4]; /* [word][field][quarter] */
        for (int32_t t = 0; t < words; t++, w += 64) {
            for (int q = 0; q < 4; q++) {
                const __m128i v = load_quarter(w, q);
                for (int f = 0; f < fields; f++) {
                    even[t][f][q] = _mm_and_si128(_mm_srli_epi16(v, bits * f), mask);
                    odd[t][f][q] = _mm_and_si128(_mm_srli_epi16(v, 8 + bits * f), mask);
                }
            }
        }
        for (int j = 0; j < tokens; j++) {
            const int8_t *xj = x + j * stride;
            __m128i s0 = acc[j].v[0], s1 = acc[j].v[1], s2 = acc[j].v[2], s3 = acc[j].v[3];
            for (int32_t t = 0; t < words; t++, xj += 4) {
                for (int f = 0; f < fields; f++) {
                    const __m128i four = broadcast4(xj + f * field);
                    const __m128i even_x = even_bytes(four, 0), odd_x = odd_bytes(four, 0);
                    s0 = dot2(dot2(s0, even[t][f][0], even_x), odd[t][f][0], odd_x);
                    s1 = dot2(dot2(s1, even[t][f][1], even_x), odd[t][f][1], odd_x);
                    s2 = dot2(dot2(s2, even[t][f][2], even_x), odd[t][f][2], odd_x);
                    s3 = dot2(dot2(s3, even[t][f][3], even_x), odd[t][f][3], odd_x);
                }
            }
            acc[j] = (i32x16){{s0, s1, s2, s3}};
        }
        x += fields * field;
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
        one_token(w, run, x, acc, 8);
    } else {
        many_tokens(w, run, x, stride, tokens, acc, 8);
    }
}

LB_INT_MATMUL(lb_matmul_u2, LB_U2, 1, u2_tile)
LB_INT_MATMUL(lb_matmul_u4, LB_U4, 8, u4_tile)
LB_INT_MATMUL(lb_matmul_u8, LB_U8, LB_U8_OFFSET, u8_tile)
LB_INT_MATMUL(lb_matmul_u4m, LB_U4M, 0, u4_tile)
LB_INT_MATMUL(lb_matmul_u8m, LB_U8M, LB_U8_OFFSET, u8_tile)
LB_T5_MATMUL(LB_TILE, lb_t5_unpack)
LB_PLANES_MATMUL(0, u8_tile)
LB_PLANES_STREAMS(0, u8_tile)
LB_STREAMS_BY_TURNS(0)
LB_FLOAT_MATMUL(lb_matmul_f32, LB_F32)
LB_FLOAT_MATMUL(lb_matmul_f16, LB_F16)
LB_FLOAT_MATMUL(lb_matmul_bf16, LB_BF16)
LB_DOT_PEAK(u8_tile)
