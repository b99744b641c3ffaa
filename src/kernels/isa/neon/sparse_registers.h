/* Registers of 16 bytes for sparse_simd.h: all but the dot product. */
#ifndef LB_SPARSE_REGISTERS_H
#define LB_SPARSE_REGISTERS_H

#include <string.h>

#include "../inline.h"
#include "simd.h"

#define LB_WIDTH 16

typedef uint8x16_t vec;
typedef int8x16_t four_q;

LB_INLINE vec load(const uint8_t *p) { return vld1q_u8(p); }
LB_INLINE vec zip8_low(vec a, vec b) { return vzip1q_u8(a, b); }
LB_INLINE vec zip8_high(vec a, vec b) { return vzip2q_u8(a, b); }
LB_INLINE vec zip16_low(vec a, vec b) {
    return vreinterpretq_u8_u16(vzip1q_u16(vreinterpretq_u16_u8(a), vreinterpretq_u16_u8(b)));
}
LB_INLINE vec zip16_high(vec a, vec b) {
    return vreinterpretq_u8_u16(vzip2q_u16(vreinterpretq_u16_u8(a), vreinterpretq_u16_u8(b)));
}
LB_INLINE int32x4_t no_sums(void) { return vdupq_n_s32(0); }
LB_INLINE int32x4_t load_acc(const int32_t *p) { return vld1q_s32(p); }
LB_INLINE void store_acc(int32_t *p, int32x4_t a) { vst1q_s32(p, a); }

LB_INLINE four_q broadcast4(const int8_t *q) {
    int32_t four;
    memcpy(&four, q, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

/* Codes times 4**f, but those of field 3 as they are: 192 would be a negative signed code. */
LB_INLINE int8x16_t field_of(vec v, const int f) {
    return vreinterpretq_s8_u8(f == 3 ? vshrq_n_u8(v, 6) : vandq_u8(v, vdupq_n_u8((uint8_t)(3 << (2 * f)))));
}

LB_INLINE i32x16 load_sums(const int32_t *acc, const int field) {
    const int32x4_t down = vdupq_n_s32(field == 3 ? 0 : -2 * field);
    i32x16 s = vi_load(acc);
    for (int v = 0; v < 4; v++) s.v[v] = vshlq_s32(s.v[v], down);
    return s;
}

#endif
