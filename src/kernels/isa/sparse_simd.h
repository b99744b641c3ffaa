/*
 * Adding eight active channels, for registers of any width. The bytes of four channels are interleaved, bytes first
 * and then pairs of bytes, so that a 32-bit lane holds the same byte of the four; only then are the four 2-bit fields
 * separated, and the dot product of a lane with the four activations is that of one output:
 *
 *     channel a:  a15 ... a2 a1 a0                       | d1 c1 b1 a1 | d0 c0 b0 a0 |     register 0 (lanes 0..3)
 *     channel b:  b15 ... b2 b1 b0     ->  zip8, zip16   | d5 c5 b5 a5 | d4 c4 b4 a4 |     register 1
 *     ...                                                 registers 2 and 3: bytes 8..11 and 12..15
 *
 * Zips work inside 16-byte pieces, so piece p of register v holds bytes 16 p + 4 v to 16 p + 4 v + 3. The sums of
 * LB_WIDTH bytes lie as they are made: [field][register v][piece p][4], each field LB_WIDTH sums.
 *
 * The including file provides
 *     vec, load(p), zip8_low(a, b), zip8_high, zip16_low, zip16_high
 *     four_q, broadcast4(q)             the activations of four channels, for all lanes
 *     field_of(v, f)                    codes of a field, times 4**f where that fits
 *     dot_eight(acc, a, qa, b, qb)      acc + codes a * qa + codes b * qb in 32-bit lanes
 *     load_acc, store_acc
 */
#ifndef LB_SPARSE_SIMD_H
#define LB_SPARSE_SIMD_H

#include "kernels.h"
#include "inline.h"

LB_INLINE void interleave(const uint8_t *const w[4], int32_t at, vec out[4]) {
    const vec a = load(w[0] + at), b = load(w[1] + at), c = load(w[2] + at), d = load(w[3] + at);
    const vec ab = zip8_low(a, b), ab_high = zip8_high(a, b), cd = zip8_low(c, d), cd_high = zip8_high(c, d);
    out[0] = zip16_low(ab, cd);
    out[1] = zip16_high(ab, cd);
    out[2] = zip16_low(ab_high, cd_high);
    out[3] = zip16_high(ab_high, cd_high);
}

LB_INLINE void add_eight(const uint8_t *const w[LB_CHANNELS], const int8_t *q, int32_t at, int32_t *acc,
                         const int first) {
    const four_q qa = broadcast4(q), qb = broadcast4(q + 4);
    vec a[4], b[4];
    interleave(w, at, a);
    interleave(w + 4, at, b);
    for (int f = 0; f < 4; f++) {
        for (int v = 0; v < 4; v++) {
            int32_t *sums = acc + f * LB_WIDTH + v * (LB_WIDTH / 4);
            store_acc(sums,
                      dot_eight(first ? no_sums() : load_acc(sums), field_of(a[v], f), qa, field_of(b[v], f), qb));
        }
    }
}

#endif
