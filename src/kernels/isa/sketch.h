/* What the kernels of sketches and of single rows share; they scale as products do. */
#ifndef LB_ISA_SKETCH_H
#define LB_ISA_SKETCH_H

#include <string.h>

#include "half.h"
#include "inline.h"
#include "kernels.h"

/* The end of lb_sketch_fn, for the sums of one row group. */
LB_INLINE void lb_sketch_values(const lb_sketch *s, int32_t group, const int32_t *sums, float *y, float *best) {
    const int32_t first = group * LB_ROWS, rows = s->n_rows - first < LB_ROWS ? s->n_rows - first : LB_ROWS;
    const float *scales = s->scales + first;
    float last[LB_ROWS], *values = rows == LB_ROWS ? y + first : last, most = -1e38f;
    LB_UNROLL(16)
    for (int32_t r = 0; r < LB_ROWS; r++) {
        const float one = (float)sums[r] * scales[r];
        values[r] = one;
        most = one > most ? one : most;
    }
    if (rows < LB_ROWS) memcpy(y + first, last, (size_t)rows * sizeof *y);
    best[group] = most;
}

/* The scale of a row in one of its scale groups. */
LB_INLINE float lb_scale_of(const lb_matrix *m, int32_t row, int32_t group) {
    const size_t at = lb_scales_at(m, row / LB_ROWS, group) + (size_t)(row % LB_ROWS);
    return m->scales_f16 ? lb_half_to_float(((const uint16_t *)m->scales)[at]) : ((const float *)m->scales)[at];
}

#endif
