/* What follows the integer sums: scales, float sums and the store, for sixteen rows and one token. */
#ifndef LB_MMX_SCALE_H
#define LB_MMX_SCALE_H

#include <string.h>

#include "../../half.h"
#include "../../kernels.h"

#if defined(_MSC_VER)
#define LB_INLINE static __forceinline
#define LB_UNROLL(n)
#else
#define LB_INLINE static inline __attribute__((always_inline))
#define LB_PRAGMA(text) _Pragma(#text)
#define LB_UNROLL(n) LB_PRAGMA(GCC unroll n)
#endif

/*
 * y += sum * (weight scale * activation scale), as the other instruction sets do.
 *
 * A float16 moved into the place of a float32's exponent and mantissa is 2**112 times too small, for subnormals as for
 * normal numbers. The activation scale takes this back, in double: the product of 11 and 24 bits is exact there, so that
 * it is rounded once, as the product of two floats is.
 */
LB_INLINE void lb_add_scaled(const lb_matmul_args *args, int32_t token, int32_t row_group, int32_t group,
                             const int32_t *sums, float *y) {
    const lb_matrix *m = args->w;
    const size_t at = ((size_t)row_group * m->n_groups + group) * LB_ROWS;
    const float x_scale = args->x->scale[(ptrdiff_t)token * args->x->n_groups + group];
    if (m->scales_f16) {
        const int16_t *halves = (const int16_t *)m->scales + at;
        const double factor = x_scale * 0x1p112;
        uint32_t small[LB_ROWS];
        LB_UNROLL(16)
        for (int r = 0; r < LB_ROWS; r++) small[r] = (uint32_t)(halves[r] * (1 << 13)) & 0x8fffe000u;
        LB_UNROLL(16)
        for (int r = 0; r < LB_ROWS; r++) {
            y[r] = y[r] + (float)sums[r] * (float)(lb_bits_to_float(small[r]) * factor);
        }
    } else {
        const float *scales = (const float *)m->scales + at;
        LB_UNROLL(16)
        for (int r = 0; r < LB_ROWS; r++) y[r] = y[r] + (float)sums[r] * (scales[r] * x_scale);
    }
}

LB_INLINE int32_t lb_rows_of(const lb_matrix *m, int32_t row_group) {
    const int32_t rows = m->n_rows - row_group * LB_ROWS;
    return rows < LB_ROWS ? rows : LB_ROWS;
}

LB_INLINE void lb_store_sums(const lb_matmul_args *args, int32_t token, int32_t row_group, const int32_t *sums) {
    memcpy(args->sums + token * args->y_stride + row_group * LB_ROWS, sums,
           (size_t)lb_rows_of(args->w, row_group) * sizeof *sums);
}

LB_INLINE void lb_store_rows(const lb_matmul_args *args, int32_t token, int32_t row_group, const float *y) {
    memcpy(args->y + token * args->y_stride + row_group * LB_ROWS, y,
           (size_t)lb_rows_of(args->w, row_group) * sizeof *y);
}

#endif
