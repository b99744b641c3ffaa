/*
 * Between the two orders of a ternary matrix (kernels.h). Both hold four 2-bit codes to a byte: those of four columns
 * of one row in the row groups, those of four rows of one column in the lines. So the step between them, either way, is
 * a transposition of four times four codes, done here for eight bytes at a time.
 */
#ifndef LB_TRANSPOSE_H
#define LB_TRANSPOSE_H

#include <string.h>

#include "kernels.h"

/* Field f of byte g becomes field g of byte f, for the eight bytes of each of four words. */
static inline void lb_transpose_fields(const uint64_t s[4], uint64_t out[4]) {
    const uint64_t pairs = 0x3333333333333333u, low = 0x0f0f0f0f0f0f0f0fu;
    const uint64_t t0 = (s[0] & pairs) | (s[1] & pairs) << 2, t1 = (s[0] >> 2 & pairs) | (s[1] & ~pairs);
    const uint64_t t2 = (s[2] & pairs) | (s[3] & pairs) << 2, t3 = (s[2] >> 2 & pairs) | (s[3] & ~pairs);
    out[0] = (t0 & low) | (t2 & low) << 4;
    out[1] = (t1 & low) | (t3 & low) << 4;
    out[2] = (t0 >> 4 & low) | (t2 & ~low);
    out[3] = (t1 >> 4 & low) | (t3 & ~low);
}

/* Sixteen bytes of each of four columns (or rows), transposed. */
static inline void lb_transpose_sixteen(const uint8_t *const from[4], uint8_t *const to[4]) {
    for (int half = 0; half < 16; half += 8) {
        uint64_t s[4], t[4];
        for (int i = 0; i < 4; i++) memcpy(&s[i], from[i] + half, 8);
        lb_transpose_fields(s, t);
        for (int i = 0; i < 4; i++) memcpy(to[i] + half, &t[i], 8);
    }
}

/* A quarter of a line, 64 outputs of all channels: where its bytes of channel 0 lie, and how far those of the next. */
static inline const uint8_t *lb_quarter_codes(const lb_matrix *m, int32_t quarter, size_t *step) {
    const int32_t line = quarter / 4;
    int32_t tile = (int32_t)((int64_t)line * m->tiles / lb_lines(m->n_rows));
    while (lb_tile_line(m, tile + 1) <= line) tile++;
    const int32_t first = lb_tile_line(m, tile), lines = lb_tile_line(m, tile + 1) - first;
    *step = (size_t)lines * 64;
    return lb_channel_codes(m, first, lines, 0) + (size_t)(line - first) * 64 + 16 * (quarter % 4);
}

/* One word of four row groups, from sixteen bytes of sixteen columns: from[byte of the word][field]. */
static inline void lb_transpose_word(const uint8_t *const from[4][4], uint8_t *const to[4]) {
    uint8_t transposed[4][4][LB_ROWS]; /* [byte of the word][row group][row] */
    for (int b = 0; b < 4; b++) {
        uint8_t *const groups[4] = {transposed[b][0], transposed[b][1], transposed[b][2], transposed[b][3]};
        lb_transpose_sixteen(from[b], groups);
    }
    for (int g = 0; g < 4; g++) {
        for (int row = 0; row < LB_ROWS; row++) {
            for (int b = 0; b < 4; b++) to[g][4 * row + b] = transposed[b][g][row];
        }
    }
}

/* Fills a quarter from row groups of the same matrix; row groups beyond its rows are weight 0. */
static inline void lb_transpose_to_lines(const lb_matrix *rows, const lb_matrix *m, int32_t quarter) {
    const int32_t block_words = m->block_cols / 16, groups = lb_row_groups(m->n_rows);
    size_t step;
    uint8_t *base = (uint8_t *)lb_quarter_codes(m, quarter, &step);
    for (int32_t word = 0; word < m->words; word++) {
        const int32_t block = word / block_words * block_words, left = m->words - block;
        const int32_t apart = 4 * (left < block_words ? left : block_words);
        for (int b = 0; b < 4; b++) {
            const int32_t column = 16 * block + 4 * (word - block) + b;
            uint8_t bytes[4][LB_ROWS], unused[LB_ROWS];
            memset(bytes, 0x55, sizeof bytes);
            for (int g = 0; g < 4 && 4 * quarter + g < groups; g++) {
                const uint8_t *in = rows->codes + ((size_t)(4 * quarter + g) * m->words + word) * 64 + b;
                for (int row = 0; row < LB_ROWS; row++) bytes[g][row] = in[4 * row];
            }
            const uint8_t *const from[4] = {bytes[0], bytes[1], bytes[2], bytes[3]};
            uint8_t *to[4];
            for (int f = 0; f < 4; f++) {
                to[f] = column + apart * f < m->n_cols ? base + step * (column + apart * f) : unused;
            }
            lb_transpose_sixteen(from, to);
        }
    }
}

#endif
