/*
 * NEON with the dot product of Armv8.2 (optional there, in every CPU from Armv8.4). sdot multiplies four signed bytes
 * (codes) by four signed bytes (activations) in each 32-bit lane and adds the sum to the lane, in int32. A 16-byte
 * read is a word of four rows, a quarter of a row group. The activations need no broadcast: sdot takes the same four
 * bytes of a register for all lanes.
 *
 *     bits of a byte   7 6 | 5 4 | 3 2 | 1 0
 *     field             3     2     1     0      columns 4*W*field + 4*t + byte
 *
 * For one token fields 1 and 2 are masked but not shifted down: they are summed as 4 and 16 times their value, and the
 * sums are shifted once at the end. Field 3 needs a shift and no mask (192 would be a negative code).
 *
 * Bounds, all in int32: U2, field 2: 2 * 16 * 128 * n_cols / 4 <= 2**28 for n_cols <= 2**18; U4: 15 * 128 * 2**18
 * < 2**29; U8, weights in -128..127: 128 * 127 * 2**16 < 2**30.
 */
#include "../neon/simd.h"

#define LB_ISA neondot
#define LB_TILE 8
#define LB_U8_OFFSET 0
#include "../matmul_template.h"
#include "../streams_template.h"
#include "../planes_template.h"

LB_INLINE int8x8_t load4(const int8_t *x) {
    uint32_t four;
    memcpy(&four, x, sizeof four);
    return vcreate_s8(four);
}

LB_INLINE int32x4_t dot4(int32x4_t acc, uint8x16_t codes, int8x8_t x) {
    return vdotq_lane_s32(acc, vreinterpretq_s8_u8(codes), x, 0);
}

LB_INLINE uint8x16_t load_quarter(const uint8_t *w, int q) { return vld1q_u8(w + 16 * q); }

LB_INLINE void u2_tile_1(const uint8_t *w, lb_run run, const int8_t *x, i32x16 *acc) {
    const uint8x16_t m0 = vdupq_n_u8(3), m1 = vdupq_n_u8(12), m2 = vdupq_n_u8(48);
    i32x16 a0 = *acc, a1 = vi_set1(0), a2 = a1;
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail, field = 4 * words;
        for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
            const int8x8_t x0 = load4(x), x1 = load4(x + field), x2 = load4(x + 2 * field), x3 = load4(x + 3 * field);
            for (int q = 0; q < 4; q++) {
                const uint8x16_t v = load_quarter(w, q);
                a0.v[q] = dot4(a0.v[q], vandq_u8(v, m0), x0);
                a1.v[q] = dot4(a1.v[q], vandq_u8(v, m1), x1);
                a2.v[q] = dot4(a2.v[q], vandq_u8(v, m2), x2);
                a0.v[q] = dot4(a0.v[q], vshrq_n_u8(v, 6), x3);
            }
        }
        x += 3 * field;
    }
    for (int q = 0; q < 4; q++) acc->v[q] = vsraq_n_s32(vsraq_n_s32(a0.v[q], a1.v[q], 2), a2.v[q], 4);
}

/* The signed codes of each field of a byte. */
LB_INLINE void unpack(uint8x16_t v, uint8x16_t *codes, const int bits) {
    const uint8x16_t low = vdupq_n_u8((uint8_t)((1 << bits) - 1));
    if (bits == 2) {
        codes[0] = vandq_u8(v, low);
        codes[1] = vandq_u8(vshrq_n_u8(v, 2), low);
        codes[2] = vandq_u8(vshrq_n_u8(v, 4), low);
        codes[3] = vshrq_n_u8(v, 6);
    } else if (bits == 4) {
        codes[0] = vandq_u8(v, low);
        codes[1] = vshrq_n_u8(v, 4);
    } else {
        codes[0] = veorq_u8(v, vdupq_n_u8(128));
    }
}

/* The words of a block, for `count` quarters of a row group and all tokens of a tile. */
LB_INLINE void quarters_block(const uint8_t *w, const int32_t words, const int8_t *x, ptrdiff_t stride,
                              const int tokens, int32x4_t s[][4], const int bits, const int first, const int count) {
    const int fields = 8 / bits;
    for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
        uint8x16_t codes[4][4];
        for (int q = 0; q < count; q++) unpack(load_quarter(w, first + q), codes[q], bits);
        for (int j = 0; j < tokens; j++) {
            for (int f = 0; f < fields; f++) {
                const int8x8_t four = load4(x + j * stride + f * 4 * words);
                for (int q = 0; q < count; q++) s[j][q] = dot4(s[j][q], codes[q][f], four);
            }
        }
    }
}

/*
 * Half a row group (two quarters) after the other: two sums for each of eight tokens and two times four fields of codes
 * fit the 32 registers, and each four activations serve two quarters. One token takes all four quarters at once.
 */
LB_INLINE void some_quarters(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens,
                             i32x16 *acc, const int bits, const int first, const int count) {
    const int32_t usual = bits == 4 ? 4 : 8; /* words of a usual block: a constant makes addresses cheap */
    int32x4_t s[LB_TILE][4];
    for (int j = 0; j < tokens; j++) {
        for (int q = 0; q < count; q++) s[j][q] = acc[j].v[first + q];
    }
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail;
        if (words == usual) {
            quarters_block(w, usual, x, stride, tokens, s, bits, first, count);
        } else {
            quarters_block(w, words, x, stride, tokens, s, bits, first, count);
        }
        w += 64 * words;
        x += 32 / bits * words;
    }
    for (int j = 0; j < tokens; j++) {
        for (int q = 0; q < count; q++) acc[j].v[first + q] = s[j][q];
    }
}

LB_INLINE void any_tokens(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens,
                          i32x16 *acc, const int bits) {
    if (tokens == 1) {
        some_quarters(w, run, x, stride, tokens, acc, bits, 0, 4);
    } else {
        some_quarters(w, run, x, stride, tokens, acc, bits, 0, 2);
        some_quarters(w, run, x, stride, tokens, acc, bits, 2, 2);
    }
}

LB_INLINE void u2_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    if (tokens == 1) {
        u2_tile_1(w, run, x, acc);
    } else {
        any_tokens(w, run, x, stride, tokens, acc, 2);
    }
}

LB_INLINE void u4_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    any_tokens(w, run, x, stride, tokens, acc, 4);
}

LB_INLINE void u8_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    any_tokens(w, run, x, stride, tokens, acc, 8);
}

LB_INT_MATMUL(lb_matmul_u2, LB_U2, 1, u2_tile)
LB_INT_MATMUL(lb_matmul_u4, LB_U4, 8, u4_tile)
LB_INT_MATMUL(lb_matmul_u8, LB_U8, LB_U8_OFFSET, u8_tile)
LB_INT_MATMUL(lb_matmul_u4m, LB_U4M, 0, u4_tile)
LB_INT_MATMUL(lb_matmul_u8m, LB_U8M, LB_U8_OFFSET, u8_tile)
LB_T5_MATMUL(LB_TILE, lb_t5_unpack)
LB_PLANES_MATMUL(128, u8_tile)
LB_PLANES_STREAMS(128, u8_tile)
LB_STREAMS_BY_TURNS(0)
LB_DOT_PEAK(u8_tile)
