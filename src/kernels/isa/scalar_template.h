/*
 * The float operations one value at a time, for CPUs whose floating-point unit has no lanes: the x87 of a CPU with MMX
 * and no SSE, and the VFP of one with ARMv6. LB_ISA is defined before.
 *
 * Same operations in the same order as float_template.h, so a compiler that rounds every result to float gives the same
 * bits. What differs is the order of the loops: the template keeps sixteen sums side by side, which these processors
 * would keep in memory; here each sum is finished before the next begins, and stays in a register.
 *
 * An int8 key or value becomes a float by look-up: an x87 cannot load one, and via memory it takes an instruction more.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "half.h"
#include "inline.h"
#include "names.h"

#define LB_FOUR(n) n, (n) + 1, (n) + 2, (n) + 3
#define LB_SIXTEEN(n) LB_FOUR(n), LB_FOUR((n) + 4), LB_FOUR((n) + 8), LB_FOUR((n) + 12)
#define LB_SIXTY_FOUR(n) LB_SIXTEEN(n), LB_SIXTEEN((n) + 16), LB_SIXTEEN((n) + 32), LB_SIXTEEN((n) + 48)

static const float of_int8[256] = {LB_SIXTY_FOUR(-128), LB_SIXTY_FOUR(-64), LB_SIXTY_FOUR(0), LB_SIXTY_FOUR(64)};

/* Sixteen sums, added as a binary tree. */
static float add_lanes(float *lanes) {
    for (int half = 8; half; half /= 2) {
        for (int i = 0; i < half; i++) lanes[i] = lanes[i] + lanes[i + half];
    }
    return lanes[0];
}

/* Before floats become int8: what is no number counts as 0, and infinity as the largest float. */
LB_INLINE float tame(float x) {
    if (x != x) return 0.0f;
    return x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : x;
}

/* The largest magnitude; `wild` tells whether a value has to be tamed, which the magnitudes of this one then are.
 * Without their signs, floats are in the order of their bits. */
static float largest_magnitude(const float *x, int32_t n, int *wild) {
    uint32_t most = 0;
    LB_UNROLL(4)
    for (int32_t i = 0; i < n; i++) {
        const uint32_t magnitude = lb_float_to_bits(x[i]) & 0x7fffffffu;
        most = magnitude > most ? magnitude : most;
    }
    *wild = most >= 0x7f800000u;
    if (*wild) {
        most = 0;
        for (int32_t i = 0; i < n; i++) {
            const uint32_t magnitude = lb_float_to_bits(tame(x[i])) & 0x7fffffffu;
            most = magnitude > most ? magnitude : most;
        }
    }
    return lb_bits_to_float(most);
}

/* v_exp of the template, without its upper bound: x is at most 88. */
LB_INLINE float exponential(float t) {
    if (!(t >= -87.3f)) return 0.0f;
    const int32_t n = (int32_t)lrintf(t * 1.44269504f);
    const float nf = (float)n;
    const float r = (t - nf * 0.693359375f) - nf * -2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * lb_bits_to_float((uint32_t)(n + 127) << 23);
}

LB_INLINE float at_most_88(float x) { return x > 88.0f ? 88.0f : x; }

void LB_NAME(lb_exp)(const float *x, float shift, float factor, int32_t n, float *out) {
    for (int32_t i = 0; i < n; i++) out[i] = exponential(at_most_88((x[i] - shift) * factor));
}

void LB_NAME(lb_add)(float *x, const float *y, int32_t n) {
    LB_UNROLL(4)
    for (int32_t i = 0; i < n; i++) x[i] = x[i] + y[i];
}

void LB_NAME(lb_rms_norm)(const float *x, const float *weight, int32_t n, float eps, float *out) {
    float lanes[16];
    for (int32_t lane = 0; lane < 16; lane++) {
        float sum = 0.0f;
        LB_UNROLL(4)
        for (int32_t i = lane; i < n; i += 16) sum = sum + x[i] * x[i];
        lanes[lane] = sum;
    }
    const float factor = 1.0f / sqrtf(add_lanes(lanes) / (float)n + eps);
    LB_UNROLL(4)
    for (int32_t i = 0; i < n; i++) out[i] = x[i] * factor * weight[i];
}

/* One scale group: q = round(x s). Returns their sum. */
LB_INLINE int32_t quantize_group(const float *x, int32_t n, float s, int8_t *q, const int wild) {
    int32_t total = 0;
    LB_UNROLL(4)
    for (int32_t i = 0; i < n; i++) {
        const int32_t rounded = (int32_t)lrintf((wild ? tame(x[i]) : x[i]) * s);
        total += rounded;
        q[i] = (int8_t)rounded;
    }
    return total;
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
LB_INLINE float gelu_exponent(float g) { return (g + g * g * g * 0.044715f) * -1.59576912f; }

LB_INLINE void gate_all(float *gate, const float *up, int32_t n, const int32_t activation) {
    for (int32_t i = 0; i < n; i++) {
        const float g = gate[i];
        if (activation == LB_RELU2) {
            const float a = g > 0.0f ? g : 0.0f;
            gate[i] = a * a * up[i];
        } else {
            const float t = activation == LB_GELU         ? gelu_exponent(g)
                            : activation == LB_SWIGLU_OAI ? g * -1.702f
                                                          : 0.0f - g;
            const float u = activation == LB_SWIGLU_OAI ? up[i] + 1.0f : up[i];
            gate[i] = g / (1.0f + exponential(at_most_88(t))) * u;
        }
    }
}

void LB_NAME(lb_glu)(float *gate, const float *up, int32_t n, int32_t activation) {
    if (activation == LB_SILU) {
        gate_all(gate, up, n, LB_SILU);
    } else {
        gate_all(gate, up, n, activation);
    }
}

#include "scalar_attention.h"

/* One value after the other; each has two chains of sums over the keys. */
void LB_NAME(lb_delta)(const float *from, float *to, const float *q, const float *k, const float *v, float decay,
                       float beta, int32_t size, float *out) {
    const ptrdiff_t step = (size + 15) / 16 * 16;
    for (int32_t i = 0; i < size; i++) {
        float even = 0.0f, odd = 0.0f;
        int32_t j = 0;
        for (; j + 1 < size; j += 2) {
            even = even + from[j * step + i] * decay * k[j];
            odd = odd + from[(j + 1) * step + i] * decay * k[j + 1];
        }
        if (j < size) even = even + from[j * step + i] * decay * k[j];
        const float error = beta * (v[i] - (even + odd));
        even = odd = 0.0f;
        for (j = 0; j < size; j++) {
            const float m = from[j * step + i] * decay + error * k[j];
            to[j * step + i] = m;
            if (j & 1) {
                odd = odd + m * q[j];
            } else {
                even = even + m * q[j];
            }
        }
        out[i] = even + odd;
    }
    for (int32_t j = 0; j < size; j++) {
        for (int32_t i = size; i < step; i++) to[j * step + i] = 0.0f;
    }
}
