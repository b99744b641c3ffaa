/* Matrix products against loops over single weights, packed here from the layout that kernels.h describes. */
#include <float.h>

#include "emulated_tiles.h"
#include "planes.h"
#include "selftest.h"

static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113},
                    fp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
static const struct {
    const char *name;
    int32_t format, bits, offset, usual_block;
    const int8_t *values; /* what codes stand for, if not for themselves less the offset */
} kinds[] = {
    {"u2", LB_U2, 2, 1, 128, NULL},      {"u4", LB_U4, 4, 8, 32, NULL},     {"u8", LB_U8, 8, 128, 32, NULL},
    {"u4m", LB_U4M, 4, 0, 32, NULL},     {"u8m", LB_U8M, 8, 128, 32, NULL}, {"t5", LB_T5, 2, 1, 128, NULL},
    {"u3", LB_UP, 3, 4, 32, NULL},       {"u5", LB_UP, 5, 16, 32, NULL},    {"u6", LB_UP, 6, 32, 32, NULL},
    {"u2m", LB_UPM, 2, 0, 32, NULL},     {"u5m", LB_UPM, 5, 0, 32, NULL},   {"iq4", LB_UT, 4, 0, 32, iq4_values},
    {"fp4", LB_UT, 4, 0, 32, fp4_values}};
enum { KIND_U2 = 0 };

enum { RANDOM, LOW, HIGH, OPPOSED, N_FILLS };
static const char *const fill_names[N_FILLS] = {"random", "minimum", "maximum", "maximum times minimum"};

/* Where a code lies in the packed bytes, and at which bit. */
static size_t place(const lb_matrix *m, int bits, int32_t row, int32_t column, int *shift) {
    const int fields = 8 / bits, block_words = m->block_cols / (4 * fields);
    const int32_t block = column / m->block_cols, inside = column % m->block_cols, first = block * block_words;
    const int32_t words = m->words - first < block_words ? m->words - first : block_words;
    const int32_t field = inside / (4 * words), word = inside % (4 * words) / 4, byte = inside % 4;
    *shift = bits * field;
    return (((size_t)(row / LB_ROWS) * m->words + first + word) * LB_ROWS + row % LB_ROWS) * 4 + byte;
}

/* The same for codes in planes: where the bits of the low plane lie, or those of the high one. */
static size_t plane_place(const lb_matrix *m, int high, int32_t row, int32_t column, int *shift) {
    const int low = m->bits > 3 ? 4 : 2, bits = high ? m->bits - low : low, four = column % 32 / 4;
    const int32_t word = column / 32 * m->bits + (high ? low : 0) + four % bits;
    *shift = four / bits * bits;
    return (((size_t)(row / LB_ROWS) * m->words + word) * LB_ROWS + row % LB_ROWS) * 4 + column % 4;
}

static int32_t t5_words(int32_t columns) { return (columns + 19) / 20; }

/* The same for T5: what the code is multiplied by. */
static size_t t5_place(const lb_matrix *m, int32_t row, int32_t column, int *factor) {
    static const int factors[] = {1, 3, 9, 27, 84};
    const int32_t group = column / m->group_cols, start = group * m->group_cols, inside = column - start;
    const int32_t columns = m->n_cols - start < m->group_cols ? m->n_cols - start : m->group_cols;
    const int32_t words = t5_words(columns), block = inside / 128 * 8,
                  field = 4 * (words - block < 8 ? words - block : 8);
    const int fifth = inside >= 16 * words;
    const int32_t word = fifth ? (inside - 16 * words) / 4 : block + inside % 128 % field / 4;
    *factor = factors[fifth ? 4 : inside % 128 / field];
    return (((size_t)(row / LB_ROWS) * m->words + group * t5_words(m->group_cols) + word) * LB_ROWS + row % LB_ROWS) *
               4 +
           inside % 4;
}

static int32_t code_at(const lb_matrix *m, int bits, int32_t row, int32_t column) {
    int shift;
    if (lb_has_planes(m->format)) {
        const int low = bits > 3 ? 4 : 2;
        size_t byte = plane_place(m, 0, row, column, &shift);
        int32_t code = m->codes[byte] >> shift & ((1 << low) - 1);
        if (bits > low) {
            byte = plane_place(m, 1, row, column, &shift);
            code |= (m->codes[byte] >> shift & ((1 << (bits - low)) - 1)) << low;
        }
        return code;
    }
    if (m->format == LB_T5) {
        const int code = m->codes[t5_place(m, row, column, &shift)];
        return shift == 84 ? code / 84 : code % 84 / shift % 3;
    }
    const size_t at = place(m, bits, row, column, &shift);
    return m->codes[at] >> shift & ((1 << bits) - 1);
}

static float scale_at(const lb_matrix *m, int32_t row, int32_t group, int32_t behind) {
    const size_t at = lb_scales_at(m, row / LB_ROWS, group) + behind + row % LB_ROWS;
    return m->scales_f16 ? lb_half_to_float(((const uint16_t *)m->scales)[at]) : ((const float *)m->scales)[at];
}

/* Integer sum of one row's weights, one token and one scale group. */
static int32_t group_sum(const lb_matrix *m, const int8_t *q, const int16_t *weights, int32_t group) {
    const int32_t begin = m->n_groups == 1 ? 0 : group * m->group_cols;
    const int32_t end = group == m->n_groups - 1 ? m->n_cols : begin + m->group_cols;
    int64_t sum = 0;
    for (int32_t c = begin; c < end; c++) sum += weights[c] * q[c];
    return (int32_t)sum;
}

static void reference_row(const lb_matmul_args *args, const int16_t *weights, int32_t token, int32_t row) {
    const lb_matrix *m = args->w;
    const lb_activations *a = args->x;
    float y = 0.0f;
    for (int32_t g = 0; g < m->n_groups; g++) {
        const int32_t sum = group_sum(m, a->q + (ptrdiff_t)token * a->stride, weights, g);
        if (args->sums) {
            args->sums[token * args->y_stride + row] = sum;
            return;
        }
        const ptrdiff_t at = (ptrdiff_t)token * a->n_groups + g;
        float part = (float)sum * (scale_at(m, row, g, 0) * a->scale[at]);
        if (lb_has_minima(m->format)) part = part + scale_at(m, row, g, LB_ROWS) * (a->scale[at] * (float)a->sum[at]);
        y = y + part;
    }
    args->y[token * args->y_stride + row] = y;
}

static void reference_matmul(const lb_matmul_args *args, int kind, int32_t begin, int32_t end) {
    const lb_matrix *m = args->w;
    int16_t *weights = allocate((size_t)m->n_cols * sizeof *weights);
    for (int32_t row = begin * LB_ROWS; row < end * LB_ROWS && row < m->n_rows; row++) {
        for (int32_t c = 0; c < m->n_cols; c++) {
            const int32_t code = code_at(m, kinds[kind].bits, row, c);
            weights[c] = (int16_t)(kinds[kind].values ? kinds[kind].values[code] : code - kinds[kind].offset);
        }
        for (int32_t token = 0; token < args->x->n_tokens; token++) reference_row(args, weights, token, row);
    }
    free(weights);
}

void reference_matmul_u2(const lb_matmul_args *args, int32_t begin, int32_t end) {
    reference_matmul(args, KIND_U2, begin, end);
}

typedef struct {
    int32_t kind, n_rows, n_cols, block_cols, group_cols, scales_f16, n_tokens, fill;
} shape;

static void describe(char text[200], const shape *s, const char *output) {
    snprintf(text, 200, "matmul %s %s: %d rows, %d columns, blocks of %d, groups of %d, float%d scales, %d tokens, %s",
             kinds[s->kind].name, output, (int)s->n_rows, (int)s->n_cols, (int)s->block_cols, (int)s->group_cols,
             s->scales_f16 ? 16 : 32, (int)s->n_tokens, fill_names[s->fill]);
}

static void fill_matrix(lb_matrix *m, const shape *s) {
    const int32_t format = kinds[s->kind].format;
    const int bits = kinds[s->kind].bits, fields = 8 / bits,
              most = format == LB_U2 || format == LB_T5 ? 2 : (1 << bits) - 1;
    const int32_t groups = lb_row_groups(s->n_rows), rest = s->n_cols % s->block_cols;
    memset(m, 0, sizeof *m);
    m->format = format, m->n_rows = s->n_rows, m->n_cols = s->n_cols, m->block_cols = s->block_cols;
    m->group_cols = s->group_cols, m->scales_f16 = s->scales_f16;
    m->n_groups = (s->n_cols + s->group_cols - 1) / s->group_cols;
    m->words = s->n_cols / s->block_cols * (s->block_cols / (4 * fields)) + (rest + 4 * fields - 1) / (4 * fields);
    m->table = kinds[s->kind].values == fp4_values ? LB_FP4_TABLE : LB_IQ4_TABLE;
    if (lb_has_planes(format)) m->bits = bits, m->words = (s->n_cols + 31) / 32 * bits;
    if (format == LB_T5) {
        const int32_t last = s->n_cols - (m->n_groups - 1) * s->group_cols;
        m->words = (m->n_groups - 1) * t5_words(s->group_cols) + t5_words(last);
    }

    const size_t n_bytes = (size_t)groups * m->words * 64;
    uint8_t *codes = allocate_aligned(n_bytes), padding = 0;
    for (int f = 0; f < fields && format < LB_T5; f++) padding |= (uint8_t)(kinds[s->kind].offset << (bits * f));
    memset(codes, padding, n_bytes);
    m->codes = codes;
    for (int32_t row = 0; row < s->n_rows; row++) {
        for (int32_t c = 0; c < s->n_cols; c++) {
            int shift;
            const int32_t code = s->fill == RANDOM ? random_int(0, most) : s->fill == LOW ? 0 : most;
            if (lb_has_planes(format)) {
                const int low = bits > 3 ? 4 : 2;
                size_t byte = plane_place(m, 0, row, c, &shift);
                codes[byte] |= (uint8_t)((code & ((1 << low) - 1)) << shift);
                if (bits > low) {
                    byte = plane_place(m, 1, row, c, &shift);
                    codes[byte] |= (uint8_t)(code >> low << shift);
                }
                continue;
            }
            if (format == LB_T5) {
                const size_t byte = t5_place(m, row, c, &shift);
                codes[byte] = (uint8_t)(codes[byte] + code * shift);
                continue;
            }
            const size_t at = place(m, bits, row, c, &shift);
            codes[at] = (uint8_t)((codes[at] & ~(((1 << bits) - 1) << shift)) | code << shift);
        }
    }
    /* Scales of one sign: where an x87 rounds later than others, sums that nearly cancel would tell of nothing else. */
    const size_t n_scales = lb_scales_at(m, groups, 0);
    float *scales = allocate(n_scales * sizeof *scales);
    fill_random(scales, (int32_t)n_scales, FLT_EVAL_METHOD ? 0.0f : -2.0f, 2.0f);
    m->scales = scales;
    if (s->scales_f16) {
        uint16_t *halves = allocate(n_scales * sizeof *halves);
        for (size_t i = 0; i < n_scales; i++) halves[i] = lb_float_to_half(scales[i]);
        free(scales);
        m->scales = halves;
    }
}

/* Activations that start at an odd address, in rows that are no multiple of four long. */
static int8_t *fill_activations(lb_activations *a, const lb_matrix *m, const shape *s) {
    const int32_t start = (m->n_groups - 1) * m->group_cols, words = t5_words(m->n_cols - start);
    const int bits = kinds[s->kind].bits;
    const int32_t padded = m->format == LB_T5         ? start + 16 * words + (words + 3) / 4 * 16
                           : lb_has_planes(m->format) ? m->words / bits * 32
                                                      : m->words * 4 * (8 / bits);
    const int32_t stride = padded + 1;
    /* Kernels of bytes need not take -128, which quantisation does not give. */
    const int32_t least = bits == 8 || m->format == LB_UT ? -127 : -128;
    int8_t *memory = allocate((size_t)s->n_tokens * stride + 1), *q = memory + 1;
    float *scale = allocate((size_t)s->n_tokens * m->n_groups * sizeof *scale);
    int32_t *sum = allocate((size_t)s->n_tokens * m->n_groups * sizeof *sum);
    memset(memory, 0, (size_t)s->n_tokens * stride + 1);
    memset(sum, 0, (size_t)s->n_tokens * m->n_groups * sizeof *sum);
    fill_random(scale, s->n_tokens * m->n_groups, 0.0f, 0.1f);
    for (int32_t token = 0; token < s->n_tokens; token++) {
        for (int32_t c = 0; c < s->n_cols; c++) {
            const int32_t value = s->fill == RANDOM ? random_int(least, 127) : s->fill == HIGH ? 127 : least;
            q[(size_t)token * stride + c] = (int8_t)value;
            sum[token * m->n_groups + (m->n_groups == 1 ? 0 : c / m->group_cols)] += value;
        }
    }
    *a = (lb_activations){q, scale, sum, NULL, stride, m->n_groups, s->n_tokens};
    return memory;
}

/* Runs a kernel in two ranges of row groups, and checks that the first leaves the rows of the second alone. */
static void run(const char *text, lb_matmul_fn *matmul, const lb_matmul_args *args, uint8_t *out, size_t n_bytes) {
    const int32_t groups = lb_row_groups(args->w->n_rows), middle = groups / 2;
    memset(out, GUARD, n_bytes);
    matmul(args, 0, middle);
    for (int32_t token = 0; token < args->x->n_tokens; token++) {
        const size_t at = (size_t)token * args->y_stride + middle * LB_ROWS;
        if (!guards_hold(out + 4 * at, 4 * (size_t)(args->y_stride - middle * LB_ROWS))) {
            report(text, "row groups 0..%d: rows after them were written, token %d", (int)middle - 1, (int)token);
        }
    }
    matmul(args, middle, groups);
    if (emulated_in_use()) report(text, "the tiles stay configured");
}

/* One token: the same rows in several streams, in two ranges of units. */
static void check_streams(const char *text, const lb_matmul_args *args, uint8_t *out, const void *expected,
                          size_t n_bytes) {
    static const int32_t counts[] = {2, 4, 8};
    for (int i = 0; i < COUNT(counts); i++) {
        char more[240];
        const int32_t units = lb_units(lb_row_groups(args->w->n_rows), counts[i]);
        snprintf(more, sizeof more, "%s, %d streams", text, (int)counts[i]);
        memset(out, GUARD, n_bytes);
        lb_table.streams(args, counts[i], units / 2, units);
        lb_table.streams(args, counts[i], 0, units / 2);
        if (args->sums) {
            check_bytes(more, "sums", out, expected, n_bytes);
        } else {
            check_floats(more, "output", (const float *)(void *)out, expected, (int32_t)(n_bytes / 4));
        }
    }
}

static void *prepared;
static int32_t n_prepared;

static void multiply_prepared(const lb_matmul_args *args, int32_t begin, int32_t end) {
    lb_table.matmul_prepared(args, prepared, begin, end);
}

/* Where the set prepares such a product: the same rows again, with what was prepared in two ranges of tiles. */
static void check_prepared(const char *text, const lb_matmul_args *args, uint8_t *out, const void *expected,
                           size_t n_bytes) {
    const int32_t n_tokens = args->x->n_tokens, tiles = lb_units(n_tokens, LB_PREPARED_TILE);
    const size_t bytes = n_tokens <= LB_PREPARED_TOKENS ? lb_table.prepared_bytes(args->w, n_tokens) : 0;
    char more[240];
    if (!bytes) return;
    snprintf(more, sizeof more, "%s, prepared", text);
    prepared = allocate(bytes);
    lb_table.prepare(args, prepared, tiles / 2, tiles);
    lb_table.prepare(args, prepared, 0, tiles / 2);
    run(more, multiply_prepared, args, out, n_bytes);
    if (args->sums) {
        check_bytes(more, "sums", out, expected, n_bytes);
    } else {
        check_floats(more, "output", (const float *)(void *)out, expected, (int32_t)(n_bytes / 4));
    }
    free(prepared);
    n_prepared++;
}

static void check_integer(const shape *s) {
    char text[200];
    lb_matrix m;
    lb_activations a;
    fill_matrix(&m, s);
    int8_t *memory = fill_activations(&a, &m, s);
    const ptrdiff_t stride = s->n_rows + 3;
    const size_t n = (size_t)s->n_tokens * stride, n_bytes = n * sizeof(float);
    float *got = allocate(n_bytes), *expected = allocate(n_bytes);

    lb_matmul_args args = {&m, &a, got, NULL, stride}, reference = {&m, &a, expected, NULL, stride};
    describe(text, s, "scaled");
    run(text, lb_table.matmul[m.format], &args, (uint8_t *)got, n_bytes);
    memset(expected, GUARD, n_bytes);
    reference_matmul(&reference, s->kind, 0, lb_row_groups(s->n_rows));
    check_floats(text, "output", got, expected, (int32_t)n);
    if (s->n_tokens == 1) check_streams(text, &args, (uint8_t *)got, expected, n_bytes);
    check_prepared(text, &args, (uint8_t *)got, expected, n_bytes);

    if (m.n_groups == 1) {
        args.sums = (int32_t *)(void *)got, reference.sums = (int32_t *)(void *)expected;
        describe(text, s, "sums");
        run(text, lb_table.matmul[m.format], &args, (uint8_t *)got, n_bytes);
        memset(expected, GUARD, n_bytes);
        reference_matmul(&reference, s->kind, 0, lb_row_groups(s->n_rows));
        check_bytes(text, "sums", got, expected, n_bytes);
        if (s->n_tokens == 1) check_streams(text, &args, (uint8_t *)got, expected, n_bytes);
        check_prepared(text, &args, (uint8_t *)got, expected, n_bytes);
    }
    free((void *)m.codes), free((void *)m.scales), free(memory), free((void *)a.scale), free((void *)a.sum);
    free(got), free(expected);
}

void test_integer_matmul(void) {
    static const int32_t columns[] = {1, 3, 4, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 400};
    static const int32_t rows[] = {1, 15, 16, 17, 32, 33, 50};
    static const int32_t long_columns[] = {64, 65, 100, 128, 192, 300, 1024, 1030, 2500};
    static const int32_t many_tokens[] = {15, 16, 17, 31, 32, 33, 47, 48, 64, 65, 100};
    static const int32_t panels[] = {128, 140, 256, 257, 300, 383, 512, 900, 1024};
    static const int32_t panel_tokens[] = {10, 11, 12, 13, 16, 17, 22, 31, 32, 65};
    int32_t n = 0;
    for (int32_t kind = 0; kind < COUNT(kinds); kind++) {
        if (is_portable && kind == KIND_U2) continue; /* written in Cython, and not linked here */
        const int32_t format = kinds[kind].format, bits = kinds[kind].bits, usual = kinds[kind].usual_block;
        const int is_largest = format < LB_UP || bits == 6; /* of those in planes, the codes of this one */
        const int32_t longest = !is_largest ? 1 << 12 : bits == 8 ? 1 << 16 : 1 << 18;
        const int one_block = format == LB_T5 || lb_has_planes(format); /* of no other length */
        /* every length, in usual and in shorter blocks, with one scale per row and with groups */
        for (int i = 0; i < COUNT(columns); i++) {
            for (int32_t block = usual; block >= (one_block ? usual : 32 / bits); block /= 2) {
                for (int32_t fill = 0; fill < N_FILLS; fill++, n++) {
                    const int32_t group = n % 3 == 0 ? columns[i] : block * (n % 3);
                    check_integer(&(shape){kind, rows[n % COUNT(rows)], columns[i], block,
                                           group < columns[i] ? group : columns[i], n & 1, 1 + n % 5, fill});
                }
            }
        }
        /* every number of tokens, so that every tile and every rest is met */
        for (int32_t tokens = 1; tokens <= 33; tokens++, n++) {
            check_integer(
                &(shape){kind, 33, 3 * usual + 20, usual, n & 1 ? usual : 3 * usual + 20, n & 1, tokens, RANDOM});
        }
        /* every number of row groups, so that streams of every length and every rest are met */
        for (int32_t groups = 1; groups <= 17; groups++, n++) {
            const int32_t cols = 9 * usual + (n % 2 ? 20 : 0), group = n % 3 == 0 ? cols : usual * (n % 3);
            check_integer(&(shape){kind, 16 * groups - n % 5, cols, usual, group, n & 1, 1, n % N_FILLS});
        }
        /* tiles of tokens and rests of them, in groups that are long enough for tiles and rows of several panels */
        for (int i = 0; i < COUNT(long_columns) && !lb_has_planes(format); i++) { /* these have no such tiles */
            for (int32_t fill = 0; fill < N_FILLS; fill++, n++) {
                const int32_t block = n % 5 || one_block ? usual : usual / 4 * 3,
                              group = n % 3 ? 4 * block * (n % 3) : long_columns[i];
                check_integer(&(shape){kind, rows[n % COUNT(rows)], long_columns[i], block,
                                       group < long_columns[i] ? group : long_columns[i], n & 1,
                                       many_tokens[n % COUNT(many_tokens)], fill});
            }
        }
        /* many rows and tokens: tiles of both, and rests, with panels of columns that are whole and that are not */
        for (int i = 0; i < COUNT(panels) && !lb_has_planes(format); i++) {
            for (int32_t groups = 1; groups <= 8; groups++, n++) {
                const int32_t cols = panels[i], whole = groups % 4 == 0 ? cols : groups % 4 * usual;
                check_integer(&(shape){kind, 64 + 15 * (n % 6), cols, usual, whole < cols ? whole : cols, n & 1,
                                       panel_tokens[n % COUNT(panel_tokens)], n % N_FILLS});
            }
        }
        if (!lb_has_planes(format)) {
            check_integer(&(shape){kind, 33, 200, usual, 200, 0, 300, RANDOM});
            check_integer(&(shape){kind, 20, 200, usual, 2 * usual, 0, 257, RANDOM});
        }
        /* half a block to a scale, in whole blocks and not */
        for (int32_t tokens = 1; tokens <= 33 && lb_has_planes(format); tokens++, n++) {
            check_integer(
                &(shape){kind, 50 + n % 20, n % 2 ? 256 : 40 + n % 32, usual, 16, n & 1, tokens, n % N_FILLS});
        }
        /* the longest sums that packing allows */
        for (int32_t fill = 0; fill < N_FILLS; fill++) {
            check_integer(&(shape){kind, 1, longest, usual, longest, 0, 2 + fill % 2, fill});
            check_integer(&(shape){kind, 1, longest, usual, longest, 0, 1, fill});
        }
        check_integer(&(shape){kind, 1, longest, usual, longest, 0, 16, HIGH});
        check_integer(&(shape){kind, 1, longest, usual, longest, 0, 17, OPPOSED});
    }
    const lb_matrix ternary = {.format = LB_U2,
                               .n_rows = 256,
                               .n_cols = 256,
                               .block_cols = 128,
                               .group_cols = 256,
                               .n_groups = 1,
                               .words = 16};
    if (lb_table.prepared_bytes(&ternary, LB_PREPARED_TOKENS) && n_prepared < 50) {
        report("prepared products", "only %d were checked", (int)n_prepared);
    }
}

static float weight(const lb_matrix *m, size_t at) {
    if (m->format == LB_F32) return ((const float *)(const void *)m->codes)[at];
    const uint16_t h = ((const uint16_t *)(const void *)m->codes)[at];
    return m->format == LB_F16 ? lb_half_to_float(h) : lb_bits_to_float((uint32_t)h << 16);
}

/* Products of the even and of the odd columns are added up one after the other, and the two sums at the end. */
static void reference_float_matmul(const lb_matmul_args *args) {
    const lb_matrix *m = args->w;
    for (int32_t token = 0; token < args->x->n_tokens; token++) {
        for (int32_t row = 0; row < m->n_rows; row++) {
            float sum[2] = {0.0f, 0.0f};
            for (int32_t c = 0; c < m->n_cols; c++) {
                const float w = weight(m, ((size_t)(row / LB_ROWS) * m->n_cols + c) * LB_ROWS + row % LB_ROWS);
                sum[c & 1] = sum[c & 1] + w * args->x->x[(ptrdiff_t)token * args->x->stride + c];
            }
            args->y[token * args->y_stride + row] = sum[0] + sum[1];
        }
    }
}

/* `codes` of n values: random, or if all_halves every bit pattern in turn. */
static void check_float(int32_t format, int32_t n_rows, int32_t n_cols, int32_t n_tokens, int all_halves) {
    char text[200];
    const size_t n = (size_t)lb_row_groups(n_rows) * LB_ROWS * n_cols;
    uint8_t *codes = allocate_aligned(n * (format == LB_F32 ? 4 : 2));
    for (size_t i = 0; i < n; i++) {
        const float value = random_float(-1.0f, 1.0f);
        const uint16_t half = all_halves ? (uint16_t)i : lb_float_to_half(value);
        if (format == LB_F32) {
            memcpy(codes + 4 * i, &value, 4);
        } else {
            const uint16_t bits = format == LB_F16 ? half : (uint16_t)(lb_float_to_bits(value) >> 16);
            memcpy(codes + 2 * i, &bits, 2);
        }
    }
    const int32_t stride = n_cols + 1;
    float *x = allocate((size_t)n_tokens * stride * sizeof *x);
    fill_random(x, n_tokens * stride, -1.0f, 1.0f);
    if (all_halves) x[0] = 1.0f;
    const ptrdiff_t y_stride = n_rows + 3;
    const size_t n_out = (size_t)n_tokens * y_stride;
    float *got = allocate(n_out * sizeof *got), *expected = allocate(n_out * sizeof *expected);

    lb_matrix m = {codes, NULL, format, n_rows, n_cols, n_cols, n_cols, 1, 0, 0, 0, 0, 0, 0};
    lb_activations a = {NULL, NULL, NULL, x, stride, 1, n_tokens};
    lb_matmul_args args = {&m, &a, got, NULL, y_stride}, reference = {&m, &a, expected, NULL, y_stride};
    snprintf(text, sizeof text, "matmul %s: %d rows, %d columns, %d tokens%s",
             format == LB_F32   ? "f32"
             : format == LB_F16 ? "f16"
                                : "bf16",
             (int)n_rows, (int)n_cols, (int)n_tokens, all_halves ? ", every float16" : "");
    run(text, lb_table.matmul[format], &args, (uint8_t *)got, n_out * sizeof *got);
    memset(expected, GUARD, n_out * sizeof *expected);
    reference_float_matmul(&reference);
    check_floats(text, "output", got, expected, (int32_t)n_out);
    free(codes), free(x), free(got), free(expected);
}

void test_float_matmul(void) {
    static const int32_t columns[] = {1, 2, 3, 16, 31, 32, 33, 257}, rows[] = {1, 15, 16, 17, 33};
    for (int32_t format = LB_F32; format <= LB_BF16; format++) {
        int32_t n = 0;
        for (int i = 0; i < COUNT(columns); i++) {
            for (int j = 0; j < COUNT(rows); j++, n++) check_float(format, rows[j], columns[i], 1 + n % 5, 0);
        }
        for (int32_t tokens = 1; tokens <= 33; tokens++) check_float(format, 17, 40, tokens, 0);
    }
    check_float(LB_F16, 1 << 16, 1, 1, 1);
}
