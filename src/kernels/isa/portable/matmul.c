/*
 * Plain C for the 4-bit, 8-bit and float formats. The ternary kernel of this instruction set is the one in
 * ternary.pyx, which only adds, subtracts and looks up.
 */
#include "simd.h"

#define LB_ISA portable
#define LB_TILE 1
#define LB_U8_OFFSET 128
#define LB_FLOAT_TILE 1
#include "../matmul_template.h"
#include "../planes_template.h"

LB_INLINE void u4_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    (void)stride, (void)tokens;
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail, field = 4 * words;
        for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
            for (int row = 0; row < LB_ROWS; row++) {
                for (int i = 0; i < 4; i++) {
                    const int32_t code = w[4 * row + i];
                    acc->v[row] += (code & 15) * x[i] + (code >> 4) * x[field + i];
                }
            }
        }
        x += field;
    }
}

LB_INLINE void u8_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    (void)stride, (void)tokens;
    const int32_t words = run.full * run.words + run.tail;
    for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
        for (int row = 0; row < LB_ROWS; row++) {
            for (int i = 0; i < 4; i++) acc->v[row] += (int32_t)w[4 * row + i] * x[i];
        }
    }
}

/* The five codes of a byte are divided out one after the other. */
LB_INLINE void t5_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    (void)stride, (void)tokens;
    const int8_t *fifth_x = x + 16 * (run.full * run.words + run.tail);
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail, field = 4 * words;
        for (int32_t t = 0; t < words; t++, w += 64, x += 4, fifth_x += 4) {
            for (int row = 0; row < LB_ROWS; row++) {
                for (int i = 0; i < 4; i++) {
                    const uint32_t q = w[4 * row + i], fifth = q / 84, four = q % 84;
                    acc->v[row] += (int32_t)(four % 3) * x[i] + (int32_t)(four / 3 % 3) * x[field + i] +
                                   (int32_t)(four / 9 % 3) * x[2 * field + i] +
                                   (int32_t)(four / 27) * x[3 * field + i] + (int32_t)fifth * fifth_x[i];
                }
            }
        }
        x += 3 * field;
    }
}

LB_INT_MATMUL(lb_matmul_u4, LB_U4, 8, u4_tile)
LB_INT_MATMUL(lb_matmul_u8, LB_U8, LB_U8_OFFSET, u8_tile)
LB_INT_MATMUL(lb_matmul_u4m, LB_U4M, 0, u4_tile)
LB_INT_MATMUL(lb_matmul_u8m, LB_U8M, LB_U8_OFFSET, u8_tile)
LB_PLANES_MATMUL(0, u8_tile)
LB_INT_MATMUL(lb_matmul_t5, LB_T5, 1, t5_tile)
LB_FLOAT_MATMUL(lb_matmul_f32, LB_F32)
LB_FLOAT_MATMUL(lb_matmul_f16, LB_F16)
LB_FLOAT_MATMUL(lb_matmul_bf16, LB_BF16)
LB_DOT_PEAK(u8_tile)

/* One after the other: nothing is known of a processor that has no other set. */
void LB_NAME(lb_streams)(const lb_matmul_args *args, int32_t streams, int32_t begin, int32_t end) {
    static lb_matmul_fn *const matmul[] = {LB_NAME(lb_matmul_u2),  LB_NAME(lb_matmul_u4),  LB_NAME(lb_matmul_u8),
                                           LB_NAME(lb_matmul_u4m), LB_NAME(lb_matmul_u8m), LB_NAME(lb_matmul_t5),
                                           LB_NAME(lb_matmul_up),  LB_NAME(lb_matmul_upm), LB_NAME(lb_matmul_ut)};
    const int32_t groups = lb_row_groups(args->w->n_rows), apart = lb_units(groups, streams);
    for (int32_t first = 0; first < groups; first += apart) {
        const int32_t last = first + end < groups ? first + end : groups;
        matmul[args->w->format](args, first + begin, last);
    }
}

size_t LB_NAME(lb_prepared_bytes)(const lb_matrix *m, int32_t n_tokens) { return (void)m, (void)n_tokens, 0; }

void LB_NAME(lb_prepare)(const lb_matmul_args *args, void *prepared, int32_t begin, int32_t end) {
    (void)args, (void)prepared, (void)begin, (void)end;
}

void LB_NAME(lb_matmul_prepared)(const lb_matmul_args *args, const void *prepared, int32_t begin, int32_t end) {
    (void)args, (void)prepared, (void)begin, (void)end;
}
