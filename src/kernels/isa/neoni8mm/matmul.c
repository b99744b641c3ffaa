/*
 * NEON with the matrix product of Armv8.6 (optional from Armv8.2). smmla multiplies two rows of eight signed bytes
 * (codes) by two rows of eight signed bytes (activations), and adds the four sums to int32 lanes: twice the products
 * of sdot. Two words of a row group are eight columns of its rows; zipped, a register holds two rows of them:
 *
 *     quarter q of word t:     r0 r1 r2 r3    four columns each        zip1:  r0, r0'  r1, r1'
 *     quarter q of word t + 1: r0'r1'r2'r3'                            zip2:  r2, r2'  r3, r3'
 *     sums:                    r0 x0, r0 x1, r1 x0, r1 x1              of two tokens, x0 and x1
 *
 * Fields are separated after that. A single token has the kernels of NEON dot product. Bounds are those of neondot.
 */
#include "../neon/simd.h"

#define LB_ISA neoni8mm
#define LB_TILE 8
#define LB_U8_OFFSET 0
#include "../matmul_template.h"

enum { PAIRS = LB_TILE / 2 };

/* Eight activations of two tokens; four, and zeros, where the words of a block end. Without a second token zeros. */
LB_INLINE int8x16_t load_pair(const int8_t *x, ptrdiff_t stride, const int two, const int eight) {
    int8x8_t rows[2] = {vdup_n_s8(0), vdup_n_s8(0)};
    for (int j = 0; j <= two; j++, x += stride) {
        if (eight) {
            rows[j] = vld1_s8(x);
        } else {
            uint32_t four;
            memcpy(&four, x, sizeof four);
            rows[j] = vcreate_s8(four);
        }
    }
    return vcombine_s8(rows[0], rows[1]);
}

LB_INLINE int8x16_t field_of(uint8x16_t v, const int bits, const int f) {
    if (bits == 8) return vreinterpretq_s8_u8(veorq_u8(v, vdupq_n_u8(128)));
    if (f) v = vshlq_u8(v, vdupq_n_s8((int8_t)(-bits * f)));
    return vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8((uint8_t)((1 << bits) - 1))));
}

/* One or two words, for half a row group and all tokens of a tile; a field is `columns` long. */
LB_INLINE void some_words(const uint8_t *w, const int8_t *x, ptrdiff_t stride, const int tokens, int32_t columns,
                          int32x4_t s[PAIRS][4], const int bits, const int eight) {
    uint8x16_t zipped[4];
    for (int q = 0; q < 2; q++) {
        const uint32x4_t one = vreinterpretq_u32_u8(vld1q_u8(w + 16 * q)),
                         next = eight ? vreinterpretq_u32_u8(vld1q_u8(w + 64 + 16 * q)) : one;
        zipped[2 * q] = vreinterpretq_u8_u32(vzip1q_u32(one, next));
        zipped[2 * q + 1] = vreinterpretq_u8_u32(vzip2q_u32(one, next));
    }
    for (int f = 0; f < 8 / bits; f++, x += columns) {
        int8x16_t codes[4];
        for (int r = 0; r < 4; r++) codes[r] = field_of(zipped[r], bits, f);
        for (int j = 0; j < tokens; j += 2) {
            const int8x16_t pair = load_pair(x + j * stride, stride, j + 1 < tokens, eight);
            for (int r = 0; r < 4; r++) s[j / 2][r] = vmmlaq_s32(s[j / 2][r], codes[r], pair);
        }
    }
}

LB_INLINE void block(const uint8_t *w, const int32_t words, const int8_t *x, ptrdiff_t stride, const int tokens,
                     int32x4_t s[PAIRS][4], const int bits) {
    int32_t t = 0;
    for (; t + 1 < words; t += 2) some_words(w + 64 * t, x + 4 * t, stride, tokens, 4 * words, s, bits, 1);
    if (t < words) some_words(w + 64 * t, x + 4 * t, stride, tokens, 4 * words, s, bits, 0);
}

/* Half a row group after the other: sixteen sums of eight rows and eight tokens fit the registers. */
LB_INLINE void any_tokens(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens,
                          i32x16 *acc, const int bits) {
    const int32_t usual = bits == 4 ? 4 : 8; /* words of a usual block: a constant makes addresses cheap */
    const int32x4_t zero = vdupq_n_s32(0);
    for (int half = 0; half < 4; half += 2) {
        const uint8_t *wb = w + 16 * half;
        const int8_t *xb = x;
        int32x4_t s[PAIRS][4];
        for (int j = 0; j < tokens; j += 2) {
            for (int q = 0; q < 2; q++) {
                const int32x4_t one = acc[j].v[half + q], other = j + 1 < tokens ? acc[j + 1].v[half + q] : zero;
                s[j / 2][2 * q] = vzip1q_s32(one, other);
                s[j / 2][2 * q + 1] = vzip2q_s32(one, other);
            }
        }
        for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
            const int32_t words = b < run.full ? run.words : run.tail;
            if (words == usual) {
                block(wb, usual, xb, stride, tokens, s, bits);
            } else {
                block(wb, words, xb, stride, tokens, s, bits);
            }
            wb += 64 * words;
            xb += 32 / bits * words;
        }
        for (int j = 0; j < tokens; j++) {
            for (int q = 0; q < 2; q++) {
                const int32x4_t low = s[j / 2][2 * q], high = s[j / 2][2 * q + 1];
                acc[j].v[half + q] = j & 1 ? vuzp2q_s32(low, high) : vuzp1q_s32(low, high);
            }
        }
    }
}

LB_INLINE void u2_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    any_tokens(w, run, x, stride, tokens, acc, 2);
}

LB_INLINE void u4_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    any_tokens(w, run, x, stride, tokens, acc, 4);
}

LB_INLINE void u8_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    any_tokens(w, run, x, stride, tokens, acc, 8);
}

#define I8MM_MATMUL(name, format, offset, tile)                                                 \
    lb_matmul_fn name##__neondot;                                                               \
    void LB_NAME(name)(const lb_matmul_args *args, int32_t begin, int32_t end) {                \
        if (args->x->n_tokens == 1) {                                                           \
            name##__neondot(args, begin, end);                                                  \
        } else {                                                                                \
            LB_FOR_TILES(LB_TILE, lb_int_tile(args, row_group, token, n, format, offset, tile)) \
        }                                                                                       \
    }

I8MM_MATMUL(lb_matmul_u2, LB_U2, 1, u2_tile)
I8MM_MATMUL(lb_matmul_u4, LB_U4, 8, u4_tile)
I8MM_MATMUL(lb_matmul_u8, LB_U8, LB_U8_OFFSET, u8_tile)
I8MM_MATMUL(lb_matmul_u4m, LB_U4M, 0, u4_tile)
I8MM_MATMUL(lb_matmul_u8m, LB_U8M, LB_U8_OFFSET, u8_tile)
LB_DOT_PEAK(u8_tile)
