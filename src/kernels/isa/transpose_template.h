/*
 * From channel-major to row groups (kernels.h), four row groups at a time. Include after defining LB_ISA, and after
 * transpose_sse2.h where there is SSE2.
 */
#ifndef LB_TRANSPOSE_TEMPLATE_H
#define LB_TRANSPOSE_TEMPLATE_H

#include "transpose.h"

#include "inline.h"
#include "names.h"

#ifndef LB_TRANSPOSE_WORD
#define LB_TRANSPOSE_WORD lb_transpose_word
#endif

void LB_NAME(lb_to_row_groups)(const lb_matrix *m, int32_t quarter, uint8_t *codes) {
    static const uint8_t zeros[LB_ROWS] = {0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55,
                                           0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55};
    const size_t size = (size_t)m->words * 64;
    const int32_t block_words = m->block_cols / 16;
    size_t step;
    const uint8_t *base = lb_quarter_codes(m, quarter, &step);
    for (int32_t word = 0; word < m->words; word++) {
        const int32_t block = word / block_words * block_words, left = m->words - block;
        const int32_t apart = 4 * (left < block_words ? left : block_words);
        const uint8_t *from[4][4];
        uint8_t *const to[4] = {codes, codes + size, codes + 2 * size, codes + 3 * size};
        for (int b = 0; b < 4; b++) {
            const int32_t column = 16 * block + 4 * (word - block) + b;
            for (int f = 0; f < 4; f++) {
                from[b][f] = column + apart * f < m->n_cols ? base + step * (column + apart * f) : zeros;
                LB_PREFETCH(base + step * (column + apart * f + 64)); /* prefetches beyond the matrix do nothing */
            }
        }
        LB_TRANSPOSE_WORD(from, to);
        codes += 64;
    }
}

#endif
