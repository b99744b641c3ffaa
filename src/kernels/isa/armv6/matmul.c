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
 * Bounds: a pair adds at most 2 * 255 * 128 < 2**16 to a sum. Sums may wrap around in int32, and come out right,
 * because the true sum fits: of a scale group, U4 15 * 128 * 2**18 < 2**29, U8 255 * 128 * 2**16 < 2**31.
 */
#include <arm_acle.h>

#include "../portable/simd.h"

#define LB_ISA armv6
#define LB_TILE 1
#include "../matmul_template.h"

enum { SPREAD = 32 }; /* words whose activations are spread at a time */

/* Columns 0 and 2, then 1 and 3, as int16. */
LB_INLINE uint64_t spread(const int8_t *x) {
    uint32_t four;
    memcpy(&four, x, sizeof four);
    return (uint32_t)__sxtb16(four) | (uint64_t)(uint32_t)__sxtb16(four >> 8 | four << 24) << 32;
}

/*
 * Two words `offset` bytes on, at most 252, in one instruction: compilers make two of it. It waits for two sums, so
 * that not more is begun than there are registers for.
 */
#define TWO(two, from, offset, sums)                       \
    __asm__("ldrd %0, %H0, [%3, %4]"                       \
            : "=&r"(two), "+r"((sums)[0]), "+r"((sums)[1]) \
            : "r"(from), "i"(offset), "m"(*(from)))

LB_INLINE int32_t even(uint64_t pairs) { return (int32_t)(uint32_t)pairs; }
LB_INLINE int32_t odd(uint64_t pairs) { return (int32_t)(uint32_t)(pairs >> 32); }

LB_INLINE int32_t dot8(uint32_t w, uint64_t x, int32_t sum) {
    const uint32_t mask = 0x00ff00ffu;
    return __smlad((int32_t)(w >> 8 & mask), odd(x), __smlad((int32_t)(w & mask), even(x), sum));
}

LB_INLINE int32_t dot4(uint32_t w, const uint64_t *x, int32_t sum) {
    const uint32_t mask = 0x000f000fu;
    sum = __smlad((int32_t)(w & mask), even(x[0]), sum);
    sum = __smlad((int32_t)(w >> 8 & mask), odd(x[0]), sum);
    sum = __smlad((int32_t)(w >> 4 & mask), even(x[1]), sum);
    return __smlad((int32_t)(w >> 12 & mask), odd(x[1]), sum);
}

/* The products of two rows' words. */
LB_INLINE void dot(uint64_t two, const uint64_t *x, int32_t *sums, const int eight) {
    for (int row = 0; row < 2; row++) {
        const uint32_t w = (uint32_t)(two >> 32 * row);
        sums[row] = eight ? dot8(w, x[0], sums[row]) : dot4(w, x, sums[row]);
    }
}

/* Adds `words` words of sixteen rows; x has the pairs of one word after the other. A function of its own has all
 * registers: four sums, two words of codes, two pairs. */
LB_INLINE void add_words(const uint8_t *codes, const uint64_t *x, int32_t words, int32_t *sums, const int eight) {
    for (int row = 0; row < LB_ROWS; row += 4, sums += 4) {
        const uint64_t *w = (const uint64_t *)(const void *)(codes + 4 * row), *with = x;
        int32_t s[4] = {sums[0], sums[1], sums[2], sums[3]};
        uint64_t two, more, pairs[2] = {0, 0};
#define WORD(t)                                           \
    TWO(pairs[0], with, (eight ? 8 : 16) * (t), s);       \
    if (!eight) TWO(pairs[1], with, 16 * (t) + 8, s + 2); \
    TWO(two, w, 64 * (t), s);                             \
    TWO(more, w, 64 * (t) + 8, s + 2);                    \
    dot(two, pairs, s, eight);                            \
    dot(more, pairs, s + 2, eight)
        int32_t left = words;
        for (; left >= 4; left -= 4, w += 32, with += eight ? 4 : 8) {
            WORD(0);
            WORD(1);
            WORD(2);
            WORD(3);
        }
        for (; left; left--, w += 8, with += eight ? 1 : 2) {
            WORD(0);
        }
        for (int i = 0; i < 4; i++) sums[i] = s[i];
    }
}

static __attribute__((noinline)) void add_words8(const uint8_t *w, const uint64_t *x, int32_t words, int32_t *sums) {
    add_words(w, x, words, sums, 1);
}

static __attribute__((noinline)) void add_words4(const uint8_t *w, const uint64_t *x, int32_t words, int32_t *sums) {
    add_words(w, x, words, sums, 0);
}

LB_INLINE void u8_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    (void)stride, (void)tokens;
    uint64_t x_pairs[SPREAD];
    for (int32_t left = run.full * run.words + run.tail; left > 0; left -= SPREAD, w += SPREAD * 64) {
        const int32_t words = left < SPREAD ? left : SPREAD;
        for (int32_t t = 0; t < words; t++, x += 4) x_pairs[t] = spread(x);
        add_words8(w, x_pairs, words, acc->v);
    }
}

LB_INLINE void u4_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    (void)stride, (void)tokens;
    uint64_t x_pairs[2 * SPREAD];
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
