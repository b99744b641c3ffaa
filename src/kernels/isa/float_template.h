/*
 * The float operations, written once over sixteen lanes (simd.h) and compiled for every instruction set.
 *
 * The order of the additions is part of the definition, and products are never fused with sums (the build turns
 * contraction off), so every instruction set gives the same bits. LB_ISA is defined before.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "inline.h"
#include "names.h"

#if defined(_MSC_VER)
#define LB_INLINED static __forceinline
#else
#define LB_INLINED static inline __attribute__((always_inline))
#endif

/* Loads n < 16 floats and fills the rest with zeros. */
static inline f32x16 load_part(const float *x, int32_t n) {
    float all[16] = {0};
    memcpy(all, x, (size_t)n * sizeof *x);
    return v_load(all);
}

static inline void store_part(float *x, f32x16 value, int32_t n) {
    float all[16];
    v_store(all, value);
    memcpy(x, all, (size_t)n * sizeof *x);
}

static inline f32x16 load_upto16(const float *x, int32_t n) { return n >= 16 ? v_load(x) : load_part(x, n); }

static inline void store_upto16(float *x, f32x16 value, int32_t n) {
    if (n >= 16) {
        v_store(x, value);
    } else {
        store_part(x, value, n);
    }
}

/*
 * exp(x), within 1 unit in the last place of float for -87.3 <= x <= 88, 0 below.
 * x = n ln 2 + r with |r| <= ln 2 / 2 (ln 2 in two parts, as in Cody and Waite); the polynomial is the Taylor series
 * of exp to the 7th power of r, whose first missing term, r**8 / 8!, is below 6e-9 of the value.
 */
static inline f32x16 v_exp(f32x16 x) {
    const f32x16 lowest = v_set1(-87.3f);
    const f32x16 t = v_max(v_min(x, v_set1(88.0f)), lowest);
    const i32x16 n = vi_round(v_mul(t, v_set1(1.44269504f)));
    const f32x16 nf = v_from_i32(n);
    const f32x16 r = v_sub(v_sub(t, v_mul(nf, v_set1(0.693359375f))), v_mul(nf, v_set1(-2.12194440e-4f)));
    f32x16 p = v_set1(1.0f / 5040);
    p = v_add(v_mul(p, r), v_set1(1.0f / 720));
    p = v_add(v_mul(p, r), v_set1(1.0f / 120));
    p = v_add(v_mul(p, r), v_set1(1.0f / 24));
    p = v_add(v_mul(p, r), v_set1(1.0f / 6));
    p = v_add(v_mul(p, r), v_set1(0.5f));
    p = v_add(v_mul(p, r), v_set1(1.0f));
    p = v_add(v_mul(p, r), v_set1(1.0f));
    return v_keep_from(v_mul(p, v_pow2(n)), x, lowest);
}

void LB_NAME(lb_exp)(const float *x, float shift, float factor, int32_t n, float *out) {
    for (int32_t i = 0; i < n; i += 16) {
        const f32x16 d = v_mul(v_sub(load_upto16(x + i, n - i), v_set1(shift)), v_set1(factor));
        store_upto16(out + i, v_exp(d), n - i);
    }
}

int32_t LB_NAME(lb_count_from)(const float *x, int32_t n, int32_t limit) {
    int32_t count = 0;
    for (int32_t i = 0; i < n; i++) { /* which compilers turn into a comparison per register */
        int32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        count += (bits & 0x7fffffff) >= limit;
    }
    return count;
}

void LB_NAME(lb_add)(float *x, const float *y, int32_t n) {
    for (int32_t i = 0; i < n; i += 16) {
        store_upto16(x + i, v_add(load_upto16(x + i, n - i), load_upto16(y + i, n - i)), n - i);
    }
}

void LB_NAME(lb_rms_norm)(const float *x, const float *weight, int32_t n, float eps, float *out) {
    f32x16 squares = v_set1(0.0f);
    for (int32_t i = 0; i < n; i += 16) {
        const f32x16 v = load_upto16(x + i, n - i);
        squares = v_add(squares, v_mul(v, v));
    }
    const f32x16 factor = v_set1(1.0f / sqrtf(v_sum(squares) / (float)n + eps));
    for (int32_t i = 0; i < n; i += 16) {
        const f32x16 v = v_mul(v_mul(load_upto16(x + i, n - i), factor), load_upto16(weight + i, n - i));
        store_upto16(out + i, v, n - i);
    }
}

/* Before floats become int8: what is no number counts as 0, and infinity as the largest float. */
static inline f32x16 tame(f32x16 x) {
    const f32x16 number = v_keep_from(x, x, v_set1(-INFINITY));
    return v_max(v_min(number, v_set1(FLT_MAX)), v_set1(-FLT_MAX));
}

/* The largest magnitude; `wild` tells whether a value has to be tamed, which the magnitudes of this one then are. */
static inline float largest_magnitude(const float *x, int32_t n, int *wild) {
    f32x16 largest = v_set1(0.0f), other = largest; /* two chains, because each step waits for the one before it */
    float lanes[16];
    uint32_t bits[16], most = 0;
    int32_t i = 0;
    for (; i + 32 <= n; i += 32) {
        largest = v_larger(largest, v_load(x + i));
        other = v_larger(other, v_load(x + i + 16));
    }
    for (; i < n; i += 16) largest = v_larger(largest, load_upto16(x + i, n - i));
    v_store(lanes, v_larger(largest, other));
    memcpy(bits, lanes, sizeof bits);
    for (i = 0; i < 16; i++) { /* without their signs, floats are in the order of their bits */
        bits[i] &= 0x7fffffffu;
        most = bits[i] > most ? bits[i] : most;
    }
    *wild = most >= 0x7f800000u;
    if (*wild) {
        largest = v_set1(0.0f);
        for (i = 0; i < n; i += 16) largest = v_max(largest, v_abs(tame(load_upto16(x + i, n - i))));
        return v_most(largest);
    }
    float result;
    memcpy(&result, &most, sizeof result);
    return result;
}

/* One scale group: q = round(x s). Returns their sum, at most 127 * n. */
LB_INLINED int32_t quantize_group(const float *x, int32_t n, float s, int8_t *q, const int wild) {
    i32x16 total = vi_set1(0);
    for (int32_t i = 0; i < n; i += 16) {
        const f32x16 value = load_upto16(x + i, n - i);
        const i32x16 v = vi_round(v_mul(wild ? tame(value) : value, v_set1(s)));
        total = vi_add(total, v);
        if (n - i >= 16) {
            vi_store_i8(q + i, v);
        } else {
            int8_t part[16];
            vi_store_i8(part, v);
            memcpy(q + i, part, (size_t)(n - i));
        }
    }
    int32_t lanes[16], all = 0;
    vi_store(lanes, total);
    for (int i = 0; i < 16; i++) all += lanes[i];
    return all;
}

void LB_NAME(lb_quantize)(const float *x, int32_t n, int32_t group_cols, int32_t per_token, int32_t padded, int8_t *q,
                          float *scale, int32_t *sum) {
    int wild = 0;
    float largest = per_token ? largest_magnitude(x, n, &wild) : 0.0f;
    for (int32_t start = 0; start < n; start += group_cols) {
        const int32_t cols = n - start < group_cols ? n - start : group_cols;
        if (!per_token) largest = largest_magnitude(x + start, cols, &wild);
        const float s = 127.0f / (largest > 1e-5f ? largest : 1e-5f);
        *scale++ = 1.0f / s;
        *sum++ =
            wild ? quantize_group(x + start, cols, s, q + start, 1) : quantize_group(x + start, cols, s, q + start, 0);
    }
    memset(q + n, 0, (size_t)(padded - n));
}

/* GELU is g (1 + tanh t) / 2 with t = sqrt(2 / pi) (g + 0.044715 g**3), which is g / (1 + exp(-2 t)). */
static inline f32x16 gelu_exponent(f32x16 g) {
    const f32x16 cube = v_mul(v_mul(v_mul(g, g), g), v_set1(0.044715f));
    return v_mul(v_add(g, cube), v_set1(-1.59576912f));
}

void LB_NAME(lb_glu)(float *gate, const float *up, int32_t n, int32_t activation) {
    const f32x16 zero = v_set1(0.0f), one = v_set1(1.0f);
    for (int32_t i = 0; i < n; i += 16) {
        const f32x16 g = load_upto16(gate + i, n - i), u = load_upto16(up + i, n - i);
        f32x16 a;
        if (activation == LB_RELU2) {
            a = v_max(g, zero);
            a = v_mul(a, a);
        } else {
            const f32x16 exponent = activation == LB_GELU         ? gelu_exponent(g)
                                    : activation == LB_SWIGLU_OAI ? v_mul(g, v_set1(-1.702f))
                                                                  : v_sub(zero, g);
            a = v_div(g, v_add(one, v_exp(exponent)));
        }
        store_upto16(gate + i, v_mul(a, activation == LB_SWIGLU_OAI ? v_add(u, one) : u), n - i);
    }
}

LB_INLINED i32x16 read_streams(const uint64_t *memory, size_t n, const int streams) {
    i32x16 sum[2] = {vi_set1(0), vi_set1(0)};
    for (size_t i = 0; i < n / streams; i += 8) {
        for (int s = 0; s < streams; s++) {
            const uint64_t *p = memory + n / streams * s + i;
            sum[s & 1] = vi_add(sum[s & 1], vi_load((const int32_t *)(const void *)p));
        }
    }
    return vi_add(sum[0], sum[1]);
}

uint64_t LB_NAME(lb_read)(const uint64_t *memory, size_t n, int32_t streams) {
    int32_t lanes[16];
    uint64_t total = 0;
    vi_store(lanes, streams == 1   ? read_streams(memory, n, 1)
                    : streams == 2 ? read_streams(memory, n, 2)
                    : streams == 4 ? read_streams(memory, n, 4)
                    : streams == 8 ? read_streams(memory, n, 8)
                                   : read_streams(memory, n, 16));
    for (int j = 0; j < 16; j++) total += (uint32_t)lanes[j];
    return total;
}

#include "hadamard_template.h"
