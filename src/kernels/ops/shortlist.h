/*
 * The k largest outputs of an 8-bit matrix, exactly, without most of its products. Bounds tell which rows cannot be
 * among them; these get -infinity, and the others what the product of the whole matrix would have given them, bit for
 * bit, for it is the same kernel that makes them.
 *
 * A row w is s a + e, with a scale s and small codes a (lb_sketch). The inputs x, after they became int8, are d z + f,
 * with small integers z. So, with the lengths of vectors (Cauchy and Schwarz),
 *
 *     | w x  -  s d (a z) |  <=  |s a| |f|  +  |e| |x|
 *
 * where a z is exact. What floats round in between is less than `slack` of |w| |x| <= (|s a| + |e|) |x|: a product of
 * the kernel adds up n_groups terms of three roundings each, which is (n_groups + 4) 2**-24 of their magnitudes.
 */
#ifndef LB_SHORTLIST_H
#define LB_SHORTLIST_H

#include <math.h>
#include <string.h>

#include "kernels.h"

enum { LB_MOST_SHORTLISTED = 64, LB_MOST_SKETCHED_COLS = 8192 };

/* Whether a matrix can have a sketch. */
static inline int lb_can_sketch(const lb_matrix *m) {
    return m->format == LB_U8 && !m->tiles && m->n_cols % LB_SPAN_COLS == 0 && m->n_cols <= LB_MOST_SKETCHED_COLS;
}

/* The lengths |s a| and |e|, of a row group the largest, and their place after lb_sketch_row. */
typedef struct {
    float known, error;
} lb_lengths;

/* Takes a row into a sketch whose codes were all 0. */
static inline void lb_sketch_row(int16_t *codes, float *scales, lb_lengths *lengths, int32_t n_cols, int32_t row,
                                 const float *w) {
    const int32_t group = row / LB_ROWS, r = row % LB_ROWS, lane = r / 4 * 16 + r % 2 * 2;
    const int16_t unit = r % 4 < 2 ? 1 : 2048;
    int16_t *to = codes + (size_t)group * n_cols / LB_SPAN_COLS * LB_SPAN_LANES + lane;
    float most = 0.0f, scale, known = 0.0f, error = 0.0f;
    for (int32_t c = 0; c < n_cols; c++) most = fabsf(w[c]) > most ? fabsf(w[c]) : most;
    scale = most / 15.0f;
    for (int32_t c = 0; c < n_cols; c++) {
        const float a = most > 0.0f ? rintf(w[c] / scale) : 0.0f, e = w[c] - scale * a;
        int16_t *at = to + c / LB_SPAN_COLS * LB_SPAN_LANES + c % LB_SPAN_COLS / 2 * 4 + c % 2;
        *at = (int16_t)(*at + (int16_t)a * unit);
        known += a * a, error += e * e;
    }
    known = scale * sqrtf(known) * 1.001f, error = sqrtf(error) * 1.001f;
    scales[row] = scale;
    lengths[group].known = known > lengths[group].known ? known : lengths[group].known;
    lengths[group].error = error > lengths[group].error ? error : lengths[group].error;
}

/* The inputs as small integers: d, or 0 if all are 0; |f| and |x|. */
static inline float lb_sketch_input(const lb_activations *a, const lb_matrix *m, int16_t *z, float *off, float *length) {
    float most = 0.0f, square = 0.0f, missing = 0.0f;
    for (int32_t c = 0; c < m->n_cols; c += LB_SPAN_COLS) {
        float sum = 0.0f;
        for (int32_t i = c; i < c + LB_SPAN_COLS; i++) {
            const float x = (float)a->q[i] * a->scale[i / m->group_cols];
            sum += fabsf(x), square += x * x;
        }
        most = sum > most ? sum : most;
    }
    const float d = most / 63.9f; /* rounding adds up to a half for each column */
    for (int32_t c = 0; c < m->n_cols && most > 0.0f; c++) {
        const float x = (float)a->q[c] * a->scale[c / m->group_cols], n = rintf(x / d), f = x - d * n;
        int16_t *at = z + c / LB_SPAN_COLS * 16 + c % LB_SPAN_COLS / 2 * 4 + c % 2;
        at[0] = at[2] = (int16_t)n;
        missing += f * f;
    }
    *off = sqrtf(missing) * 1.001f, *length = sqrtf(square) * 1.001f;
    return d;
}

/* The exact outputs of a row group, and their places among the k largest so far, which are in order. */
static inline void lb_take_group(const lb_matmul_args *args, lb_matmul_fn *matmul, int32_t group, int32_t k, float *top) {
    const int32_t first = group * LB_ROWS, left = args->w->n_rows - first;
    matmul(args, group, group + 1);
    for (int32_t r = first; r < first + (left < LB_ROWS ? left : LB_ROWS); r++) {
        const float y = args->y[r];
        int32_t i = k - 1;
        if (!(y > top[i])) continue;
        for (; i > 0 && y > top[i - 1]; i--) top[i] = top[i - 1];
        top[i] = y;
    }
}

/*
 * y of one token: the k <= LB_MOST_SHORTLISTED largest outputs, and all that equal the last of them, exactly; of the
 * others some too, and -infinity for the rest. `z` and `best` are scratch, of 2 n_cols and as many as row groups.
 */
static inline void lb_shortlist(const lb_sketch *s, const lb_lengths *lengths, const lb_matmul_args *args,
                                lb_matmul_fn *matmul, lb_sketch_fn *sketch, int32_t k, int16_t *z, float *best) {
    const int32_t groups = lb_row_groups(s->n_rows);
    int32_t firsts[LB_MOST_SHORTLISTED], n = 0, left = groups / 4;
    float top[LB_MOST_SHORTLISTED], off, length;
    const float d = lb_sketch_input(args->x, args->w, z, &off, &length);
    if (!(d > 0.0f) || k > groups / 16) {
        matmul(args, 0, groups);
        return;
    }
    const float slack = (1e-5f + 1.2e-7f * (float)args->w->n_groups) * length;
    const float of_known = off + slack, of_error = length + slack;
    sketch(s, z, 0, groups, best);
    for (int32_t g = 0; g < groups; g++) { /* the groups of the k largest, in order */
        if (n == k && !(best[g] > best[firsts[k - 1]])) continue;
        int32_t i = n < k ? n++ : k - 1;
        for (; i > 0 && best[g] > best[firsts[i - 1]]; i--) firsts[i] = firsts[i - 1];
        firsts[i] = g;
    }
    for (int32_t r = 0; r < s->n_rows; r++) args->y[r] = -INFINITY;
    for (int32_t i = 0; i < k; i++) top[i] = -INFINITY;
    for (int32_t i = 0; i < k; i++) {
        lb_take_group(args, matmul, firsts[i], k, top);
        best[firsts[i]] = -INFINITY;
    }
    for (int32_t g = 0; g < groups; g++) {
        const float most = d * best[g] + lengths[g].known * of_known + lengths[g].error * of_error;
        if (most < top[k - 1]) continue;
        if (left-- == 0) { /* they are too much alike */
            matmul(args, 0, groups);
            return;
        }
        lb_take_group(args, matmul, g, k, top);
    }
}

#endif
