/*
 * What brings positions together: keys and values, attention over them, and the gated delta rule. Behind
 * float_template.h, whose rules hold here too.
 */

static inline f32x16 load_kv(const void *base, ptrdiff_t at, const int32_t kv_type) {
    if (kv_type == LB_KV_F16) return v_load_f16((const uint16_t *)base + at);
    if (kv_type == LB_KV_I8) return v_load_i8((const int8_t *)base + at);
    return v_load((const float *)base + at);
}

/* Writes sixteen values, `step` elements apart. */
static inline void store_kv(void *base, ptrdiff_t at, ptrdiff_t step, f32x16 x, int32_t n, int32_t kv_type) {
    if (kv_type == LB_KV_F16) {
        uint16_t part[16];
        v_store_f16(part, x);
        for (int32_t j = 0; j < n; j++) ((uint16_t *)base)[at + j * step] = part[j];
    } else if (kv_type == LB_KV_I8) {
        int8_t part[16];
        vi_store_i8(part, vi_round(x));
        for (int32_t j = 0; j < n; j++) ((int8_t *)base)[at + j * step] = part[j];
    } else {
        float part[16];
        v_store(part, x);
        for (int32_t j = 0; j < n; j++) ((float *)base)[at + j * step] = part[j];
    }
}

void LB_NAME(lb_kv_store)(const float *k, const float *v, char *block, const lb_attention_args *shape,
                          int32_t position) {
    const int32_t dim = shape->head_dim, wide = shape->value_dim, padded = (wide + 15) / 16 * 16;
    const int32_t type = shape->kv_type;
    const lb_kv *kv = &shape->kv;
    float *key_scales = (float *)(void *)(block + kv->key_scales);
    float *value_scales = (float *)(void *)(block + kv->value_scales);
    position %= LB_KV_SPAN;
    for (int32_t head = 0; head < shape->n_kv_heads; head++, k += dim, v += wide) {
        const ptrdiff_t key = head * kv->key_stride + (ptrdiff_t)(position / 16) * dim * 16 + position % 16;
        const ptrdiff_t value = head * kv->value_stride + (ptrdiff_t)position * padded;
        f32x16 k_factor = v_set1(1.0f), v_factor = k_factor;
        int wild_k = 0, wild_v = 0;
        if (type == LB_KV_I8) {
            const float k_most = largest_magnitude(k, dim, &wild_k);
            key_scales[head * LB_KV_SPAN + position] = k_most / 127.0f;
            k_factor = v_set1(k_most > 0 ? 127.0f / k_most : 0.0f);
        }
        for (int32_t i = 0; i < dim; i += 16) {
            const int32_t n = dim - i < 16 ? dim - i : 16;
            const f32x16 part = load_upto16(k + i, n);
            store_kv(block + kv->keys, key + (ptrdiff_t)i * 16, 16, v_mul(wild_k ? tame(part) : part, k_factor), n,
                     type);
        }
        if (kv->values == kv->keys) continue;
        if (type == LB_KV_I8) {
            const float v_most = largest_magnitude(v, wide, &wild_v);
            value_scales[head * LB_KV_SPAN + position] = v_most / 127.0f;
            v_factor = v_set1(v_most > 0 ? 127.0f / v_most : 0.0f);
        }
        for (int32_t i = 0; i < wide; i += 16) {
            const f32x16 part = load_upto16(v + i, wide - i);
            store_kv(block + kv->values, value + i, 1, v_mul(wild_v ? tame(part) : part, v_factor), 16, type);
        }
    }
}

#include "attention_template.h"

/* `count` times sixteen values of one head's matrix, `step` floats to a key: two chains of sums over the keys, as in
 * attention. Both passes go over a part of the matrix that stays in the first cache. */
LB_INLINED void delta_values(const float *from, float *to, ptrdiff_t step, const float *q, const float *k,
                             const float *v, float decay, float beta, int32_t size, int32_t left, float *out,
                             const int count) {
    const f32x16 g = v_set1(decay);
    f32x16 even[4], odd[4], error[4];
    int32_t j = 0;
    for (int c = 0; c < count; c++) even[c] = odd[c] = v_set1(0.0f);
    for (; j + 1 < size; j += 2) {
        for (int c = 0; c < count; c++) {
            const float *m = from + j * step + 16 * c;
            even[c] = v_add(even[c], v_mul(v_mul(v_load(m), g), v_set1(k[j])));
            odd[c] = v_add(odd[c], v_mul(v_mul(v_load(m + step), g), v_set1(k[j + 1])));
        }
    }
    for (int c = 0; c < count; c++) {
        if (j < size) even[c] = v_add(even[c], v_mul(v_mul(v_load(from + j * step + 16 * c), g), v_set1(k[j])));
        error[c] = v_mul(v_set1(beta), v_sub(load_upto16(v + 16 * c, left - 16 * c), v_add(even[c], odd[c])));
        even[c] = odd[c] = v_set1(0.0f);
    }
    for (j = 0; j < size; j++) {
        for (int c = 0; c < count; c++) {
            const ptrdiff_t at = j * step + 16 * c;
            const f32x16 m = v_add(v_mul(v_load(from + at), g), v_mul(error[c], v_set1(k[j])));
            v_store(to + at, m);
            if (j & 1) {
                odd[c] = v_add(odd[c], v_mul(m, v_set1(q[j])));
            } else {
                even[c] = v_add(even[c], v_mul(m, v_set1(q[j])));
            }
        }
    }
    for (int c = 0; c < count; c++) store_upto16(out + 16 * c, v_add(even[c], odd[c]), left - 16 * c);
}

void LB_NAME(lb_delta)(const float *from, float *to, const float *q, const float *k, const float *v, float decay,
                       float beta, int32_t size, float *out) {
    const ptrdiff_t step = (size + 15) / 16 * 16;
    int32_t i = 0;
    for (; i + 16 * LB_HEADS <= size; i += 16 * LB_HEADS)
        delta_values(from + i, to + i, step, q, k, v + i, decay, beta, size, size - i, out + i, LB_HEADS);
    for (; i < size; i += 16)
        delta_values(from + i, to + i, step, q, k, v + i, decay, beta, size, size - i, out + i, 1);
}
