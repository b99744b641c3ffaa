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
#define LB_U8_OFFSET 128
#include "../matmul_template.h"
#include "../planes_template.h"

enum { SPREAD = 32 }; /* words whose activations are spread at a time */

/* Columns 0 and 2, then 1 and 3, as int16. */
LB_INLINE uint64_t spread(const int8_t *x) {
    uint32_t four;
    memcpy(&four, x, sizeof four);
    return (uint32_t)__sxtb16(four) | (uint64_t)(uint32_t)__sxtb16(four >> 8 | four << 24) << 32;
}

/* Two rows' words. */
LB_INLINE uint64_t two_words(const uint8_t *w) { return *(const uint64_t *)(const void *)w; }

LB_INLINE int32_t even(uint64_t pairs) { return (int32_t)(uint32_t)pairs; }
LB_INLINE int32_t odd(uint64_t pairs) { return (int32_t)(uint32_t)(pairs >> 32); }

/* One word of four rows of eight bits, `t` words on: nineteen instructions, which compilers make thirty of. */
#define EIGHT_PAIR(w_offset, a, b)                      \
    "ldrd %[w], %H[w], [%[codes], %[" w_offset "]]\n\t" \
    "and %[t], %[mask], %[w]\n\t"                       \
    "and %[u], %[mask], %H[w]\n\t"                      \
    "smlad %[" a "], %[t], %[x], %[" a "]\n\t"          \
    "smlad %[" b "], %[u], %[x], %[" b "]\n\t"          \
    "and %[t], %[mask], %[w], lsr #8\n\t"               \
    "and %[u], %[mask], %H[w], lsr #8\n\t"              \
    "smlad %[" a "], %[t], %H[x], %[" a "]\n\t"         \
    "smlad %[" b "], %[u], %H[x], %[" b "]\n\t"
#define EIGHT(codes_at, pairs_at, s, n)                                                                                \
    do {                                                                                                               \
        uint64_t word_pair, x_pair;                                                                                    \
        uint32_t t_, u_;                                                                                               \
        __asm__("ldrd %[x], %H[x], [%[pairs], %[at]]\n\t" EIGHT_PAIR("low", "s0", "s1") EIGHT_PAIR("high", "s2", "s3") \
                : [w] "=&r"(word_pair), [x] "=&r"(x_pair), [t] "=&r"(t_), [u] "=&r"(u_), [s0] "+r"((s)[0]),            \
                  [s1] "+r"((s)[1]), [s2] "+r"((s)[2]), [s3] "+r"((s)[3])                                              \
                : [codes] "r"(codes_at), [pairs] "r"(pairs_at), [mask] "r"(0x00ff00ffu), [at] "i"(8 * (n)),            \
                  [low] "i"(64 * (n)), [high] "i"(64 * (n) + 8)                                                        \
                : "memory");                                                                                           \
    } while (0)

LB_INLINE int32_t dot4(uint32_t w, const uint64_t *x, int32_t sum) {
    const uint32_t mask = 0x000f000fu;
    sum = __smlad((int32_t)(w & mask), even(x[0]), sum);
    sum = __smlad((int32_t)(w >> 8 & mask), odd(x[0]), sum);
    sum = __smlad((int32_t)(w >> 4 & mask), even(x[1]), sum);
    return __smlad((int32_t)(w >> 12 & mask), odd(x[1]), sum);
}

/*
 * Adds `words` words of sixteen rows; x has the pairs of one word after the other. Functions of their own have all
 * registers: four sums, codes, pairs and the mask.
 */
static __attribute__((noinline)) void add_words8(const uint8_t *codes, const uint64_t *x, int32_t words,
                                                 int32_t *sums) {
    for (int row = 0; row < LB_ROWS; row += 4, sums += 4, codes += 16) {
        const uint8_t *w = codes;
        const uint64_t *with = x;
        int32_t s[4] = {sums[0], sums[1], sums[2], sums[3]}, left = words;
        for (; left >= 4; left -= 4, w += 256, with += 4) {
            EIGHT(w, with, s, 0);
            EIGHT(w, with, s, 1);
            EIGHT(w, with, s, 2);
            EIGHT(w, with, s, 3);
        }
        for (; left; left--, w += 64, with++) EIGHT(w, with, s, 0);
        for (int i = 0; i < 4; i++) sums[i] = s[i];
    }
}

static __attribute__((noinline)) void add_words4(const uint8_t *codes, const uint64_t *x, int32_t words,
                                                 int32_t *sums) {
    for (int row = 0; row < LB_ROWS; row += 2, sums += 2, codes += 8) {
        const uint8_t *w = codes;
        const uint64_t *with = x;
        int32_t s[2] = {sums[0], sums[1]};
        for (int32_t left = words; left; left--, w += 64, with += 2) {
            const uint64_t two = two_words(w);
            s[0] = dot4((uint32_t)two, with, s[0]);
            s[1] = dot4((uint32_t)(two >> 32), with, s[1]);
        }
        sums[0] = s[0], sums[1] = s[1];
    }
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
LB_INT_MATMUL(lb_matmul_u8, LB_U8, LB_U8_OFFSET, u8_tile)
LB_INT_MATMUL(lb_matmul_u4m, LB_U4M, 0, u4_tile)
LB_INT_MATMUL(lb_matmul_u8m, LB_U8M, LB_U8_OFFSET, u8_tile)
LB_PLANES_MATMUL(0, u8_tile)
