/*
 * ARMv6 media instructions: four- and eight-bit codes. SMLAD multiplies two pairs of int16 and adds both products to an
 * int32. A word's bytes 0 and 2 are one pair, 1 and 3 another; a pair is taken out by one instruction, because the mask
 * is applied to a word that the same instruction shifts:
 *
 *     word of a row:      |  b3  |  b2  |  b1  |  b0  |
 *     U8  even, odd:      |     b2      |      b0     |   |     b3      |      b1     |    5 instructions, 4 weights
 *     U4  the same for the lower and for the upper halves of the bytes                     9 instructions, 8 weights
 *
 * The activations are spread into such pairs once per row group (SXTB16), and the sums of four rows stay in registers
 * while they pass.
 *
 * Bounds: a pair adds at most 2 * 255 * 128 < 2**16 to a sum. Sums may wrap around in int32, and come out right, because
 * the true sum fits: of a scale group, U4 15 * 128 * 2**18 < 2**29, U8 255 * 128 * 2**16 < 2**31.
 */
#include <arm_acle.h>

#include "../portable/simd.h"

#define LB_ISA armv6
#define LB_TILE 1
#include "../matmul_template.h"

enum { SPREAD = 32 }; /* words whose activations are spread at a time */

typedef struct {
    uint32_t even, odd;
} pairs;

LB_INLINE pairs spread(const int8_t *x) {
    uint32_t four;
    memcpy(&four, x, sizeof four);
    const pairs p = {(uint32_t)__sxtb16(four), (uint32_t)__sxtb16(four >> 8 | four << 24)};
    return p;
}

/* Two rows' words, read at once. */
LB_INLINE uint64_t two_words(const uint8_t *w) { return *(const uint64_t *)(const void *)w; }

LB_INLINE int32_t dot8(uint32_t w, pairs x, int32_t sum) {
    return __smlad((int32_t)(w >> 8 & 0x00ff00ffu), (int32_t)x.odd,
                   __smlad((int32_t)(w & 0x00ff00ffu), (int32_t)x.even, sum));
}

LB_INLINE int32_t dot4(uint32_t w, const pairs *x, int32_t sum) {
    const uint32_t mask = 0x000f000fu;
    sum = __smlad((int32_t)(w & mask), (int32_t)x[0].even, sum);
    sum = __smlad((int32_t)(w >> 8 & mask), (int32_t)x[0].odd, sum);
    sum = __smlad((int32_t)(w >> 4 & mask), (int32_t)x[1].even, sum);
    return __smlad((int32_t)(w >> 12 & mask), (int32_t)x[1].odd, sum);
}

/* Adds `words` words of sixteen rows; x has the pairs of one word after the other. A function of its own has all
 * registers: four sums, two words of codes, two pairs. */
LB_INLINE void add_words(const uint8_t *w, const pairs *x, int32_t words, int32_t *sums, const int eight) {
    const uint8_t *const end = w + 64 * (ptrdiff_t)words;
    for (int row = 0; row < LB_ROWS; row += 4, sums += 4) {
        int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
        const pairs *with = x;
        for (const uint8_t *from = w + 4 * row; from < end; from += 64) {
            const uint64_t low = two_words(from);
            if (eight) {
                s0 = dot8((uint32_t)low, *with, s0);
                s1 = dot8((uint32_t)(low >> 32), *with, s1);
            } else {
                s0 = dot4((uint32_t)low, with, s0);
                s1 = dot4((uint32_t)(low >> 32), with, s1);
            }
            const uint64_t high = two_words(from + 8);
            if (eight) {
                s2 = dot8((uint32_t)high, *with, s2);
                s3 = dot8((uint32_t)(high >> 32), *with, s3);
            } else {
                s2 = dot4((uint32_t)high, with, s2);
                s3 = dot4((uint32_t)(high >> 32), with, s3);
            }
            with += eight ? 1 : 2;
        }
        sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
    }
}

static __attribute__((noinline)) void add_words8(const uint8_t *w, const pairs *x, int32_t words, int32_t *sums) {
    add_words(w, x, words, sums, 1);
}

static __attribute__((noinline)) void add_words4(const uint8_t *w, const pairs *x, int32_t words, int32_t *sums) {
    add_words(w, x, words, sums, 0);
}

LB_INLINE void u8_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    (void)stride, (void)tokens;
    pairs x_pairs[SPREAD];
    for (int32_t left = run.full * run.words + run.tail; left > 0; left -= SPREAD, w += SPREAD * 64) {
        const int32_t words = left < SPREAD ? left : SPREAD;
        for (int32_t t = 0; t < words; t++, x += 4) x_pairs[t] = spread(x);
        add_words8(w, x_pairs, words, acc->v);
    }
}

LB_INLINE void u4_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    (void)stride, (void)tokens;
    pairs x_pairs[2 * SPREAD];
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t block = b < run.full ? run.words : run.tail, field = 4 * block;
        for (int32_t first = 0; first < block; first += SPREAD) {
            const int32_t words = block - first < SPREAD ? block - first : SPREAD;
            for (int32_t t = 0; t < words; t++, x += 4) {
                x_pairs[2 * t] = spread(x);
                x_pairs[2 * t + 1] = spread(x + field);
            }
            add_words4(w, x_pairs, words, acc->v);
            w += 64 * (ptrdiff_t)words;
        }
        x += field;
    }
}

LB_INT_MATMUL(lb_matmul_u4, LB_U4, 8, u4_tile)
LB_INT_MATMUL(lb_matmul_u8, LB_U8, 128, u8_tile)
LB_INT_MATMUL(lb_matmul_u4m, LB_U4M, 0, u4_tile)
LB_INT_MATMUL(lb_matmul_u8m, LB_U8M, 128, u8_tile)
