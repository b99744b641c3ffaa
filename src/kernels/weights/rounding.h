/* Rounding 32 weights to 8 bits, from floats or from stored blocks of 32.
 *
 * The loops are apart so that compilers make vectors of them. What they compute is Q8_0's rounding, bit for bit:
 * scale = max|w| / 127 as float16, code = round half away(w / scale) + 128.
 */
#ifndef LB_ROUNDING_H
#define LB_ROUNDING_H

#include <stdint.h>
#include <string.h>

#include "half.h"

enum { LB_Q4_1 = 100, LB_Q5_0, LB_Q5_1 };

static inline float lb_half_at(const uint8_t *at) {
    uint16_t half;
    memcpy(&half, at, 2);
    return lb_half_to_float(half);
}

/* A block's weights: d * q + m of Q4_1 and Q5_1, d * (q - 16) of Q5_0. The low nibbles are weights 0..15, the high ones
 * 16..31; bit i of the 32 that follow the floats of Q5 is the fifth of weight i. */
static inline void lb_block_weights(int32_t type, const uint8_t *block, float *w) {
    const uint8_t *at = block + (type == LB_Q5_0 ? 2 : 4);
    float d = lb_half_at(block), m = type == LB_Q5_0 ? 0 : lb_half_at(block + 2);
    uint32_t fifth = 0;
    uint8_t q[32];
    int32_t i;
    if (type != LB_Q4_1) {
        memcpy(&fifth, at, 4);
        at += 4;
    }
    for (i = 0; i < 16; i++) {
        q[i] = at[i] & 15;
        q[i + 16] = at[i] >> 4;
    }
    if (type != LB_Q4_1)
        for (i = 0; i < 32; i++) q[i] |= (uint8_t)((fifth >> i & 1) << 4);
    if (type == LB_Q5_0)
        for (i = 0; i < 32; i++) w[i] = (float)((int32_t)q[i] - 16) * d;
    else
        for (i = 0; i < 32; i++) w[i] = (float)(int32_t)q[i] * d + m;
}

/* Round `n` weights, at most 32, to codes; those behind them are 128, which is 0. Returns 0 if a weight is not finite
 * or the scale is none of float16. */
static inline int lb_round_weights(const float *w, int32_t n, uint8_t *codes, uint16_t *scale) {
    uint32_t largest = 0, bits;
    float top, s, inverse;
    int32_t i;
    for (i = 0; i < n; i++) { /* magnitudes of floats lie in the order of their bits */
        memcpy(&bits, w + i, 4);
        bits &= 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    memcpy(&top, &largest, 4);
    if (largest >= 0x7f800000u || top / 127 > 65504) return 0;
    s = top / 127;
    *scale = lb_float_to_half(s);
    inverse = s > 1e-37f ? 1 / s : 0; /* smaller ones are 0 in float16 by far */
    for (i = 0; i < n; i++) {
        float v = w[i] * inverse, rest;
        int32_t whole = (int32_t)v;
        rest = v - (float)whole; /* exact, which v + 0.5f would not be */
        codes[i] = (uint8_t)(whole + (rest >= 0.5f) - (rest <= -0.5f) + 128);
    }
    for (; i < 32; i++) codes[i] = 128;
    return 1;
}

#endif
