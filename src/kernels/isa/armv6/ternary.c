/*
 * Ternary codes, looked up: no weight is multiplied, and no code is taken apart.
 *
 *     byte of row r, word t, byte b:   | field 3 | field 2 | field 1 | field 0 |      two bits each, weight = code - 1
 *     table of (t, b):                 sum over the fields of weight * x[4 W field + 4 t + b]
 *     an entry:                        | that sum of the next token, int16 | that of this token, int16 |
 *
 * A byte is four weights of two tokens, and costs three instructions: LDRB, LDR with the shifted byte as index, SADD16.
 * (SMLAD takes two instructions for two weights of one token, as a code must be taken out first.) Eight tables are in
 * use at a time, so that their addresses stay in registers; their 81 entries lie in 18 of 32 cache lines of 32 bytes,
 * which are 4.6 KB of a first cache of 16 KB, and leave the rest for codes and sums.
 *
 * Bounds: an entry is at most 4 * 128, eight of them 2**12, which fits int16. A row sums to at most 2**7 * 2**18.
 */
#include <arm_acle.h>

#include "../portable/simd.h"

#define LB_ISA armv6
#define LB_TILE 2
#include "../matmul_template.h"

enum {
    STRIP = 32,    /* row groups that share one set of tables: 2 KB of sums for each token */
    TILE = LB_TILE /* tokens */
};

typedef uint32_t two;        /* int16 lanes, one for each token */
typedef two table[256];      /* by the byte of codes, at most 170 */
typedef int32_t strip[STRIP][LB_ROWS];

LB_INLINE two add(two a, two b) { return (two)__sadd16((int16x2_t)a, (int16x2_t)b); }
LB_INLINE two sub(two a, two b) { return (two)__ssub16((int16x2_t)a, (int16x2_t)b); }

LB_INLINE two both(const int8_t *x, ptrdiff_t stride, const int tokens) {
    return (uint16_t)*x | (tokens == 2 ? (uint32_t)(int32_t)x[stride] << 16 : 0);
}

/* All sums of the activations of a byte's four columns, which are `field` apart, each times -1, 0 or +1. */
LB_INLINE void make_table(two *out, const int8_t *x, ptrdiff_t field, ptrdiff_t stride, const int tokens) {
    const two x0 = both(x, stride, tokens), x1 = both(x + field, stride, tokens),
              x2 = both(x + 2 * field, stride, tokens), x3 = both(x + 3 * field, stride, tokens);
    two d = sub(0, add(add(x0, x1), add(x2, x3)));
    for (int i = 0; i < 3; i++, d = add(d, x3), out += 64) {
        two c = d;
        for (int j = 0; j < 3; j++, c = add(c, x2)) {
            two b = c;
            LB_UNROLL(3)
            for (int k = 0; k < 3; k++, b = add(b, x1)) {
                const two next = add(b, x0);
                out[16 * j + 4 * k] = b;
                out[16 * j + 4 * k + 1] = next;
                out[16 * j + 4 * k + 2] = add(next, x0);
            }
        }
    }
}

/* Takes an address as it is, so that the compiler keeps it in a register instead of making it anew. */
#define ADDRESS(name, of)   \
    const two *name = (of); \
    __asm__("" : "+r"(name))

/* Adds one or two words of every row of n row groups, `stride` bytes apart, to their sums. */
LB_INLINE void add_words(const table *tables, const uint8_t *w, ptrdiff_t stride, int32_t n, int32_t *sums,
                         const int words, const int tokens) {
    ADDRESS(t0, tables[0]);
    ADDRESS(t1, tables[1]);
    ADDRESS(t2, tables[2]);
    ADDRESS(t3, tables[3]);
    ADDRESS(t4, tables[words == 2 ? 4 : 0]);
    ADDRESS(t5, tables[words == 2 ? 5 : 0]);
    ADDRESS(t6, tables[words == 2 ? 6 : 0]);
    ADDRESS(t7, tables[words == 2 ? 7 : 0]);
    for (int32_t i = 0; i < n; i++, w += stride) {
        LB_UNROLL(16)
        for (int row = 0; row < LB_ROWS; row++, sums++) {
            const uint8_t *codes = w + 4 * row;
            two sum = add(t0[codes[0]], t1[codes[1]]);
            sum = add(add(sum, t2[codes[2]]), t3[codes[3]]);
            if (words == 2) {
                sum = add(add(sum, t4[codes[64]]), t5[codes[65]]);
                sum = add(add(sum, t6[codes[66]]), t7[codes[67]]);
            }
            sums[0] += (int16_t)sum;
            if (tokens == 2) sums[STRIP * LB_ROWS] += (int32_t)sum >> 16;
        }
    }
}

/* The words [word, word + words) of n row groups, which begin a block of as many words. */
LB_INLINE void add_block(const lb_matrix *m, const int8_t *x, ptrdiff_t stride, int32_t row_group, int32_t n,
                         int32_t word, int32_t words, strip *sums, const int tokens) {
    const ptrdiff_t apart = (ptrdiff_t)m->words * 64;
    const uint8_t *w = m->codes + row_group * apart + (ptrdiff_t)word * 64;
    table tables[8];
    for (int32_t t = 0; t < words; t += 2, w += 128) {
        const int32_t now = words - t < 2 ? 1 : 2;
        for (int i = 0; i < 4 * now; i++) make_table(tables[i], x + 4 * t + i, 4 * words, stride, tokens);
        if (now == 2) {
            add_words((const table *)tables, w, apart, n, sums[0][0], 2, tokens);
        } else {
            add_words((const table *)tables, w, apart, n, sums[0][0], 1, tokens);
        }
    }
}

LB_INLINE void multiply_strip(const lb_matmul_args *args, int32_t token, int32_t row_group, int32_t n,
                              const int tokens) {
    const lb_matrix *m = args->w;
    const lb_activations *a = args->x;
    const int8_t *x = a->q + (ptrdiff_t)token * a->stride;
    const int32_t block = m->block_cols / 16;
    strip sums[TILE];
    float y[TILE][STRIP][LB_ROWS];
    int32_t word = 0;
    for (int j = 0; j < tokens; j++) memset(y[j], 0, (size_t)n * sizeof *y[j]);
    for (int32_t g = 0; g < m->n_groups; g++) {
        const int32_t end = g == m->n_groups - 1 ? m->words : word + m->group_cols / 16;
        for (int j = 0; j < tokens; j++) memset(sums[j], 0, (size_t)n * sizeof *sums[j]);
        while (word < end) {
            const int32_t words = end - word < block ? end - word : block;
            add_block(m, x + 16 * (ptrdiff_t)word, a->stride, row_group, n, word, words, sums, tokens);
            word += words;
        }
        for (int32_t i = 0; i < n; i++) {
            const int32_t rows = m->n_rows - (row_group + i) * LB_ROWS;
            const lb_scales scales = args->sums ? (lb_scales){0} : lb_load_scales(m, row_group + i, g, LB_U2);
            for (int j = 0; j < tokens; j++) {
                const i32x16 sum = vi_load(sums[j][i]);
                const ptrdiff_t at = (token + j) * args->y_stride + (row_group + i) * LB_ROWS;
                if (args->sums) {
                    lb_store_sums(args->sums + at, sum, rows);
                    continue;
                }
                const float x_scale = a->scale[(ptrdiff_t)(token + j) * a->n_groups + g];
                v_store(y[j][i], lb_add_group(v_load(y[j][i]), sum, scales, x_scale, NULL, LB_U2));
                if (g == m->n_groups - 1) lb_store_rows(args->y + at, v_load(y[j][i]), rows);
            }
        }
    }
}

void LB_NAME(lb_matmul_u2)(const lb_matmul_args *args, int32_t begin, int32_t end) {
    int32_t token = 0;
    for (; token + TILE <= args->x->n_tokens; token += TILE) {
        for (int32_t at = begin; at < end; at += STRIP) {
            multiply_strip(args, token, at, end - at < STRIP ? end - at : STRIP, TILE);
        }
    }
    if (token == args->x->n_tokens) return;
    for (int32_t at = begin; at < end; at += STRIP) {
        multiply_strip(args, token, at, end - at < STRIP ? end - at : STRIP, 1);
    }
}
