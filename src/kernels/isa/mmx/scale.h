/* What follows the integer sums: scales, float sums and the store, for sixteen rows and one token. */
#ifndef LB_MMX_SCALE_H
#define LB_MMX_SCALE_H

#include <mmintrin.h>
#include <string.h>

#define LB_ISA mmx
#include "half.h"
#include "../inline.h"
#include "../names.h"

/*
 * Two hints for GCC, which plans for more registers than these CPUs have: keep the loads where they are written, and
 * take a pointer as it is, so that all that is read through it is an offset and not a pointer of its own.
 */
#if defined(__GNUC__)
#define LB_IN_ORDER() __asm__ volatile("" ::: "memory")
#define LB_ONE_POINTER(p) __asm__("" : "+r"(p))
#else
#define LB_IN_ORDER()
#define LB_ONE_POINTER(p)
#endif

/*
 * Float16 scales, moved into the place of exponent and mantissa of a float32: that is 2**112 times too small, for
 * subnormals as for normal numbers. The activation scale takes it back, unless it has no room for that: then (with
 * activations of eight million) the scales are converted one by one. No x87 instruction may run before _mm_empty().
 */
LB_INLINE void lb_small_scales(const uint16_t *halves, float *small) {
    const __m64 zero = _mm_setzero_si64(), mask = _mm_set1_pi32((int)0x8fffe000u);
    LB_UNROLL(4)
    for (int r = 0; r < LB_ROWS; r += 4) {
        const __m64 four = *(const __m64 *)(const void *)(halves + r);
        const __m64 low = _mm_unpacklo_pi16(zero, four), high = _mm_unpackhi_pi16(zero, four);
        *(__m64 *)(void *)(small + r) = _mm_and_si64(_mm_srai_pi32(low, 3), mask);
        *(__m64 *)(void *)(small + r + 2) = _mm_and_si64(_mm_srai_pi32(high, 3), mask);
    }
}

/* Whether the scales of a token are so small that they have room for 2**112: positive floats are ordered as integers.
 */
LB_INLINE int lb_has_room(const float *scales, int32_t n) {
    int room = 1;
    for (int32_t i = 0; i < n; i++) room &= lb_float_to_bits(scales[i]) < lb_float_to_bits(65536.0f);
    return room;
}

/* The scales of one row group that lie at `at`, as floats; `small` is what lb_small_scales made, or NULL. */
LB_INLINE const float *lb_scales(const lb_matrix *m, size_t at, const float *small, float *memory) {
    if (small) return small;
    if (!m->scales_f16) return (const float *)m->scales + at;
    for (int r = 0; r < LB_ROWS; r++) memory[r] = lb_half_to_float(((const uint16_t *)m->scales)[at + r]);
    return memory;
}

/* The same of scales that are multiples of two floats; `minima`: their minima. */
LB_INLINE const float *lb_multiplied(const lb_matrix *m, int32_t row_group, int32_t group, int minima, float *memory) {
    const float *super = lb_super(m, row_group, group);
    const int8_t *multiples = lb_multiples(m, super, group) + (minima ? LB_ROWS : 0);
    for (int r = 0; r < LB_ROWS; r++) memory[r] = super[minima ? LB_ROWS + r : r] * (float)multiples[r];
    return memory;
}

/* y += sum * (weight scale * activation scale), as the other instruction sets do it. */
LB_INLINE void lb_add_scaled(const int32_t *sums, const float *scales, float x_scale, float *y) {
    LB_UNROLL(16)
    for (int r = 0; r < LB_ROWS; r++) {
        y[r] = y[r] + (float)sums[r] * (scales[r] * x_scale);
        LB_IN_ORDER();
    }
}

/* The same with minima. */
LB_INLINE void lb_add_affine(const int32_t *sums, const float *scales, float x_scale, const float *minima, float x_sum,
                             float *y) {
    for (int r = 0; r < LB_ROWS; r++) {
        y[r] = y[r] + ((float)sums[r] * (scales[r] * x_scale) + minima[r] * x_sum);
        LB_IN_ORDER();
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
