/*
 * Ternary codes, looked up: no weight is multiplied, and no code is taken apart.
 *
 *     byte of row r, word t, byte b:   | field 3 | field 2 | field 1 | field 0 |      two bits each, weight = code - 1
 *     table of (t, b):                 sum over the fields of weight * x[4 W field + 4 t + b]
 *
 * A byte is four weights, and costs two instructions: one loads it as an index, one adds what the table has there. The
 * best that pmaddwd can do is one instruction per weight, because a code must be isolated first.
 *
 * The codes of field 0 are neighbours in the table, so four entries are one 64-bit store: 27 additions and 27 stores
 * fill a table. Its 81 entries of int16 lie in nine of sixteen cache lines, so the 32 tables of a block of 128 columns
 * take 9 KB of a first cache of 16 KB, those of the longest pass 12 KB, and leave the rest for the codes, which pass by
 * once.
 *
 * An entry is read with 32 bits, whose upper half is of no consequence: a 32-bit addition needs no prefix, and the
 * lower half of a sum depends on lower halves alone. Sums: at most 176 * 128 < 2**15 in a pass, 2**7 * 2**18 in a row.
 */
#include "scale.h"

enum {
    STRIP = 128,   /* row groups that share one set of tables: 8 KB of sums */
    PIECE_WORDS = 8,
    MOST_WORDS = 11,        /* of a block and a short one behind it, which share a pass over the rows */
    TABLES = 4 * MOST_WORDS /* a byte of these words each */
};

typedef union {
    __m64 fours[64];
    int16_t entries[256];
} table;

LB_INLINE __m64 all_lanes(int32_t x) { return _mm_set1_pi16((short)x); }

/* All sums of x[0], x[field], x[2 field] and x[3 field], each times -1, 0 or +1. */
LB_INLINE void make_table(table *out, const int8_t *x, ptrdiff_t field) {
    const __m64 x1 = all_lanes(x[field]), x2 = all_lanes(x[2 * field]), x3 = all_lanes(x[3 * field]);
    __m64 d = _mm_set_pi16(0, x[0], 0, (short)-x[0]);
    d = _mm_sub_pi16(_mm_sub_pi16(d, x1), _mm_add_pi16(x2, x3));
    for (int i = 0; i < 3; i++, d = _mm_add_pi16(d, x3)) {
        __m64 c = d;
        for (int j = 0; j < 3; j++, c = _mm_add_pi16(c, x2)) {
            const __m64 b = _mm_add_pi16(c, x1);
            out->fours[16 * i + 4 * j] = c;
            out->fours[16 * i + 4 * j + 1] = b;
            out->fours[16 * i + 4 * j + 2] = _mm_add_pi16(b, x1);
        }
    }
}

LB_INLINE uint32_t look_up(const table *t, uint8_t code) {
    uint32_t entry;
    memcpy(&entry, &t->entries[code], sizeof entry); /* the code is at most 170: never beyond the table */
    return entry;
}

/* Adds the words of one row to its sum. */
LB_INLINE void add_row(const table *tables, const uint8_t *row, int32_t *to, const int words) {
    uint32_t sum = 0;
    LB_UNROLL(11)
    for (int t = 0; t < words; t++) {
        sum += look_up(tables + 4 * t, row[64 * t]);
        sum += look_up(tables + 4 * t + 1, row[64 * t + 1]);
        sum += look_up(tables + 4 * t + 2, row[64 * t + 2]);
        sum += look_up(tables + 4 * t + 3, row[64 * t + 3]);
    }
    *to += (int16_t)sum;
}

/* Adds `words` words of every row of n row groups, `stride` bytes apart, to their sums. */
LB_INLINE void add_words(const table *tables, const uint8_t *w, ptrdiff_t stride, int32_t n, int32_t *sums,
                         const int words) {
    for (int32_t i = 0; i < n; i++, w += stride) {
        const uint8_t *row = w;
        for (int32_t r = 0; r < LB_ROWS; r += 4, row += 16, sums += 4) {
            LB_ONE_POINTER(row);
            add_row(tables, row, sums, words);
            add_row(tables, row + 4, sums + 1, words);
            add_row(tables, row + 8, sums + 2, words);
            add_row(tables, row + 12, sums + 3, words);
        }
    }
}

/* The words [word, word + words) of n row groups: a block of up to PIECE_WORDS, and perhaps a short one behind it. */
static void add_block(const lb_matrix *m, const int8_t *x, int32_t row_group, int32_t n, int32_t word, int32_t words,
                      int32_t *sums) {
    table tables[TABLES];
    const ptrdiff_t stride = (ptrdiff_t)m->words * 64;
    const uint8_t *w = m->codes + row_group * stride + (ptrdiff_t)word * 64;
    const int32_t first = words < PIECE_WORDS ? words : PIECE_WORDS, rest = words - first;
    for (int32_t t = 0; t < 4 * first; t++) make_table(&tables[t], x + t, 4 * first);
    for (int32_t t = 0; t < 4 * rest; t++) make_table(&tables[4 * first + t], x + 16 * first + t, 4 * rest);
    _mm_empty();
    switch (words) {
    case 8:
        add_words(tables, w, stride, n, sums, 8);
        return;
    case 9:
        add_words(tables, w, stride, n, sums, 9);
        return;
    case 10:
        add_words(tables, w, stride, n, sums, 10);
        return;
    case 11:
        add_words(tables, w, stride, n, sums, 11);
        return;
    }
    const table *at = tables;
    if (words & 4) add_words(at, w, stride, n, sums, 4), at += 16, w += 256;
    if (words & 2) add_words(at, w, stride, n, sums, 2), at += 8, w += 128;
    if (words & 1) add_words(at, w, stride, n, sums, 1);
}

static void add_scaled(const lb_matmul_args *args, int32_t token, int32_t row_group, int32_t n, int32_t group,
                       int32_t (*sums)[LB_ROWS], float (*y)[LB_ROWS]) {
    const lb_matrix *m = args->w;
    const float *x_scale = args->x->scale + (ptrdiff_t)token * args->x->n_groups + group;
    const int small = m->scales_f16 && lb_has_room(x_scale, 1);
    float memory[LB_ROWS];
    for (int32_t i = 0; i < n; i++) {
        if (small) {
            lb_small_scales((const uint16_t *)m->scales + lb_scales_at(m, row_group + i, group), memory);
            _mm_empty();
        }
        const float *scales = lb_scales(m, lb_scales_at(m, row_group + i, group), small ? memory : NULL, memory);
        lb_add_scaled(sums[i], scales, small ? *x_scale * 0x1p112f : *x_scale, y[i]);
    }
}

/* The same for the only scale group, to where the outputs belong. */
static void store_scaled(const lb_matmul_args *args, int32_t token, int32_t row_group, int32_t n,
                         int32_t (*sums)[LB_ROWS]) {
    const lb_matrix *m = args->w;
    const float x_scale = args->x->scale[token];
    float memory[LB_ROWS], last[LB_ROWS];
    for (int32_t i = 0; i < n; i++) {
        const float *scales = lb_scales(m, lb_scales_at(m, row_group + i, 0), NULL, memory);
        const int whole = lb_rows_of(m, row_group + i) == LB_ROWS;
        float *y = whole ? args->y + token * args->y_stride + (row_group + i) * LB_ROWS : last;
        LB_UNROLL(16)
        for (int r = 0; r < LB_ROWS; r++)
            y[r] = 0.0f + (float)sums[i][r] * (scales[r] * x_scale); /* a sum, as elsewhere */
        if (!whole) lb_store_rows(args, token, row_group + i, last);
    }
}

static void multiply_strip(const lb_matmul_args *args, int32_t token, int32_t row_group, int32_t n) {
    const lb_matrix *m = args->w;
    const int8_t *x = args->x->q + (ptrdiff_t)token * args->x->stride;
    const int32_t block = m->block_cols / 16;
    int32_t sums[STRIP][LB_ROWS], word = 0;
    float y[STRIP][LB_ROWS];
    if (m->n_groups > 1) memset(y, 0, (size_t)n * sizeof *y);
    for (int32_t g = 0; g < m->n_groups; g++) {
        const int32_t end = g == m->n_groups - 1 ? m->words : word + m->group_cols / 16;
        memset(sums, 0, (size_t)n * sizeof *sums);
        while (word < end) {
            const int32_t left = end - word, most = block == PIECE_WORDS ? MOST_WORDS : block;
            const int32_t words = left <= most ? left : block;
            add_block(m, x + 16 * (ptrdiff_t)word, row_group, n, word, words, sums[0]);
            word += words;
        }
        if (args->sums) {
            for (int32_t i = 0; i < n; i++) lb_store_sums(args, token, row_group + i, sums[i]);
            return;
        }
        if (m->n_groups == 1) {
            store_scaled(args, token, row_group, n, sums);
            return;
        }
        add_scaled(args, token, row_group, n, g, sums, y);
    }
    for (int32_t i = 0; i < n; i++) lb_store_rows(args, token, row_group + i, y[i]);
}

void LB_NAME(lb_matmul_u2)(const lb_matmul_args *args, int32_t begin, int32_t end) {
    for (int32_t token = 0; token < args->x->n_tokens; token++) {
        for (int32_t at = begin; at < end; at += STRIP) {
            multiply_strip(args, token, at, end - at < STRIP ? end - at : STRIP);
        }
    }
}
