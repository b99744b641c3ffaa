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

/*
 * Softmax attention of one query row over the positions 0..p of its sequence, online: 64 positions at a time, with the
 * running maximum, the sum of the weights and the weighted sum of the values rescaled when the maximum grows. Keys lie
 * with sixteen positions side by side, so the scores need no horizontal sum; channels are added in two chains, and
 * positions in one. Several independent chains run side by side, because an addition takes some cycles.
 */
enum { SPAN = LB_KV_SPAN };

/* Queries that share one reading of the keys and values, heads or neighbouring rows: as many as the registers hold. */
#if defined(__AVX512F__)
#define LB_HEADS 4
#else
#define LB_HEADS 2
#endif

/* Scores of `blocks` times sixteen positions, from element `at` of the keys on, for `heads` queries of `dim` floats,
 * `step` apart. */
LB_INLINED void score_blocks(const void *keys, ptrdiff_t at, const float *q, ptrdiff_t step, int32_t dim,
                             float (*scores)[SPAN], const int heads, const int blocks, const int32_t type) {
    f32x16 even[LB_HEADS * 2], odd[LB_HEADS * 2];
    for (int i = 0; i < heads * blocks; i++) even[i] = odd[i] = v_set1(0.0f);
    int32_t d = 0;
    for (; d + 1 < dim; d += 2) {
        for (int b = 0; b < blocks; b++) {
            const ptrdiff_t here = at + ((ptrdiff_t)b * dim + d) * 16;
            const f32x16 k0 = load_kv(keys, here, type), k1 = load_kv(keys, here + 16, type);
            for (int h = 0; h < heads; h++) {
                const int i = h * blocks + b;
                even[i] = v_add(even[i], v_mul(k0, v_set1(q[h * step + d])));
                odd[i] = v_add(odd[i], v_mul(k1, v_set1(q[h * step + d + 1])));
            }
        }
    }
    for (int b = 0; b < blocks; b++) {
        for (int h = 0; h < heads; h++) {
            const int i = h * blocks + b;
            if (d < dim) {
                const f32x16 k = load_kv(keys, at + ((ptrdiff_t)b * dim + d) * 16, type);
                even[i] = v_add(even[i], v_mul(k, v_set1(q[h * step + d])));
            }
            v_store(scores[h] + 16 * b, v_add(even[i], odd[i]));
        }
    }
}

/* total[head][c] += sum over the positions begin to end of weight * value, for `count` chunks of sixteen channels. */
LB_INLINED void add_values(const void *values, ptrdiff_t at, int32_t chunks, float (*weights)[SPAN], int32_t begin,
                           int32_t end, f32x16 *total, const int heads, const int count, const int32_t type) {
    f32x16 t[LB_HEADS * 4];
    for (int h = 0; h < heads; h++) {
        for (int c = 0; c < count; c++) t[h * count + c] = total[h * chunks + c];
    }
    at += (ptrdiff_t)begin * chunks * 16;
    for (int32_t i = begin; i < end; i++, at += (ptrdiff_t)chunks * 16) {
        f32x16 v[4];
        for (int c = 0; c < count; c++) v[c] = load_kv(values, at + c * 16, type);
        for (int h = 0; h < heads; h++) {
            const f32x16 w = v_set1(weights[h][i]);
            for (int c = 0; c < count; c++) t[h * count + c] = v_add(t[h * count + c], v_mul(v[c], w));
        }
    }
    for (int h = 0; h < heads; h++) {
        for (int c = 0; c < count; c++) total[h * chunks + c] = t[h * count + c];
    }
}

/* From the scores of one span to weights: updates the running maximum and sum, and rescales `total` if need be. */
static void soften(float *weights, int32_t n, int32_t chunks, f32x16 *total, float *highest, float *weight_sum) {
    const int32_t blocks = (n + 15) / 16;
    for (int32_t i = n; i < 16 * blocks; i++) weights[i] = -INFINITY; /* lanes past the last position */
    f32x16 most = v_set1(-INFINITY), sum = v_set1(0.0f);
    for (int32_t b = 0; b < blocks; b++)
        most = v_max(v_load(weights + 16 * b), most); /* passes over what is no number */
    const float top = max_lanes(most);
    if (top > *highest) {
        float factor[16];
        const f32x16 shrink = v_exp(v_set1(*highest - top)); /* exp(-inf) is 0: nothing was added yet */
        v_store(factor, shrink);
        *weight_sum *= factor[0];
        for (int32_t c = 0; c < chunks; c++) total[c] = v_mul(total[c], shrink);
        *highest = top;
    }
    for (int32_t b = 0; b < blocks; b++) {
        const f32x16 w = v_exp(v_sub(v_load(weights + 16 * b), v_set1(*highest)));
        v_store(weights + 16 * b, w);
        sum = v_add(sum, w);
    }
    *weight_sum += sum_lanes(sum);
}

LB_INLINED void scale_blocks(float *values, const float *scales, int32_t blocks) {
    for (int32_t b = 0; b < blocks; b++)
        v_store(values + 16 * b, v_mul(v_load(values + 16 * b), v_load(scales + 16 * b)));
}

static inline const float *scales_of(const char *scales, int32_t kv_head) {
    return (const float *)(const void *)scales + kv_head * LB_KV_SPAN;
}

/* The same for all chunks. */
LB_INLINED void add_all_values(const void *values, ptrdiff_t at, int32_t chunks, float (*weights)[SPAN], int32_t begin,
                               int32_t end, f32x16 *total, const int heads, const int32_t type) {
    int32_t c = 0;
    if (heads == 1) {
        for (; c + 4 <= chunks; c += 4)
            add_values(values, at + c * 16, chunks, weights, begin, end, total + c, heads, 4, type);
    }
    for (; c + 2 <= chunks; c += 2)
        add_values(values, at + c * 16, chunks, weights, begin, end, total + c, heads, 2, type);
    if (c < chunks) add_values(values, at + c * 16, chunks, weights, begin, end, total + c, heads, 1, type);
}

/*
 * Keys and values of one head in one block are a few KB, far from those of the next block: the processor's own
 * prefetcher would begin anew with each of them.
 */
LB_INLINED void prefetch_positions(const char *part, ptrdiff_t at, int32_t positions, int32_t channels,
                                   const int32_t type) {
    const ptrdiff_t element = type == LB_KV_F32 ? 4 : type == LB_KV_F16 ? 2 : 1;
    const ptrdiff_t bytes = positions * channels * element;
    for (ptrdiff_t i = 0; i < bytes; i += 64) LB_PREFETCH(part + at * element + i);
}

/*
 * `heads` queries, q_step apart, over the positions from `first` to `count` of one kv head. Heads of one row (more = 0)
 * all have as many; neighbouring rows (more = 1) have one more each, all in the same span, and begin at 0. A query's
 * additions are the same, and in the same order, as if it came alone. A sink is where the running maximum begins, so
 * that its own weight is 1 then; `head` is the number of the first query's head.
 */
LB_INLINED void attend(const lb_attention_args *a, char *const *block, const float *q, ptrdiff_t q_step, float *out,
                       ptrdiff_t out_step, int32_t kv_head, int32_t head, int32_t first, int32_t count, const int heads,
                       const int more, const int32_t type) {
    const int32_t dim = a->head_dim, wide = a->value_dim, chunks = (wide + 15) / 16;
    const lb_kv *kv = &a->kv;
    const ptrdiff_t key_base = kv_head * kv->key_stride, value_base = kv_head * kv->value_stride;
    f32x16 total[LB_HEADS * LB_MAX_HEAD_DIM / 16];
    float weights[LB_HEADS][SPAN], highest[LB_HEADS], weight_sum[LB_HEADS];
    for (int h = 0; h < heads; h++) {
        highest[h] = a->sinks ? a->sinks[more ? head : head + h] : -INFINITY;
        weight_sum[h] = a->sinks ? 1.0f : 0.0f;
    }
    for (int32_t c = 0; c < heads * chunks; c++) total[c] = v_set1(0.0f);

    block += first / SPAN;
    for (int32_t start = first / SPAN * SPAN; start < count; start += SPAN, block++) {
        const int32_t begin = first > start ? first - start : 0;
        int32_t n[LB_HEADS];
        for (int h = 0; h < heads; h++) n[h] = count + more * h - start < SPAN ? count + more * h - start : SPAN;
        const int32_t blocks = (n[heads - 1] + 15) / 16;
        const char *keys = *block + kv->keys, *values = *block + kv->values;
        int32_t b = 0;
        prefetch_positions(values, value_base, n[heads - 1], 16 * chunks, type);
        if (heads <= LB_HEADS / 2) { /* else there are no registers for the sums of two blocks */
            for (; b + 2 <= blocks; b += 2) {
                score_blocks(keys, key_base + (ptrdiff_t)b * dim * 16, q, q_step, dim,
                             (float (*)[SPAN])(weights[0] + 16 * b), heads, 2, type);
            }
        }
        for (; b < blocks; b++) {
            score_blocks(keys, key_base + (ptrdiff_t)b * dim * 16, q, q_step, dim,
                         (float (*)[SPAN])(weights[0] + 16 * b), heads, 1, type);
        }
        if (start + SPAN < count) prefetch_positions(block[1] + kv->keys, key_base, SPAN, dim, type);
        for (int h = 0; h < heads; h++) {
            const int32_t own = (n[h] + 15) / 16;
            if (type == LB_KV_I8) scale_blocks(weights[h], scales_of(*block + kv->key_scales, kv_head), own);
            for (int32_t i = 0; i < begin; i++) weights[h][i] = -INFINITY; /* lanes before the window */
            soften(weights[h], n[h], chunks, total + h * chunks, &highest[h], &weight_sum[h]);
            if (type == LB_KV_I8) scale_blocks(weights[h], scales_of(*block + kv->value_scales, kv_head), own);
        }
        add_all_values(values, value_base, chunks, weights, begin, n[0], total, heads, type);
        if (more && n[heads - 1] > n[0]) { /* the last positions, which the first row does not have */
            for (int h = 1; h < heads; h++) {
                add_all_values(values, value_base, chunks, weights + h, n[0], n[h], total + h * chunks, 1, type);
            }
        }
    }
    for (int h = 0; h < heads; h++) {
        for (int32_t c = 0; c < chunks; c++) {
            store_upto16(out + h * out_step + 16 * c, v_div(total[h * chunks + c], v_set1(weight_sum[h])),
                         wide - 16 * c);
        }
    }
}

#include "latent_template.h"

/* Whether LB_HEADS rows follow each other in one sequence, begin at 0 and end in the same span. */
static inline int are_neighbours(const lb_attention_args *a, int32_t row) {
    for (int i = 1; i < LB_HEADS; i++) {
        if (a->blocks[row + i] != a->blocks[row] || a->positions[row + i] != a->positions[row] + i) return 0;
    }
    if (a->window && a->positions[row] + LB_HEADS > a->window) return 0;
    return a->positions[row] / SPAN == (a->positions[row] + LB_HEADS - 1) / SPAN;
}

/* The first position that the last of `count` sees. */
static inline int32_t first_seen(const lb_attention_args *a, int32_t count) {
    return a->window && count > a->window ? count - a->window : 0;
}

LB_INLINED void attend_rows(const lb_attention_args *a, int32_t row, int32_t rows, int32_t kv_head,
                            const int32_t type) {
    const int32_t shared = a->n_heads / a->n_kv_heads, dim = a->head_dim, wide = a->value_dim;
    const int32_t whole = shared / LB_HEADS * LB_HEADS, stored = a->kv.key_stride ? kv_head : 0;
    const ptrdiff_t out_stride = (ptrdiff_t)a->n_heads * wide;
    if (a->kv.values == a->kv.keys) {
        for (int32_t end = row + rows; row < end; row++) {
            const float *q = a->q + row * a->q_stride + (ptrdiff_t)kv_head * shared * dim;
            float *out = a->out + row * out_stride + (ptrdiff_t)kv_head * shared * wide;
            int32_t head = 0;
            for (; head + 2 <= shared; head += 2, q += 2 * dim, out += 2 * wide)
                attend_latents(a, a->blocks[row], q, out, stored, a->positions[row] + 1, 2, type);
            if (head < shared) attend_latents(a, a->blocks[row], q, out, stored, a->positions[row] + 1, 1, type);
        }
        return;
    }
    for (int32_t end = row + rows; row < end;) {
        const int together = whole < shared && end - row >= LB_HEADS && are_neighbours(a, row);
        const int32_t n = together ? LB_HEADS : 1;
        const int32_t first_head = kv_head * shared;
        const float *q = a->q + row * a->q_stride + (ptrdiff_t)first_head * dim;
        float *out = a->out + row * out_stride + (ptrdiff_t)first_head * wide;
        for (int32_t r = 0; r < n; r++) {
            const int32_t count = a->positions[row + r] + 1;
            for (int32_t head = 0; head < whole; head += LB_HEADS) {
                attend(a, a->blocks[row + r], q + r * a->q_stride + head * dim, dim, out + r * out_stride + head * wide,
                       wide, stored, first_head + head, first_seen(a, count), count, LB_HEADS, 0, type);
            }
        }
        const int32_t count = a->positions[row] + 1;
        for (int32_t head = whole; head < shared; head++) {
            if (together) {
                attend(a, a->blocks[row], q + head * dim, a->q_stride, out + head * wide, out_stride, stored,
                       first_head + head, 0, count, LB_HEADS, 1, type);
            } else {
                attend(a, a->blocks[row], q + head * dim, 0, out + head * wide, 0, stored, first_head + head,
                       first_seen(a, count), count, 1, 0, type);
            }
        }
        row += n;
    }
}

void LB_NAME(lb_attention)(const lb_attention_args *a, int32_t row, int32_t rows, int32_t kv_head) {
    if (a->kv_type == LB_KV_F16) {
        attend_rows(a, row, rows, kv_head, LB_KV_F16);
    } else if (a->kv_type == LB_KV_I8) {
        attend_rows(a, row, rows, kv_head, LB_KV_I8);
    } else {
        attend_rows(a, row, rows, kv_head, LB_KV_F32);
    }
}

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
