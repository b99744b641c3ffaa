/* float16 <-> float32, exact and rounding half to even, for CPUs without an instruction for it. */
#ifndef LB_HALF_H
#define LB_HALF_H

#include <stdint.h>
#include <string.h>

static inline float lb_bits_to_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t lb_float_to_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static inline float lb_half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = h & 0x7fffu;
    if (rest >= 0x7c00u) return lb_bits_to_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13); /* Inf, NaN */
    if (rest >= 0x0400u) return lb_bits_to_float(sign | ((rest << 13) + (112u << 23)));
    /* subnormal: the mantissa counts units of 2**-24, which a float holds exactly */
    return lb_bits_to_float(sign | lb_float_to_bits((float)rest * 5.9604644775390625e-8f));
}

static inline uint16_t lb_float_to_half(float f) {
    uint32_t bits = lb_float_to_bits(f), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
    if (rest >= 0x7f800000u)
        return (uint16_t)(sign | 0x7c00u | (rest > 0x7f800000u ? 0x200u | (rest >> 13 & 0x3ffu) : 0));
    if (rest >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds past 65504 */
    if (rest < 0x38800000u) {
        /* subnormal result: adding 0.5 lines the units of 2**-24 up with the last bit of the mantissa */
        return (uint16_t)(sign | (lb_float_to_bits(lb_bits_to_float(rest) + 0.5f) - 0x3f000000u));
    }
    return (uint16_t)(sign | (((rest + 0xfffu + (rest >> 13 & 1u)) >> 13) - (112u << 10)));
}

#endif
