/*
 * NEON, as every AArch64 CPU has it. smlal multiplies eight signed bytes by eight signed bytes and adds the products
 * to eight int16 lanes; smlal2 takes the upper eight. A 16-byte read is a word of four rows, a quarter of a row group:
 *
 *     bytes          15 14 13 12 | 11 10  9  8 |  7  6  5  4 |  3  2  1  0
 *                       row 3    |    row 2    |    row 1    |    row 0         four columns each
 *     int16 sums              smlal2 (high)    |          smlal (low)           one per row and byte
 *
 * At the end of a block addp adds neighbours of the two halves, which leaves two int16 per row, and sadalp adds these
 * to the int32 lane of the row. Codes of U2 and U4 are small enough to count as signed.
 *
 * Bounds of an int16 lane:
 *     U2, 128 columns: 8 words, 4 fields of at most 2 * 128             -> 8,192, after addp 16,384
 *     U2, one token, field 1 left shifted by two bits: 8 of 8 * 128     -> 8,192, shifted back before they are added
 *     U4, 32 columns: 4 words, 2 fields of at most 15 * 128             -> 15,360, after addp 30,720
 *     small codes, two products of at most 63 * 128                 -> 16,128, after addp 32,256
 *     U8, one product of a weight in -128..127 with an activation in -127..127: 16,256, after addp 32,512
 */
#include "simd.h"

#define LB_ISA neon
#define LB_TILE 8
#define LB_FLOAT_TILE 2
#define LB_U8_OFFSET 0
#include "../matmul_template.h"
#include "../streams_template.h"
#include "../planes_template.h"

LB_INLINE int8x16_t broadcast4(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

LB_INLINE uint8x16_t load_quarter(const uint8_t *w, int q) { return vld1q_u8(w + 16 * q); }

typedef struct {
    int16x8_t low, high;
} sums16;

LB_INLINE sums16 no_sums(void) { return (sums16){vdupq_n_s16(0), vdupq_n_s16(0)}; }

LB_INLINE sums16 multiply_add(sums16 s, uint8x16_t codes, int8x16_t x) {
    const int8x16_t c = vreinterpretq_s8_u8(codes);
    return (sums16){vmlal_s8(s.low, vget_low_s8(c), vget_low_s8(x)), vmlal_high_s8(s.high, c, x)};
}

LB_INLINE sums16 multiply(uint8x16_t codes, int8x16_t x) {
    const int8x16_t c = vreinterpretq_s8_u8(codes);
    return (sums16){vmull_s8(vget_low_s8(c), vget_low_s8(x)), vmull_high_s8(c, x)};
}

LB_INLINE int32x4_t add_rows(int32x4_t acc, sums16 s) { return vpadalq_s16(acc, vpaddq_s16(s.low, s.high)); }

/* The codes of each field of a byte. */
LB_INLINE void unpack(uint8x16_t v, uint8x16_t *codes, const int bits) {
    const uint8x16_t low = vdupq_n_u8((uint8_t)((1 << bits) - 1));
    codes[0] = vandq_u8(v, low);
    if (bits == 2) {
        codes[1] = vandq_u8(vshrq_n_u8(v, 2), low);
        codes[2] = vandq_u8(vshrq_n_u8(v, 4), low);
        codes[3] = vshrq_n_u8(v, 6);
    } else {
        codes[1] = vshrq_n_u8(v, 4);
    }
}

/* Field 1 is summed as four times its value: one instruction less for each of its codes. */
LB_INLINE void u2_tile_1(const uint8_t *w, lb_run run, const int8_t *x, i32x16 *acc) {
    const uint8x16_t low = vdupq_n_u8(3), high = vdupq_n_u8(12);
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail, field = 4 * words;
        sums16 s[4], four_s[4];
        for (int q = 0; q < 4; q++) s[q] = four_s[q] = no_sums();
        for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
            const int8x16_t x0 = broadcast4(x), x1 = broadcast4(x + field), x2 = broadcast4(x + 2 * field),
                            x3 = broadcast4(x + 3 * field);
            for (int q = 0; q < 4; q++) {
                const uint8x16_t v = load_quarter(w, q);
                s[q] = multiply_add(s[q], vandq_u8(v, low), x0);
                four_s[q] = multiply_add(four_s[q], vandq_u8(v, high), x1);
                s[q] = multiply_add(s[q], vandq_u8(vshrq_n_u8(v, 4), low), x2);
                s[q] = multiply_add(s[q], vshrq_n_u8(v, 6), x3);
            }
        }
        x += 3 * field;
        for (int q = 0; q < 4; q++) {
            s[q].low = vsraq_n_s16(s[q].low, four_s[q].low, 2);
            s[q].high = vsraq_n_s16(s[q].high, four_s[q].high, 2);
            acc->v[q] = add_rows(acc->v[q], s[q]);
        }
    }
}

LB_INLINE void u4_tile_1(const uint8_t *w, lb_run run, const int8_t *x, i32x16 *acc) {
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail, field = 4 * words;
        sums16 s[4];
        for (int q = 0; q < 4; q++) s[q] = no_sums();
        for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
            const int8x16_t x0 = broadcast4(x), x1 = broadcast4(x + field);
            for (int q = 0; q < 4; q++) {
                uint8x16_t codes[2];
                unpack(load_quarter(w, q), codes, 4);
                s[q] = multiply_add(multiply_add(s[q], codes[0], x0), codes[1], x1);
            }
        }
        x += field;
        for (int q = 0; q < 4; q++) acc->v[q] = add_rows(acc->v[q], s[q]);
    }
}

/* The words of a block, for one quarter of a row group and all tokens of a tile. */
LB_INLINE void quarter_block(const uint8_t *w, const int32_t words, const int8_t *x, ptrdiff_t stride, const int tokens,
                             i32x16 *acc, const int q, const int bits) {
    const int fields = 8 / bits;
    sums16 s[LB_TILE];
    for (int j = 0; j < tokens; j++) s[j] = no_sums();
    for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
        uint8x16_t codes[4];
        unpack(load_quarter(w, q), codes, bits);
        for (int j = 0; j < tokens; j++) {
            for (int f = 0; f < fields; f++) {
                s[j] = multiply_add(s[j], codes[f], broadcast4(x + j * stride + f * 4 * words));
            }
        }
    }
    for (int j = 0; j < tokens; j++) acc[j].v[q] = add_rows(acc[j].v[q], s[j]);
}

/* Quarter after quarter: two sums for each of eight tokens and four fields of codes fit the 32 registers. */
LB_INLINE void many_tokens(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens,
                           i32x16 *acc, const int bits) {
    const int32_t usual = bits == 2 ? 8 : 4; /* words of a usual block: a constant makes addresses cheap */
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail;
        for (int q = 0; q < 4; q++) {
            if (words == usual) {
                quarter_block(w, usual, x, stride, tokens, acc, q, bits);
            } else {
                quarter_block(w, words, x, stride, tokens, acc, q, bits);
            }
        }
        w += 64 * words;
        x += 32 / bits * words;
    }
}

LB_INLINE void u2_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    if (tokens == 1) {
        u2_tile_1(w, run, x, acc);
    } else {
        many_tokens(w, run, x, stride, tokens, acc, 2);
    }
}

LB_INLINE void u4_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    if (tokens == 1) {
        u4_tile_1(w, run, x, acc);
    } else {
        many_tokens(w, run, x, stride, tokens, acc, 4);
    }
}

LB_INLINE void u8_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    const int32_t words = run.full * run.words + run.tail;
    for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
        uint8x16_t v[4];
        for (int q = 0; q < 4; q++) v[q] = veorq_u8(load_quarter(w, q), vdupq_n_u8(128));
        for (int j = 0; j < tokens; j++) {
            const int8x16_t four = broadcast4(x + j * stride);
            for (int q = 0; q < 4; q++) acc[j].v[q] = add_rows(acc[j].v[q], multiply(v[q], four));
        }
    }
}

/* Codes below 64, in an even number of words: two products of a lane, and what addp makes of them, fit int16. */
LB_INLINE void small_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens,
                          i32x16 *acc) {
    for (int32_t t = 0; t < run.words; t += 2, w += 128, x += 8) {
        for (int j = 0; j < tokens; j++) {
            const int8x16_t four = broadcast4(x + j * stride), next = broadcast4(x + j * stride + 4);
            for (int q = 0; q < 4; q++) {
                const sums16 s = multiply_add(multiply(load_quarter(w, q), four), load_quarter(w + 64, q), next);
                acc[j].v[q] = add_rows(acc[j].v[q], s);
            }
        }
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
LB_FLOAT_MATMUL(lb_matmul_f32, LB_F32)
LB_FLOAT_MATMUL(lb_matmul_f16, LB_F16)
LB_FLOAT_MATMUL(lb_matmul_bf16, LB_BF16)
LB_DOT_PEAK(u8_tile)
