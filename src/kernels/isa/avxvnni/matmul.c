/*
 * AVX-VNNI: vpdpbusd as in AVX-512 VNNI, in 256-bit registers, for CPUs without AVX-512. It multiplies four unsigned
 * bytes (codes) by four signed bytes (activations) in each 32-bit lane and adds the sum to the lane, in int32 and
 * without saturation. A row group is two halves of eight rows; a mask per field separates the columns:
 *
 *     bits of a byte   7 6 | 5 4 | 3 2 | 1 0
 *     field             3     2     1     0      columns 4*W*field + 4*t + byte
 *
 * For one token the fields are not shifted down: field f is summed as 4**f times its value in an accumulator of its
 * own, and the sums are shifted once at the end; eight chains of additions hide most of the instruction's latency.
 *
 * Bounds: one token, field 3: 2 * 64 * 128 * n_cols / 4 <= 2**30 for n_cols <= 2**18, which packing enforces.
 *     U4, one token, field 1: 15 * 16 * 128 * n_cols / 2 < 2**31 would hold only for n_cols < 2**17.1, so U4 codes are
 *     shifted down: 15 * 128 * 2**18 < 2**29. U8: 255 * 128 * group_cols < 2**31 for group_cols <= 2**16.
 */
#include "../avx2/simd.h"

#define LB_ISA avxvnni
#define LB_TILE 8
#define LB_U8_OFFSET 128
#include "../matmul_template.h"
#include "../streams_template.h"
#include "../planes_template.h"

/* The same instruction in its AVX-512 encoding, to run this file's code where only that exists (tests/selftest). */
#if defined(LB_AVXVNNI_AS_EVEX)
#define DPBUSD _mm256_dpbusd_epi32
#else
#define DPBUSD _mm256_dpbusd_avx_epi32
#endif

enum { USUAL = 8 }; /* words of a usual block of U2 and U8, of which U4 has half: a constant makes addresses cheap */

LB_INLINE __m256i broadcast4(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm256_set1_epi32(four);
}

LB_INLINE __m256i load_half(const uint8_t *w, int half) { return _mm256_loadu_si256((const __m256i *)(w + 32 * half)); }

/* One block for one token; a[half][field] sums 4**field times the value. */
LB_INLINE void u2_words(const uint8_t *w, const int8_t *x, const int32_t words, __m256i a[2][4]) {
    const __m256i m0 = _mm256_set1_epi8(3), m1 = _mm256_set1_epi8(12), m2 = _mm256_set1_epi8(48),
                  m3 = _mm256_set1_epi8((char)192);
    const int32_t field = 4 * words;
    for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
        const __m256i x0 = broadcast4(x), x1 = broadcast4(x + field), x2 = broadcast4(x + 2 * field),
                      x3 = broadcast4(x + 3 * field);
        for (int h = 0; h < 2; h++) {
            const __m256i v = load_half(w, h);
            a[h][0] = DPBUSD(a[h][0], _mm256_and_si256(v, m0), x0);
            a[h][1] = DPBUSD(a[h][1], _mm256_and_si256(v, m1), x1);
            a[h][2] = DPBUSD(a[h][2], _mm256_and_si256(v, m2), x2);
            a[h][3] = DPBUSD(a[h][3], _mm256_and_si256(v, m3), x3);
        }
    }
}

LB_INLINE __m256i add_fields(const __m256i a[4]) {
    const __m256i low = _mm256_add_epi32(a[0], _mm256_srai_epi32(a[1], 2)),
                  high = _mm256_add_epi32(_mm256_srai_epi32(a[2], 4), _mm256_srai_epi32(a[3], 6));
    return _mm256_add_epi32(low, high);
}

LB_INLINE void u2_tile_1(const uint8_t *w, lb_run run, const int8_t *x, i32x16 *acc) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i a[2][4] = {{acc->a, zero, zero, zero}, {acc->b, zero, zero, zero}};
    for (int32_t b = 0; b < run.full; b++, w += run.words * 64, x += 16 * run.words) {
        if (run.words == USUAL) {
            u2_words(w, x, USUAL, a);
        } else {
            u2_words(w, x, run.words, a);
        }
    }
    if (run.tail) u2_words(w, x, run.tail, a);
    acc->a = add_fields(a[0]);
    acc->b = add_fields(a[1]);
}

/* U4 and U8 codes for one token: both halves, and two chains each, of the fields (U4) or of alternate words (U8). */
LB_INLINE void one_token(const uint8_t *w, lb_run run, const int8_t *x, i32x16 *acc, const int bits) {
    const int fields = 8 / bits;
    const __m256i zero = _mm256_setzero_si256(), low = _mm256_set1_epi8((char)((1 << bits) - 1));
    __m256i a[2][2] = {{acc->a, zero}, {acc->b, zero}}; /* [half][chain] */
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail, field = 4 * words;
        for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
            for (int h = 0; h < 2; h++) {
                const __m256i v = load_half(w, h);
                if (bits == 4) {
                    a[h][0] = DPBUSD(a[h][0], _mm256_and_si256(v, low), broadcast4(x));
                    a[h][1] = DPBUSD(a[h][1], _mm256_and_si256(_mm256_srli_epi16(v, 4), low), broadcast4(x + field));
                } else {
                    const __m256i next = DPBUSD(a[h][0], v, broadcast4(x));
                    a[h][0] = a[h][1];
                    a[h][1] = next;
                }
            }
        }
        x += (fields - 1) * field;
    }
    acc->a = _mm256_add_epi32(a[0][0], a[0][1]);
    acc->b = _mm256_add_epi32(a[1][0], a[1][1]);
}

/* The words of a block, for one half of a row group and all tokens of a tile. */
LB_INLINE void half_block(const uint8_t *w, const int32_t words, const int8_t *x, ptrdiff_t stride, const int tokens,
                          __m256i *acc, const int bits) {
    const int fields = 8 / bits;
    const __m256i low = _mm256_set1_epi8((char)((1 << bits) - 1));
    for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
        const __m256i v = load_half(w, 0);
        __m256i codes[4] = {v};
        for (int f = 0; f < fields && bits < 8; f++) {
            codes[f] = _mm256_and_si256(_mm256_srli_epi16(v, bits * f), low);
        }
        for (int j = 0; j < tokens; j++) {
            for (int f = 0; f < fields; f++) {
                acc[j] = DPBUSD(acc[j], codes[f], broadcast4(x + j * stride + f * 4 * words));
            }
        }
    }
}

LB_INLINE void one_half(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, __m256i *acc,
                        const int bits) {
    const int32_t usual = bits == 4 ? USUAL / 2 : USUAL;
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail;
        if (words == usual) {
            half_block(w, usual, x, stride, tokens, acc, bits);
        } else {
            half_block(w, words, x, stride, tokens, acc, bits);
        }
        w += 64 * words;
        x += 32 / bits * words;
    }
}

/* Both halves of a row group, one after the other: eight rows, eight tokens and four fields fit the 16 registers. */
LB_INLINE void both_halves(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens,
                           i32x16 *acc, const int bits) {
    __m256i part[LB_TILE];
    for (int j = 0; j < tokens; j++) part[j] = acc[j].a;
    one_half(w, run, x, stride, tokens, part, bits);
    for (int j = 0; j < tokens; j++) acc[j].a = part[j];
    for (int j = 0; j < tokens; j++) part[j] = acc[j].b;
    one_half(w + 32, run, x, stride, tokens, part, bits);
    for (int j = 0; j < tokens; j++) acc[j].b = part[j];
}

LB_INLINE void u2_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    if (tokens == 1) {
        u2_tile_1(w, run, x, acc);
    } else {
        both_halves(w, run, x, stride, tokens, acc, 2);
    }
}

LB_INLINE void u4_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    if (tokens == 1) {
        one_token(w, run, x, acc, 4);
    } else {
        both_halves(w, run, x, stride, tokens, acc, 4);
    }
}

LB_INLINE void u8_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    if (tokens == 1) {
        one_token(w, run, x, acc, 8);
    } else {
        both_halves(w, run, x, stride, tokens, acc, 8);
    }
}

LB_INLINE void block_sums(const __m256i *codes, const int steps, const int format, const int bits, const int8_t *x,
                          ptrdiff_t stride, const int n, __m256i *sums) {
    (void)format, (void)bits;
    for (int k = 0; k < n; k++) sums[k] = _mm256_setzero_si256();
    LB_UNROLL(8)
    for (int t = 0; t < steps; t++) {
        LB_UNROLL(4)
        for (int k = 0; k < n; k++) sums[k] = DPBUSD(sums[k], codes[t], broadcast4(x + k * stride + 4 * t));
    }
}

#define LB_BLOCK_KINDS(X)  \
    LB_SMALL_BLOCKS(X)     \
    X(LB_U8, 0, 128, 8, 1) \
    X(LB_UT, LB_IQ4_TABLE, 128, 4, 1) X(LB_UT, LB_FP4_TABLE, 128, 4, 1)
#include "../avx2/blocks_template.h"

LB_INT_MATMUL(lb_matmul_u2, LB_U2, 1, u2_tile)
LB_TILES_OF(u4_tiles, LB_U4, 8, u4_tile)
LB_TILES_OF(u8_tiles, LB_U8, LB_U8_OFFSET, u8_tile)
LB_TILES_OF(u4m_tiles, LB_U4M, 0, u4_tile)
LB_BLOCK_MATMUL(lb_matmul_u4, u4_tiles)
LB_BLOCK_MATMUL(lb_matmul_u8, u8_tiles)
LB_BLOCK_MATMUL(lb_matmul_u4m, u4m_tiles)
LB_INT_MATMUL(lb_matmul_u8m, LB_U8M, LB_U8_OFFSET, u8_tile)
LB_T5_MATMUL(LB_TILE, lb_t5_unpack)
LB_PLANES_TILES(0, u8_tile)
LB_BLOCK_MATMUL(lb_matmul_up, planes_matmul)
LB_BLOCK_MATMUL(lb_matmul_upm, planes_matmul)
LB_BLOCK_MATMUL(lb_matmul_ut, table_matmul)
LB_PLANES_STREAMS(0, u8_tile)
LB_STREAMS_BY_TURNS(block_streams(args, streams, begin, end))
LB_DOT_PEAK(u8_tile)
