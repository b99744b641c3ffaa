/*
 * AVX2. vpmaddubsw multiplies unsigned bytes (codes) by signed bytes (activations) and adds neighbours into int16,
 * with saturation; a 32-bit lane holds four columns of one row, so it becomes two int16 sums. They are added up in
 * int16 over one or two blocks and widened to int32 at the end. A row group is two halves of eight rows.
 *
 * A processor that begins two of these products per cycle has to read no more than two operands for them. So a
 * broadcast of four activations serves both halves, and the codes four tokens. For 8 tokens and more, the codes of two
 * blocks are taken apart once, into the first cache.
 *
 * Bounds of the int16 sums:
 *     U2, several tokens, two blocks of 128 columns: 64 products of -2 * 2 * 128 to 2 * 2 * 127 -> -32,768 to 32,512
 *     U2, one token, one block, fields 1 and 3 left shifted by two bits: 16 of 4 * 512 -> 32,768 = 2**15 only if all
 *         activations are -128 (negative, so it still fits); with +127 it is 32,512
 *     U4, 32 columns: 8 products of at most 2 * 15 * 128                -> 30,720
 *     small codes, two products of 2 * 63 * 128                      -> 32,256
 *     U8, one product: |w| as unsigned, activation with the sign of w, 2 * 128 * 127 = 32,512; activations of -128
 *         do not occur there (quantisation ends at +-127)
 */
#include "simd.h"

#define LB_ISA avx2
#define LB_TILE 8
#define LB_FLOAT_TILE 2
#define LB_U8_OFFSET 0
#define LB_LONGEST_TILE 64
#include "../matmul_template.h"
#include "../streams_template.h"
#include "../planes_template.h"

enum { MAX_WORDS = 8 }; /* of a block */

LB_INLINE __m256i broadcast4(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm256_set1_epi32(four);
}

LB_INLINE __m256i load_half(const uint8_t *w, int half) { return _mm256_loadu_si256((const __m256i *)(w + 32 * half)); }

LB_INLINE __m256i widen(__m256i sums16) { return _mm256_madd_epi16(sums16, _mm256_set1_epi16(1)); }
LB_INLINE __m256i widen_add(__m256i acc, __m256i sums16) { return _mm256_add_epi32(acc, widen(sums16)); }

/* Without the barrier GCC adds products as a tree, which takes more registers than there are. */
LB_INLINE __m256i dot2(__m256i sums16, __m256i codes, __m256i x) {
    sums16 = _mm256_add_epi16(sums16, _mm256_maddubs_epi16(codes, x));
#if defined(__GNUC__)
    __asm__("" : "+x"(sums16));
#endif
    return sums16;
}

/* One block for one token; four_a are sums of fields 1 and 3, four times their value. */
LB_INLINE void u2_words(const uint8_t *w, const int8_t *x, const int32_t words, __m256i a[2], __m256i four_a[2]) {
    const __m256i low = _mm256_set1_epi8(3), high = _mm256_set1_epi8(12);
    const int32_t field = 4 * words;
    __m256i sa = _mm256_setzero_si256(), sb = sa, four_sa = sa, four_sb = sa;
    LB_UNROLL(8)
    for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
        const __m256i x0 = broadcast4(x), x1 = broadcast4(x + field), x2 = broadcast4(x + 2 * field),
                      x3 = broadcast4(x + 3 * field);
        const __m256i va = load_half(w, 0), ua = _mm256_srli_epi16(va, 4), vb = load_half(w, 1),
                      ub = _mm256_srli_epi16(vb, 4);
        sa = dot2(sa, _mm256_and_si256(va, low), x0);
        sb = dot2(sb, _mm256_and_si256(vb, low), x0);
        four_sa = dot2(four_sa, _mm256_and_si256(va, high), x1);
        four_sb = dot2(four_sb, _mm256_and_si256(vb, high), x1);
        sa = dot2(sa, _mm256_and_si256(ua, low), x2);
        sb = dot2(sb, _mm256_and_si256(ub, low), x2);
        four_sa = dot2(four_sa, _mm256_and_si256(ua, high), x3);
        four_sb = dot2(four_sb, _mm256_and_si256(ub, high), x3);
    }
    a[0] = widen_add(a[0], sa);
    a[1] = widen_add(a[1], sb);
    four_a[0] = widen_add(four_a[0], four_sa);
    four_a[1] = widen_add(four_a[1], four_sb);
}

LB_INLINE void u2_tile_1(const uint8_t *w, lb_run run, const int8_t *x, i32x16 *acc) {
    __m256i a[2] = {acc->a, acc->b}, four_a[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    if (run.words == 8) {
        for (int32_t b = 0; b < run.full; b++, w += 8 * 64, x += 128) u2_words(w, x, 8, a, four_a);
    } else {
        for (int32_t b = 0; b < run.full; b++, w += run.words * 64, x += 16 * run.words) {
            u2_words(w, x, run.words, a, four_a);
        }
    }
    if (run.tail) u2_words(w, x, run.tail, a, four_a);
    acc->a = _mm256_add_epi32(a[0], _mm256_srai_epi32(four_a[0], 2));
    acc->b = _mm256_add_epi32(a[1], _mm256_srai_epi32(four_a[1], 2));
}

/* The int16 sums of sixteen rows for two or four tokens; named one by one, so that they stay in registers. */
#define LB_SUMS16 \
    __m256i s0a = _mm256_setzero_si256(), s0b = s0a, s1a = s0a, s1b = s0a, s2a = s0a, s2b = s0a, s3a = s0a, s3b = s0a
#define LB_DOT2(j, codes_a, codes_b, x)         \
    {                                           \
        const __m256i four = broadcast4(x);     \
        s##j##a = dot2(s##j##a, codes_a, four); \
        s##j##b = dot2(s##j##b, codes_b, four); \
    }
#define LB_DOT2_ALL(codes_a, codes_b, x)                              \
    {                                                                 \
        const int8_t *x0 = (x);                                       \
        LB_DOT2(0, codes_a, codes_b, x0)                              \
        LB_DOT2(1, codes_a, codes_b, x0 + stride)                     \
        if (tokens > 2) LB_DOT2(2, codes_a, codes_b, x0 + 2 * stride) \
        if (tokens > 2) LB_DOT2(3, codes_a, codes_b, x0 + 3 * stride) \
    }
#define LB_WIDEN(j) acc[j] = (i32x16){widen_add(acc[j].a, s##j##a), widen_add(acc[j].b, s##j##b)};
#define LB_WIDEN_ALL                \
    {                               \
        LB_WIDEN(0)                 \
        LB_WIDEN(1)                 \
        if (tokens > 2) LB_WIDEN(2) \
        if (tokens > 2) LB_WIDEN(3) \
    }

/* Two or four tokens: codes are taken apart in registers. */
LB_INLINE void u2_tile_few(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens,
                           i32x16 *acc) {
    const __m256i low = _mm256_set1_epi8(3);
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail, field = 4 * words;
        LB_SUMS16;
        for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
            _mm_prefetch((const char *)w + LB_AHEAD, _MM_HINT_T0);
            const __m256i va = load_half(w, 0), vb = load_half(w, 1);
            LB_DOT2_ALL(_mm256_and_si256(va, low), _mm256_and_si256(vb, low), x)
            LB_DOT2_ALL(_mm256_and_si256(_mm256_srli_epi16(va, 2), low),
                        _mm256_and_si256(_mm256_srli_epi16(vb, 2), low), x + field)
            LB_DOT2_ALL(_mm256_and_si256(_mm256_srli_epi16(va, 4), low),
                        _mm256_and_si256(_mm256_srli_epi16(vb, 4), low), x + 2 * field)
            LB_DOT2_ALL(_mm256_and_si256(_mm256_srli_epi16(va, 6), low),
                        _mm256_and_si256(_mm256_srli_epi16(vb, 6), low), x + 3 * field)
        }
        x += 3 * field;
        LB_WIDEN_ALL
    }
}

/* Four tokens, from `steps` times 64 bytes of codes, each for the next four columns. */
LB_INLINE void four_tokens(const uint8_t *codes, int32_t steps, const int8_t *x, ptrdiff_t stride, i32x16 *acc) {
    enum { tokens = 4 };
    LB_SUMS16;
    for (int32_t i = 0; i < steps; i++, codes += 64, x += 4) {
        const __m256i a = load_half(codes, 0), b = load_half(codes, 1);
        LB_DOT2_ALL(a, b, x)
    }
    LB_WIDEN_ALL
}

/* Takes a block apart in the order of its columns; returns the number of steps. */
LB_INLINE int32_t u2_unpack(const uint8_t *w, int32_t words, uint8_t *codes) {
    for (int32_t t = 0; t < 2 * words; t++, w += 32, codes += 32) {
        const __m256i v = load_half(w, 0);
        for (int f = 0; f < 4; f++) {
            const __m256i field = _mm256_and_si256(_mm256_srli_epi16(v, 2 * f), _mm256_set1_epi8(3));
            _mm256_storeu_si256((__m256i *)(codes + 64 * words * f), field);
        }
    }
    return 4 * words;
}

LB_INLINE void u2_tile_many(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens,
                            i32x16 *acc) {
    uint8_t codes[2 * 4 * MAX_WORDS * 64];
    const int32_t blocks = run.full + (run.tail != 0);
    for (int32_t b = 0; b < blocks; b += 2) {
        int32_t steps = 0;
        for (int32_t i = b; i < blocks && i < b + 2; i++) {
            const int32_t words = i < run.full ? run.words : run.tail;
            steps += u2_unpack(w, words, codes + 64 * steps);
            w += 64 * words;
        }
        for (int j = 0; j < tokens; j += 4) four_tokens(codes, steps, x + j * stride, stride, acc + j);
        x += 4 * steps;
    }
}

/* One block. For one token a constant number of words makes addresses cheap; for more, registers would run out. */
LB_INLINE void u4_words(const uint8_t *w, const int32_t words, const int8_t *x, ptrdiff_t stride, const int tokens,
                        int half, __m256i *acc) {
    const __m256i low = _mm256_set1_epi8(15);
    const int32_t field = 4 * words;
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
    for (int j = 0; j < tokens; j++) acc[j] = widen_add(acc[j], s[j]);
}

LB_INLINE void u4_half(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, int half,
                       __m256i *acc) {
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail;
        if (tokens == 1 && words == 4) {
            u4_words(w, 4, x, stride, tokens, half, acc);
        } else {
            u4_words(w, words, x, stride, tokens, half, acc);
        }
        w += 64 * words;
        x += 8 * words;
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

/* Codes below 64, in an even number of words: two products of a pair fit int16. */
LB_INLINE void small_half(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, int half,
                          __m256i *acc) {
    for (int32_t t = 0; t < run.words; t += 2, w += 128, x += 8) {
        const __m256i v = load_half(w, half), next = load_half(w + 64, half);
        for (int j = 0; j < tokens; j++) {
            const int8_t *xj = x + j * stride;
            acc[j] = widen_add(acc[j], _mm256_add_epi16(_mm256_maddubs_epi16(v, broadcast4(xj)),
                                                        _mm256_maddubs_epi16(next, broadcast4(xj + 4))));
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

LB_HALVES(u4_tile, u4_half)
LB_HALVES(u8_tile, u8_half)
LB_HALVES(small_tile, small_half)

/* What fits an int16 sum, of two products each: 8 registers of 15 * 128, 4 of 31 * 128, 2 of 63 * 128. */
LB_INLINE void block_sums(const __m256i *codes, const int steps, const int format, const int bits, const int8_t *x,
                          ptrdiff_t stride, const int n, __m256i *sums) {
    const int fit = bits == 6 ? 2 : bits == 5 || format == LB_UT ? 4 : 8, part = fit < steps ? fit : steps;
    for (int first = 0; first < steps; first += part) {
        __m256i sums16[4];
        for (int k = 0; k < n; k++) sums16[k] = _mm256_setzero_si256();
        LB_UNROLL(8)
        for (int t = first; t < first + part; t++) {
            LB_UNROLL(4)
            for (int k = 0; k < n; k++) sums16[k] = dot2(sums16[k], codes[t], broadcast4(x + k * stride + 4 * t));
        }
        for (int k = 0; k < n; k++) sums[k] = first ? widen_add(sums[k], sums16[k]) : widen(sums16[k]);
    }
}

/* With an offset of 12 the values of MXFP4, -12 to 12, are small codes. */
#define LB_BLOCK_KINDS(X) LB_SMALL_BLOCKS(X) X(LB_UT, LB_FP4_TABLE, 12, 4, 1)
#include "blocks_template.h"

LB_INLINE void u2_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    if (tokens == 1) {
        u2_tile_1(w, run, x, acc);
    } else if (tokens <= 8) {
        for (int j = 0; j < tokens; j += 4) u2_tile_few(w, run, x + j * stride, stride, tokens < 4 ? 2 : 4, acc + j);
    } else {
        u2_tile_many(w, run, x, stride, tokens, acc);
    }
}

LB_TILED_INT_MATMUL(lb_matmul_u2, LB_U2, 1, LB_LONGEST_TILE, u2_tile)
LB_TILES_OF(u4_tiles, LB_U4, 8, u4_tile)
LB_TILES_OF(u4m_tiles, LB_U4M, 0, u4_tile)
LB_BLOCK_MATMUL(lb_matmul_u4, u4_tiles)
LB_BLOCK_MATMUL(lb_matmul_u4m, u4m_tiles)
LB_INT_MATMUL(lb_matmul_u8, LB_U8, LB_U8_OFFSET, u8_tile)
LB_INT_MATMUL(lb_matmul_u8m, LB_U8M, LB_U8_OFFSET, u8_tile)
LB_T5_MATMUL(LB_LONGEST_TILE, lb_t5_unpack)
LB_PLANES_TILES(0, small_tile)
LB_BLOCK_MATMUL(lb_matmul_up, planes_matmul)
LB_BLOCK_MATMUL(lb_matmul_upm, planes_matmul)
LB_BLOCK_MATMUL(lb_matmul_ut, table_matmul)
LB_PLANES_STREAMS(0, small_tile)
LB_STREAMS_BY_TURNS(block_streams(args, streams, begin, end))
LB_FLOAT_MATMUL(lb_matmul_f32, LB_F32)
LB_FLOAT_MATMUL(lb_matmul_f16, LB_F16)
LB_FLOAT_MATMUL(lb_matmul_bf16, LB_BF16)
LB_DOT_PEAK(u8_tile)
