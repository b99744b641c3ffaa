/* Sixteen lanes in four 128-bit registers (AArch64). */
#ifndef LB_SIMD_H
#define LB_SIMD_H

#include <arm_neon.h>
#include <stdint.h>

typedef struct {
    float32x4_t v[4];
} f32x16;
typedef struct {
    int32x4_t v[4];
} i32x16;

#define LB_FOUR(type, f, x) ((type){{f((x).v[0]), f((x).v[1]), f((x).v[2]), f((x).v[3])}})
#define LB_FOUR2(type, f, x, y) \
    ((type){{f((x).v[0], (y).v[0]), f((x).v[1], (y).v[1]), f((x).v[2], (y).v[2]), f((x).v[3], (y).v[3])}})

static inline f32x16 v_load(const float *p) {
    return (f32x16){{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}
static inline void v_store(float *p, f32x16 x) {
    vst1q_f32(p, x.v[0]);
    vst1q_f32(p + 4, x.v[1]);
    vst1q_f32(p + 8, x.v[2]);
    vst1q_f32(p + 12, x.v[3]);
}
static inline f32x16 v_set1(float x) {
    const float32x4_t all = vdupq_n_f32(x);
    return (f32x16){{all, all, all, all}};
}
static inline f32x16 v_add(f32x16 x, f32x16 y) { return LB_FOUR2(f32x16, vaddq_f32, x, y); }
static inline f32x16 v_sub(f32x16 x, f32x16 y) { return LB_FOUR2(f32x16, vsubq_f32, x, y); }
static inline f32x16 v_mul(f32x16 x, f32x16 y) { return LB_FOUR2(f32x16, vmulq_f32, x, y); }
static inline f32x16 v_div(f32x16 x, f32x16 y) { return LB_FOUR2(f32x16, vdivq_f32, x, y); }
/* Compared and selected, not fmax and fmin: the second operand if one is NaN or both are zeros, as everywhere else. */
static inline float32x4_t v_max_quarter(float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
static inline float32x4_t v_min_quarter(float32x4_t x, float32x4_t y) { return vbslq_f32(vcltq_f32(x, y), x, y); }
static inline f32x16 v_max(f32x16 x, f32x16 y) { return LB_FOUR2(f32x16, v_max_quarter, x, y); }
static inline f32x16 v_min(f32x16 x, f32x16 y) { return LB_FOUR2(f32x16, v_min_quarter, x, y); }
static inline f32x16 v_abs(f32x16 x) { return LB_FOUR(f32x16, vabsq_f32, x); }
static inline float32x4_t v_larger_quarter(float32x4_t x, float32x4_t y) {
    return vreinterpretq_f32_s32(vmaxq_s32(vreinterpretq_s32_f32(x), vreinterpretq_s32_f32(vabsq_f32(y))));
}
/* The larger of x, a magnitude, and that of y; what is no number is larger than all others. */
static inline f32x16 v_larger(f32x16 x, f32x16 y) { return LB_FOUR2(f32x16, v_larger_quarter, x, y); }
static inline float32x4_t v_keep_quarter(float32x4_t y, uint32x4_t keep) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(y), keep));
}
/* y where x >= limit, else 0 */
static inline f32x16 v_keep_from(f32x16 y, f32x16 x, f32x16 limit) {
    return (f32x16){
        {v_keep_quarter(y.v[0], vcgeq_f32(x.v[0], limit.v[0])), v_keep_quarter(y.v[1], vcgeq_f32(x.v[1], limit.v[1])),
         v_keep_quarter(y.v[2], vcgeq_f32(x.v[2], limit.v[2])), v_keep_quarter(y.v[3], vcgeq_f32(x.v[3], limit.v[3]))}};
}
static inline float32x4_t v_widen_f16(uint16x4_t h) { return vcvt_f32_f16(vreinterpret_f16_u16(h)); }
static inline f32x16 v_load_f16(const uint16_t *p) {
    return (f32x16){{v_widen_f16(vld1_u16(p)), v_widen_f16(vld1_u16(p + 4)), v_widen_f16(vld1_u16(p + 8)),
                     v_widen_f16(vld1_u16(p + 12))}};
}
static inline void v_store_f16(uint16_t *p, f32x16 x) {
    for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i])));
}
static inline float32x4_t v_widen_bf16(uint16x4_t h) { return vreinterpretq_f32_u32(vshll_n_u16(h, 16)); }
static inline f32x16 v_load_bf16(const uint16_t *p) {
    return (f32x16){{v_widen_bf16(vld1_u16(p)), v_widen_bf16(vld1_u16(p + 4)), v_widen_bf16(vld1_u16(p + 8)),
                     v_widen_bf16(vld1_u16(p + 12))}};
}
static inline float32x4_t v_widen_i16(int16x4_t x) { return vcvtq_f32_s32(vmovl_s16(x)); }
static inline f32x16 v_load_i8(const int8_t *p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t a = vmovl_s8(vget_low_s8(bytes)), b = vmovl_s8(vget_high_s8(bytes));
    return (f32x16){{v_widen_i16(vget_low_s16(a)), v_widen_i16(vget_high_s16(a)), v_widen_i16(vget_low_s16(b)),
                     v_widen_i16(vget_high_s16(b))}};
}

/* The lanes as a binary tree: the upper half onto the lower one, four times. */
#define LB_TREE(f, x)                                                      \
    float32x4_t quarter = f(f((x).v[0], (x).v[2]), f((x).v[1], (x).v[3])); \
    quarter = f(quarter, vextq_f32(quarter, quarter, 2));                  \
    return vgetq_lane_f32(f(quarter, vextq_f32(quarter, quarter, 1)), 0)
static inline float v_sum(f32x16 x) { LB_TREE(vaddq_f32, x); }
static inline float v_most(f32x16 x) { LB_TREE(v_max_quarter, x); }

static inline i32x16 vi_load(const int32_t *p) {
    return (i32x16){{vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)}};
}
static inline void vi_store(int32_t *p, i32x16 x) {
    vst1q_s32(p, x.v[0]);
    vst1q_s32(p + 4, x.v[1]);
    vst1q_s32(p + 8, x.v[2]);
    vst1q_s32(p + 12, x.v[3]);
}
static inline i32x16 vi_set1(int32_t x) {
    const int32x4_t all = vdupq_n_s32(x);
    return (i32x16){{all, all, all, all}};
}
static inline i32x16 vi_add(i32x16 x, i32x16 y) { return LB_FOUR2(i32x16, vaddq_s32, x, y); }
static inline f32x16 v_from_i32(i32x16 x) { return LB_FOUR(f32x16, vcvtq_f32_s32, x); }
/* nearest integer, ties to even */
static inline i32x16 vi_round(f32x16 x) { return LB_FOUR(i32x16, vcvtnq_s32_f32, x); }
static inline float32x4_t v_pow2_quarter(int32x4_t x) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(x, vdupq_n_s32(127)), 23));
}
/* 2**x for -126 <= x <= 127 */
static inline f32x16 v_pow2(i32x16 x) { return LB_FOUR(f32x16, v_pow2_quarter, x); }
static inline void vi_store_i8(int8_t *p, i32x16 x) {
    const int16x8_t a = vcombine_s16(vqmovn_s32(x.v[0]), vqmovn_s32(x.v[1])),
                    b = vcombine_s16(vqmovn_s32(x.v[2]), vqmovn_s32(x.v[3]));
    vst1q_s8(p, vcombine_s8(vqmovn_s16(a), vqmovn_s16(b)));
}

/* 32 codes of four bits of sixteen rows become what a table has for them. */
static inline void look_up(const uint8_t *w, const uint8_t *table, uint8_t *codes) {
    const uint8x16_t values = vld1q_u8(table);
    for (int i = 0; i < 4 * 64; i += 16) {
        const uint8x16_t v = vld1q_u8(w + i);
        vst1q_u8(codes + i, vqtbl1q_u8(values, vandq_u8(v, vdupq_n_u8(15))));
        vst1q_u8(codes + 4 * 64 + i, vqtbl1q_u8(values, vshrq_n_u8(v, 4)));
    }
}
#define LB_LOOK_UP look_up

#endif
