/* Sixteen lanes in an array: plain C for any CPU, and the definition that the other versions must equal bit for bit. */
#ifndef LB_SIMD_H
#define LB_SIMD_H

#include <stdint.h>
#include <string.h>

#include "half.h"

typedef struct {
    float v[16];
} f32x16;
typedef struct {
    int32_t v[16];
} i32x16;

#define LB_EACH(type, expression)  \
    type r;                        \
    for (int i = 0; i < 16; i++) { \
        r.v[i] = (expression);     \
    }                              \
    return r

static inline f32x16 v_load(const float *p) {
    f32x16 r;
    memcpy(r.v, p, sizeof r.v);
    return r;
}
static inline void v_store(float *p, f32x16 a) { memcpy(p, a.v, sizeof a.v); }
static inline f32x16 v_set1(float a) { LB_EACH(f32x16, a); }
static inline f32x16 v_add(f32x16 a, f32x16 b) { LB_EACH(f32x16, a.v[i] + b.v[i]); }
static inline f32x16 v_sub(f32x16 a, f32x16 b) { LB_EACH(f32x16, a.v[i] - b.v[i]); }
static inline f32x16 v_mul(f32x16 a, f32x16 b) { LB_EACH(f32x16, a.v[i] * b.v[i]); }
static inline f32x16 v_div(f32x16 a, f32x16 b) { LB_EACH(f32x16, a.v[i] / b.v[i]); }
static inline f32x16 v_max(f32x16 a, f32x16 b) { LB_EACH(f32x16, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
static inline f32x16 v_min(f32x16 a, f32x16 b) { LB_EACH(f32x16, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
static inline f32x16 v_abs(f32x16 a) { LB_EACH(f32x16, a.v[i] < 0 ? -a.v[i] : a.v[i]); }
static inline float larger(float a, float b) {
    const uint32_t one = lb_float_to_bits(a), other = lb_float_to_bits(b) & 0x7fffffffu;
    return lb_bits_to_float(one > other ? one : other);
}
/* The larger of a, a magnitude, and that of b; what is no number is larger than all others. */
static inline f32x16 v_larger(f32x16 a, f32x16 b) { LB_EACH(f32x16, larger(a.v[i], b.v[i])); }
/* a where x >= limit, else 0 */
static inline f32x16 v_keep_from(f32x16 a, f32x16 x, f32x16 limit) {
    LB_EACH(f32x16, x.v[i] >= limit.v[i] ? a.v[i] : 0.0f);
}
static inline f32x16 v_load_f16(const uint16_t *p) { LB_EACH(f32x16, lb_half_to_float(p[i])); }
static inline void v_store_f16(uint16_t *p, f32x16 a) {
    for (int i = 0; i < 16; i++) p[i] = lb_float_to_half(a.v[i]);
}
static inline f32x16 v_load_bf16(const uint16_t *p) { LB_EACH(f32x16, lb_bits_to_float((uint32_t)p[i] << 16)); }
static inline f32x16 v_load_i8(const int8_t *p) { LB_EACH(f32x16, (float)p[i]); }

/* Adds the lanes as a binary tree: 8 + 8, 4 + 4, 2 + 2, 1 + 1. */
static inline float v_sum(f32x16 a) {
    for (int half = 8; half; half /= 2) {
        for (int i = 0; i < half; i++) a.v[i] = a.v[i] + a.v[i + half];
    }
    return a.v[0];
}
/* The largest lane, found in the same order. */
static inline float v_most(f32x16 a) {
    for (int half = 8; half; half /= 2) {
        for (int i = 0; i < half; i++) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
    }
    return a.v[0];
}

static inline i32x16 vi_load(const int32_t *p) {
    i32x16 r;
    memcpy(r.v, p, sizeof r.v);
    return r;
}
static inline void vi_store(int32_t *p, i32x16 a) { memcpy(p, a.v, sizeof a.v); }
static inline i32x16 vi_set1(int32_t a) { LB_EACH(i32x16, a); }
/* wraps around, like the registers' additions */
static inline i32x16 vi_add(i32x16 a, i32x16 b) { LB_EACH(i32x16, (int32_t)((uint32_t)a.v[i] + (uint32_t)b.v[i])); }
static inline f32x16 v_from_i32(i32x16 a) { LB_EACH(f32x16, (float)a.v[i]); }
/* nearest integer, ties to even, for |a| < 2**22: adding 1.5 * 2**23 leaves the rounded integer in the low bits */
static inline i32x16 vi_round(f32x16 a) {
    LB_EACH(i32x16, (int32_t)(lb_float_to_bits(a.v[i] + 12582912.0f) & 0x7fffffu) - 0x400000);
}
/* 2**a for -126 <= a <= 127 */
static inline f32x16 v_pow2(i32x16 a) { LB_EACH(f32x16, lb_bits_to_float((uint32_t)(a.v[i] + 127) << 23)); }
static inline void vi_store_i8(int8_t *p, i32x16 a) {
    for (int i = 0; i < 16; i++) p[i] = (int8_t)a.v[i];
}

#endif
