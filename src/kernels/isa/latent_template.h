/*
 * Attention whose values are the first channels of its keys (latents), so that a position is stored once. A part of
 * mixer_template.h, which has what it is made of.
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
            score_blocks(keys, base + (ptrdiff_t)b * dim * 16, q, dim, dim, (float (*)[SPAN])(weights[0] + 16 * b),
                         heads, 1, type);
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
        for (int32_t c = 0; c < wide; c++) out[h * wide + c] = sum_lanes(total[h * wide + c]) / weight_sum[h];
    }
}
