/*
 * The cache of keys and values, and attention, one value at a time: the second half of scalar_template.h, which
 * includes it.
 */
#ifndef LB_SCALAR_ATTENTION_H
#define LB_SCALAR_ATTENTION_H

LB_INLINE float cached(const void *base, ptrdiff_t at, const int32_t type) {
    if (type == LB_KV_F16) return lb_half_to_float(((const uint16_t *)base)[at]);
    if (type == LB_KV_I8) return of_int8[((const int8_t *)base)[at] + 128];
    return ((const float *)base)[at];
}

static void store_one(void *base, ptrdiff_t at, float x, int32_t type) {
    if (type == LB_KV_F16) {
        ((uint16_t *)base)[at] = lb_float_to_half(x);
    } else if (type == LB_KV_I8) {
        ((int8_t *)base)[at] = (int8_t)lrintf(x);
    } else {
        ((float *)base)[at] = x;
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
        float k_factor = 1.0f, v_factor = 1.0f;
        int wild_k = 0, wild_v = 0;
        if (type == LB_KV_I8) {
            const float k_most = largest_magnitude(k, dim, &wild_k);
            key_scales[head * LB_KV_SPAN + position] = k_most / 127.0f;
            k_factor = k_most > 0 ? 127.0f / k_most : 0.0f;
        }
        for (int32_t i = 0; i < dim; i++) {
            store_one(block + kv->keys, key + (ptrdiff_t)i * 16, (wild_k ? tame(k[i]) : k[i]) * k_factor, type);
        }
        if (kv->values == kv->keys) continue;
        if (type == LB_KV_I8) {
            const float v_most = largest_magnitude(v, wide, &wild_v);
            value_scales[head * LB_KV_SPAN + position] = v_most / 127.0f;
            v_factor = v_most > 0 ? 127.0f / v_most : 0.0f;
        }
        for (int32_t i = 0; i < wide; i++) {
            store_one(block + kv->values, value + i, (wild_v ? tame(v[i]) : v[i]) * v_factor, type);
        }
        for (int32_t i = wide; i < padded; i++) store_one(block + kv->values, value + i, 0.0f, type);
    }
}

enum { SPAN = LB_KV_SPAN }; /* positions between two looks at the running maximum, as in the template */

LB_INLINE float score(const void *keys, ptrdiff_t at, const float *q, int32_t dim, const int32_t type) {
    float even = 0.0f, odd = 0.0f;
    int32_t d = 0;
    LB_UNROLL(6)
    for (; d + 8 <= dim; d += 8, at += 128) {
        LB_UNROLL(4)
        for (int i = 0; i < 8; i += 2) {
            even = even + cached(keys, at + 16 * i, type) * q[d + i];
            odd = odd + cached(keys, at + 16 * i + 16, type) * q[d + i + 1];
        }
    }
    for (; d + 1 < dim; d += 2, at += 32) {
        even = even + cached(keys, at, type) * q[d];
        odd = odd + cached(keys, at + 16, type) * q[d + 1];
    }
    if (d < dim) even = even + cached(keys, at, type) * q[d];
    return even + odd;
}

/* Of n positions. A constant `dim` needs no loop control. */
LB_INLINE void score_span(const void *keys, ptrdiff_t at, const float *q, const int32_t dim, int32_t n,
                          const float *key_scales, float *weights, const int32_t type) {
    for (int32_t b = 0; b < n; b += 16, at += 16 * dim) {
        const int32_t end = n - b < 16 ? n - b : 16;
        for (int32_t i = 0; i < end; i++) {
            const float one = score(keys, at + i, q, dim, type);
            weights[b + i] = type == LB_KV_I8 ? one * key_scales[b + i] : one;
        }
    }
}

/* From the scores of one span to weights: updates the running maximum and sum, and rescales `total` if need be. */
static void soften(float *weights, int32_t begin, int32_t n, int32_t dim, float *total, float *highest,
                   float *weight_sum) {
    float top = -INFINITY, lanes[16];
    LB_UNROLL(4)
    for (int32_t i = begin; i < n; i++) top = weights[i] > top ? weights[i] : top; /* passes over what is no number */
    if (top > *highest) {
        const float shrink = exponential(*highest - top); /* exp(-inf) is 0: nothing was added yet */
        *weight_sum *= shrink;
        for (int32_t c = 0; c < dim; c++) total[c] = total[c] * shrink;
        *highest = top;
    }
    const float shift = *highest;
    for (int32_t i = begin; i < n; i++) weights[i] = exponential(weights[i] - shift);
    if (begin == 0 && n == SPAN) {
        for (int lane = 0; lane < 16; lane++) {
            lanes[lane] = weights[lane];
            for (int i = lane + 16; i < SPAN; i += 16) lanes[lane] = lanes[lane] + weights[i];
        }
    } else {
        memset(lanes, 0, sizeof lanes);
        for (int32_t i = begin; i < n; i++) lanes[i % 16] = lanes[i % 16] + weights[i];
    }
    *weight_sum += add_lanes(lanes);
}

/* Adds the sums of a piece to those of the pieces before it. */
static void add_piece(float *total, float *highest, float *weight_sum, const float *more, float highest_more,
                      float weight_sum_more, int32_t dim) {
    const float top = highest_more > *highest ? highest_more : *highest;
    const float before = exponential(*highest - top), now = exponential(highest_more - top);
    for (int32_t c = 0; c < dim; c++) total[c] = total[c] * before + more[c] * now;
    *weight_sum = *weight_sum * before + weight_sum_more * now;
    *highest = top;
}

/* total += values * weights, for the positions from `begin` to n. Where `padded` is constant so is each offset. */
LB_INLINE void add_values(const void *base, ptrdiff_t values, const int32_t padded, int32_t wide, const float *weights,
                          int32_t begin, int32_t n, float *total, const int32_t type) {
    for (int32_t c = 0; c < wide; c++) {
        ptrdiff_t at = values + c + (ptrdiff_t)begin * padded;
        float sum = total[c];
        int32_t i = begin;
        for (; i + 16 <= n; i += 16, at += 16 * padded) {
            LB_UNROLL(16)
            for (int j = 0; j < 16; j++) sum = sum + cached(base, at + j * padded, type) * weights[i + j];
        }
        for (; i < n; i++, at += padded) sum = sum + cached(base, at, type) * weights[i];
        total[c] = sum;
    }
}

/* The sums over the positions from `first` to `count` of one piece. */
LB_INLINE void attend_piece(const lb_attention_args *a, char *const *blocks, const float *q, int32_t kv_head,
                            const float *sink, int32_t first, int32_t count, float *total, float *highest,
                            float *weight_sum, const int32_t type) {
    const int32_t dim = a->head_dim, wide = a->value_dim, padded = (wide + 15) / 16 * 16;
    const lb_kv *kv = &a->kv;
    float weights[SPAN];
    *highest = sink ? *sink : -INFINITY, *weight_sum = sink ? 1.0f : 0.0f;
    memset(total, 0, (size_t)wide * sizeof *total);
    for (int32_t start = first / SPAN * SPAN; start < count; start += SPAN) {
        const char *block = blocks[start / SPAN];
        const int32_t begin = first > start ? first - start : 0;
        const int32_t n = count - start < SPAN ? count - start : SPAN;
        const void *keys = block + kv->keys, *cached_values = block + kv->values;
        const float *key_scales = (const float *)(const void *)(block + kv->key_scales) + kv_head * SPAN;
        const float *value_scales = (const float *)(const void *)(block + kv->value_scales) + kv_head * SPAN;
        const ptrdiff_t values = kv_head * kv->value_stride;
        if (type != LB_KV_F16 && dim == 8) {
            score_span(keys, kv_head * kv->key_stride, q, 8, n, key_scales, weights, type);
        } else if (type != LB_KV_F16 && dim == 48) {
            score_span(keys, kv_head * kv->key_stride, q, 48, n, key_scales, weights, type);
        } else if (type != LB_KV_F16 && dim == 64) {
            score_span(keys, kv_head * kv->key_stride, q, 64, n, key_scales, weights, type);
        } else {
            score_span(keys, kv_head * kv->key_stride, q, dim, n, key_scales, weights, type);
        }
        soften(weights, begin, n, wide, total, highest, weight_sum);
        if (type == LB_KV_I8) {
            for (int32_t i = 0; i < n; i++) weights[i] = weights[i] * value_scales[i];
        }
        if (type != LB_KV_F16 && padded == 16) {
            add_values(cached_values, values, 16, wide, weights, begin, n, total, type);
        } else if (type != LB_KV_F16 && padded == 48) {
            add_values(cached_values, values, 48, wide, weights, begin, n, total, type);
        } else if (type != LB_KV_F16 && padded == 64) {
            add_values(cached_values, values, 64, wide, weights, begin, n, total, type);
        } else {
            add_values(cached_values, values, padded, wide, weights, begin, n, total, type);
        }
    }
}

/* The pieces from `piece` to `end`: their sums go to `out`, or to args->parts. */
LB_INLINE void attend(const lb_attention_args *a, char *const *blocks, const float *q, float *out, int32_t kv_head,
                      int32_t head, int32_t first, int32_t count, int32_t piece, int32_t end, const int32_t type) {
    const int32_t wide = a->value_dim, size = lb_part_floats(wide);
    float total[LB_MAX_HEAD_DIM], more[LB_MAX_HEAD_DIM], highest = 0.0f, weight_sum = 0.0f;
    piece = first / LB_PIECE > piece ? first / LB_PIECE : piece;
    for (; piece < end && piece * LB_PIECE < count; piece++) {
        const int32_t from = piece * LB_PIECE, to = from + LB_PIECE, begins = first >= from;
        float *part = a->parts ? a->parts + ((ptrdiff_t)head * a->n_parts + piece) * size : begins ? total : more;
        float highest_more, weight_sum_more;
        attend_piece(a, blocks, q, kv_head, begins && a->sinks ? a->sinks + head : NULL, begins ? first : from,
                     count < to ? count : to, part, &highest_more, &weight_sum_more, type);
        if (a->parts) {
            part[size - 16] = highest_more, part[size - 15] = weight_sum_more;
        } else if (begins) {
            highest = highest_more, weight_sum = weight_sum_more;
        } else {
            add_piece(total, &highest, &weight_sum, more, highest_more, weight_sum_more, wide);
        }
    }
    for (int32_t c = 0; c < wide && !a->parts; c++) out[c] = total[c] / weight_sum;
}

void LB_NAME(lb_attention_sum)(const lb_attention_args *a, int32_t head) {
    const int32_t wide = a->value_dim, size = lb_part_floats(wide), count = a->positions[0] + 1;
    const int32_t first = a->window && count > a->window ? (count - a->window) / LB_PIECE : 0;
    float *part = a->parts + ((ptrdiff_t)head * a->n_parts + first) * size, *total = part;
    float highest = part[size - 16], weight_sum = part[size - 15];
    for (int32_t piece = first + 1; piece * LB_PIECE < count; piece++) {
        part += size;
        add_piece(total, &highest, &weight_sum, part, part[size - 16], part[size - 15], wide);
    }
    for (int32_t c = 0; c < wide; c++) a->out[(ptrdiff_t)head * wide + c] = total[c] / weight_sum;
}

/* The same where values are the first channels of the keys: sixteen sums of each, as in the template. */
LB_INLINE void attend_latents(const lb_attention_args *a, char *const *block, const float *q, float *out,
                              int32_t kv_head, int32_t count, const int32_t type) {
    const int32_t dim = a->head_dim, wide = a->value_dim;
    float total[LB_MAX_HEAD_DIM * 16], weights[SPAN], highest = -INFINITY, weight_sum = 0.0f;
    memset(total, 0, (size_t)wide * 16 * sizeof *total);
    for (int32_t start = 0; start < count; start += SPAN, block++) {
        const int32_t n = count - start < SPAN ? count - start : SPAN;
        const void *keys = *block + a->kv.keys;
        const float *scales = (const float *)(const void *)(*block + a->kv.key_scales) + kv_head * SPAN;
        const ptrdiff_t base = kv_head * a->kv.key_stride;
        for (int32_t i = 0; i < n; i++) {
            const float one = score(keys, base + (ptrdiff_t)(i / 16) * 16 * dim + i % 16, q, dim, type);
            weights[i] = type == LB_KV_I8 ? one * scales[i] : one;
        }
        soften(weights, 0, n, wide * 16, total, &highest, &weight_sum);
        if (type == LB_KV_I8) {
            for (int32_t i = 0; i < n; i++) weights[i] = weights[i] * scales[i];
        }
        for (int32_t c = 0; c < wide * 16; c++) {
            ptrdiff_t at = base + c;
            float sum = total[c];
            for (int32_t i = c % 16; i < n; i += 16, at += (ptrdiff_t)16 * dim)
                sum = sum + cached(keys, at, type) * weights[i];
            total[c] = sum;
        }
    }
    for (int32_t c = 0; c < wide; c++) out[c] = add_lanes(total + (ptrdiff_t)c * 16) / weight_sum;
}

LB_INLINE void attend_rows(const lb_attention_args *a, int32_t row, int32_t rows, int32_t kv_head, int32_t piece,
                           const int32_t type) {
    const int32_t shared = a->n_heads / a->n_kv_heads, dim = a->head_dim, wide = a->value_dim;
    const int32_t stored = a->kv.key_stride ? kv_head : 0;
    const int32_t from = a->parts ? piece : 0, to = a->parts ? piece + 1 : INT32_MAX;
    for (int32_t end = row + rows; row < end; row++) {
        const float *q = a->q + row * a->q_stride + (ptrdiff_t)kv_head * shared * dim;
        float *out = a->out + ((ptrdiff_t)row * a->n_heads + (ptrdiff_t)kv_head * shared) * wide;
        const int32_t count = a->positions[row] + 1;
        const int32_t first = a->window && count > a->window ? count - a->window : 0;
        for (int32_t head = 0; head < shared; head++, q += dim, out += wide) {
            if (a->kv.values == a->kv.keys) {
                attend_latents(a, a->blocks[row], q, out, stored, count, type);
            } else {
                attend(a, a->blocks[row], q, out, stored, kv_head * shared + head, first, count, from, to, type);
            }
        }
    }
}

void LB_NAME(lb_attention)(const lb_attention_args *a, int32_t row, int32_t rows, int32_t kv_head, int32_t kv_heads,
                           int32_t piece) {
    for (int32_t end = kv_head + kv_heads; kv_head < end; kv_head++) {
        if (a->kv_type == LB_KV_F16) {
            attend_rows(a, row, rows, kv_head, piece, LB_KV_F16);
        } else if (a->kv_type == LB_KV_I8) {
            attend_rows(a, row, rows, kv_head, piece, LB_KV_I8);
        } else {
            attend_rows(a, row, rows, kv_head, piece, LB_KV_F32);
        }
    }
}

#endif
