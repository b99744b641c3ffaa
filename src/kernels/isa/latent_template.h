/*
 * Attention whose values are the first channels of its keys (latents), so that a position is stored once. A part of
 * attention_template.h, which has what it is made of.
 */
/*
 * total[head][channel] += weight * value, for values that are the first channels of the keys: a lane is a position here
 * too, and the lanes are added when all positions are. Of a span that is not `whole`, `left` says how many more
 * positions there are behind that of a lane; those from n on have no numbers yet.
 */
LB_INLINED void add_first_channels(const void *keys, ptrdiff_t at, int32_t dim, int32_t wide, float (*weights)[SPAN],
                                   int32_t n, f32x16 *total, const int heads, const int whole, const int32_t type) {
    const int32_t blocks = whole ? SPAN / 16 : (n + 15) / 16;
    f32x16 left[SPAN / 16];
    for (int32_t b = 0; b < blocks; b++) {
        float lanes[16];
        for (int i = 0; i < 16; i++) lanes[i] = (float)(n - 1 - 16 * b - i);
        left[b] = v_load(lanes);
    }
    for (int32_t c = 0; c < wide; c++, at += 16) {
        f32x16 t[2];
        for (int h = 0; h < heads; h++) t[h] = total[h * wide + c];
        for (int32_t b = 0; b < blocks; b++) {
            const f32x16 v = load_kv(keys, at + (ptrdiff_t)b * dim * 16, type);
            for (int h = 0; h < heads; h++) {
                const f32x16 product = v_mul(v, v_load(weights[h] + 16 * b));
                t[h] = v_add(t[h], whole ? product : v_keep_from(product, left[b], v_set1(0.0f)));
            }
        }
        for (int h = 0; h < heads; h++) total[h * wide + c] = t[h];
    }
}

/* One or two queries over latents, from the first position to `count`. */
LB_INLINED void attend_latents(const lb_attention_args *a, char *const *block, const float *q, float *out,
                               int32_t kv_head, int32_t count, const int heads, const int32_t type) {
    const int32_t dim = a->head_dim, wide = a->value_dim;
    const ptrdiff_t base = kv_head * a->kv.key_stride;
    f32x16 total[2 * LB_MAX_HEAD_DIM];
    float weights[2][SPAN], highest[2] = {-INFINITY, -INFINITY}, weight_sum[2] = {0.0f, 0.0f};
    for (int32_t c = 0; c < heads * wide; c++) total[c] = v_set1(0.0f);
    for (int32_t start = 0; start < count; start += SPAN, block++) {
        const int32_t n = count - start < SPAN ? count - start : SPAN, blocks = (n + 15) / 16;
        const char *keys = *block + a->kv.keys;
        for (int32_t b = 0; b < blocks; b++) {
            score_block(keys, base + (ptrdiff_t)b * dim * 16, q, dim, dim, (float (*)[SPAN])(weights[0] + 16 * b),
                        heads, type);
        }
        for (int h = 0; h < heads; h++) {
            const float *scales = scales_of(*block + a->kv.key_scales, kv_head);
            if (type == LB_KV_I8) scale_blocks(weights[h], scales, blocks);
            soften(weights[h], n, wide, total + h * wide, &highest[h], &weight_sum[h]);
            if (type == LB_KV_I8) scale_blocks(weights[h], scales, blocks);
        }
        if (n == SPAN) {
            add_first_channels(keys, base, dim, wide, weights, n, total, heads, 1, type);
        } else {
            add_first_channels(keys, base, dim, wide, weights, n, total, heads, 0, type);
        }
    }
    for (int h = 0; h < heads; h++) {
        for (int32_t c = 0; c < wide; c++) out[h * wide + c] = v_sum(total[h * wide + c]) / weight_sum[h];
    }
}

LB_INLINED void attend_latent_heads(const lb_attention_args *a, int32_t row, int32_t kv_head, const int32_t type) {
    const int32_t shared = a->n_heads / a->n_kv_heads, dim = a->head_dim, wide = a->value_dim;
    const int32_t stored = a->kv.key_stride ? kv_head : 0, count = a->positions[row] + 1;
    const float *q = a->q + row * a->q_stride + (ptrdiff_t)kv_head * shared * dim;
    float *out = a->out + ((ptrdiff_t)row * a->n_heads + (ptrdiff_t)kv_head * shared) * wide;
    int32_t head = 0;
    for (; head + 2 <= shared; head += 2, q += 2 * dim, out += 2 * wide)
        attend_latents(a, a->blocks[row], q, out, stored, count, 2, type);
    if (head < shared) attend_latents(a, a->blocks[row], q, out, stored, count, 1, type);
}

static void attend_latent_rows(const lb_attention_args *a, int32_t row, int32_t end, int32_t kv_head,
                               int32_t kv_heads) {
    for (; row < end; row++) {
        for (int32_t k = kv_head; k < kv_head + kv_heads; k++) {
            if (a->kv_type == LB_KV_F16) {
                attend_latent_heads(a, row, k, LB_KV_F16);
            } else if (a->kv_type == LB_KV_I8) {
                attend_latent_heads(a, row, k, LB_KV_I8);
            } else {
                attend_latent_heads(a, row, k, LB_KV_F32);
            }
        }
    }
}
