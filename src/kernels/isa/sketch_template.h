/*
 * Sketches and single rows in plain C: the two codes of a lane are taken apart, and a row of 8-bit codes is read byte
 * by byte. Include after defining LB_ISA.
 */
#include "names.h"
#include "sketch.h"

void LB_NAME(lb_sketch)(const lb_sketch *s, const int16_t *z, int32_t begin, int32_t end, float *y, float *best) {
    for (int32_t group = begin; group < end; group++) {
        const int16_t *codes = s->codes + (size_t)group * s->spans * LB_SPAN_LANES;
        int32_t sums[LB_ROWS] = {0};
        for (int32_t span = 0; span < s->spans; span++) {
            for (int i = 0; i < LB_SPAN_LANES; i++) {
                const int32_t code = *codes++, high = (code + 1024) >> 11, low = code - high * 2048;
                const int32_t x = z[16 * span + i % 16];
                int32_t *sum = sums + i / 16 * 4 + i / 2 % 2;
                sum[0] += low * x, sum[2] += high * x;
            }
        }
        lb_sketch_values(s, group, sums, y, best);
    }
}

float LB_NAME(lb_row_u8)(const lb_matmul_args *args, const int16_t *x, int32_t row) {
    const lb_matrix *m = args->w;
    const lb_activations *a = args->x;
    const int32_t group = row / LB_ROWS, words = m->group_cols / 4;
    const uint8_t *w = m->codes + (size_t)group * m->words * 64 + row % LB_ROWS * 4;
    float y = 0.0f;
    for (int32_t g = 0, t = 0; g < m->n_groups; g++) {
        const int32_t end = g == m->n_groups - 1 ? m->words : t + words;
        int32_t sum = -128 * a->sum[g];
        for (; t < end; t++) {
            for (int i = 0; i < 4; i++) sum += w[64 * t + i] * x[4 * t + i];
        }
        y = y + (float)sum * (lb_scale_of(m, row, g) * a->scale[g]);
    }
    return y;
}
