/* 32 weights to 8 bits: codes of five bits, and floats that are rounded.
 *
 * The loops are apart so that compilers make vectors of them. Rounding is that of Q8_0, bit for bit:
 * scale = max|w| / 127 as float16, code = round half away(w / scale) + 128.
 */
#ifndef LB_ROUNDING_H
#define LB_ROUNDING_H

#include <stdint.h>
#include <string.h>

#include "half.h"

/* Codes of a block of Q5_0 or Q5_1. The low nibbles belong to weights 0..15, the high ones to
 * 16..31; bit i of the fifths is the highest of weight i. */
static inline void lb_five_bit_codes(const uint8_t *nibbles, const uint8_t *fifths, uint8_t *codes) {
    uint32_t fifth;
    memcpy(&fifth, fifths, 4);
    for (int32_t i = 0; i < 16; i++) {
        codes[i] = nibbles[i] & 15;
        codes[i + 16] = nibbles[i] >> 4;
    }
    for (int32_t i = 0; i < 32; i++) codes[i] = (uint8_t)(codes[i] | (fifth >> i & 1) << 4);
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
