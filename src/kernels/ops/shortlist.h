/*
 * The k largest outputs of an 8-bit matrix, exactly, without most of its products. Bounds tell which rows cannot be
 * among them; these get -infinity, and the others what the product of the whole matrix would have given them, bit for
 * bit.
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

/* Bounds are wider the longer rows are, by the root: from some length on too many rows are among the possible ones. */
enum { LB_MOST_SHORTLISTED = 64, LB_MOST_SKETCHED_COLS = 8192, LB_MOST_COLS_OF_SEVERAL = 512 };

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
    const int usable = most > 1e-15f && most < 1e15f; /* squares are neither too small nor too large for a float */
    scale = usable ? most / 15.0f : 0.0f;
    for (int32_t c = 0; c < n_cols; c++) {
        const float a = usable ? rintf(w[c] / scale) : 0.0f, e = w[c] - scale * a;
        int16_t *at = to + c / LB_SPAN_COLS * LB_SPAN_LANES + c % LB_SPAN_COLS / 2 * 4 + c % 2;
        *at = (int16_t)(*at + (int16_t)a * unit);
        known += a * a, error += e * e;
    }
    known = scale * sqrtf(known) * 1.001f;
    error = usable || most == 0.0f ? sqrtf(error) * 1.001f : INFINITY; /* infinity: always made */
    scales[row] = scale;
    lengths[group].known = known > lengths[group].known ? known : lengths[group].known;
    lengths[group].error = error > lengths[group].error ? error : lengths[group].error;
}

/* The inputs as small integers: d, or 0 if all are 0 or one is too large; |f| and |x|. */
static inline float lb_sketch_input(const lb_activations *a, const lb_matrix *m, int16_t *z, float *off,
                                    float *length) {
    float most = 0.0f, square = 0.0f, missing = 0.0f;
    for (int32_t c = 0; c < m->n_cols; c += LB_SPAN_COLS) {
        float sum = 0.0f;
        for (int32_t i = c; i < c + LB_SPAN_COLS; i++) {
            const float x = (float)a->q[i] * a->scale[i / m->group_cols];
            sum += fabsf(x), square += x * x;
        }
        most = sum > most ? sum : most;
    }
    const float d = most < 1e15f ? most / 63.9f : 0.0f; /* rounding adds up to a half for each column */
    for (int32_t c = 0; c < m->n_cols && d > 0.0f; c++) {
        const float x = (float)a->q[c] * a->scale[c / m->group_cols], n = rintf(x / d), f = x - d * n;
        int16_t *at = z + c / LB_SPAN_COLS * 16 + c % LB_SPAN_COLS / 2 * 4 + c % 2;
        at[0] = at[2] = (int16_t)n;
        missing += f * f;
    }
    *off = sqrtf(missing) * 1.001f, *length = sqrtf(square) * 1.001f;
    return d;
}

/* The k largest outputs so far, in order. */
typedef struct {
    int32_t k;
    float values[LB_MOST_SHORTLISTED];
} lb_top;

static inline void lb_note(lb_top *top, float y) {
    int32_t i = top->k - 1;
    if (!(y > top->values[i])) return;
    for (; i > 0 && y > top->values[i - 1]; i--) top->values[i] = top->values[i - 1];
    top->values[i] = y;
}

static inline void lb_leave_out(float *y, int32_t n) {
    if (n == LB_ROWS) {
        for (int r = 0; r < LB_ROWS; r++) y[r] = -INFINITY; /* a constant number of stores */
    } else {
        for (int32_t r = 0; r < n; r++) y[r] = -INFINITY;
    }
}

/* Of the kernels those for the matrix, and memory for 3 n_cols inputs and a value for each row group. */
typedef struct {
    lb_matmul_fn *matmul;
    lb_sketch_fn *sketch;
    lb_row_u8_fn *row;
    int16_t *inputs;
    float *best;
} lb_shortlist_tools;

/*
 * y of one token: the k <= LB_MOST_SHORTLISTED largest outputs, and all that equal the last of them, exactly; of the
 * others some too, and -infinity for the rest. Returns how many rows were made exactly.
 */
static inline int32_t lb_shortlist(const lb_sketch *s, const lb_lengths *lengths, const lb_matmul_args *args, int32_t k,
                                   const lb_shortlist_tools *tools) {
    const int32_t groups = lb_row_groups(s->n_rows);
    int32_t firsts[LB_MOST_SHORTLISTED], n = 0, made = 0;
    int16_t *z = tools->inputs, *x = z + 2 * s->n_cols;
    float *best = tools->best, *y = args->y, off, length;
    lb_top top = {k, {0}};
    const float d = lb_sketch_input(args->x, args->w, z, &off, &length);
    if (!(d > 0.0f) || k > groups / 16 || (k > 1 && s->n_cols > LB_MOST_COLS_OF_SEVERAL)) {
        tools->matmul(args, 0, groups);
        return s->n_rows;
    }
    const float slack = (1e-5f + 1.2e-7f * (float)args->w->n_groups) * length;
    const float of_known = off + slack, of_error = length + slack;
    tools->sketch(s, z, 0, groups, y, best);
    for (int32_t c = 0; c < s->n_cols; c++) x[c] = args->x->q[c];
    for (int32_t g = 0; g < groups; g++) { /* the groups of the k largest, in order */
        if (n == k && !(best[g] > best[firsts[k - 1]])) continue;
        int32_t i = n < k ? n++ : k - 1;
        for (; i > 0 && best[g] > best[firsts[i - 1]]; i--) firsts[i] = firsts[i - 1];
        firsts[i] = g;
    }
    for (int32_t i = 0; i < k; i++) top.values[i] = -INFINITY;
    for (int32_t i = 0; i < k; i++) { /* of each its largest: a first idea of the limit */
        int32_t row = firsts[i] * LB_ROWS;
        while (y[row] < best[firsts[i]]) row++;
        lb_note(&top, tools->row(args, x, row));
    }
    const float limit = top.values[k - 1];
    for (int32_t i = 0; i < k; i++) top.values[i] = -INFINITY;
    for (int32_t g = 0; g < groups; g++) {
        const int32_t first = g * LB_ROWS, end = first + LB_ROWS < s->n_rows ? first + LB_ROWS : s->n_rows;
        const float most = limit > top.values[k - 1] ? limit : top.values[k - 1];
        const float needs = (most - lengths[g].known * of_known - lengths[g].error * of_error) / d;
        if (best[g] < needs) {
            lb_leave_out(y + first, end - first);
            continue;
        }
        for (int32_t r = first; r < end; r++) {
            if (y[r] < needs) {
                y[r] = -INFINITY;
            } else {
                y[r] = tools->row(args, x, r);
                lb_note(&top, y[r]);
                made++;
            }
        }
        if (made > s->n_rows / 4) { /* they are too much alike */
            tools->matmul(args, 0, groups);
            return s->n_rows;
        }
    }
    return made;
}

#endif
