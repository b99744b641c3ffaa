/* Products of channel-major matrices with active channels, against loops over single weights. */
#include "selftest.h"

typedef struct {
    int32_t n_rows, n_cols, tiles, group_cols, scales_f16, zeros, n_parts, fill; /* zeros: of 100 activations */
} shape;

enum { RANDOM, LOWEST, HIGHEST };

static int32_t code_at(const lb_matrix *m, int32_t row, int32_t column) {
    const int32_t line = row / LB_LINE_ROWS, inside = row % LB_LINE_ROWS;
    int32_t tile = 0;
    while (lb_tile_line(m, tile + 1) <= line) tile++;
    const int32_t first = lb_tile_line(m, tile), lines = lb_tile_line(m, tile + 1) - first;
    const uint8_t *at = m->codes + ((size_t)first * m->n_cols + (size_t)lines * column + (line - first)) * 64;
    return at[inside / 64 * 16 + inside % 16] >> (2 * (inside % 64 / 16)) & 3;
}

static void fill_matrix(lb_matrix *m, const shape *s) {
    const int32_t lines = lb_lines(s->n_rows), rest = s->n_cols % 128;
    memset(m, 0, sizeof *m);
    m->format = LB_U2, m->n_rows = s->n_rows, m->n_cols = s->n_cols, m->tiles = s->tiles;
    m->block_cols = s->group_cols < 128 ? s->group_cols : 128, m->group_cols = s->group_cols;
    m->n_groups = (s->n_cols + s->group_cols - 1) / s->group_cols, m->scales_f16 = s->scales_f16;
    m->block_cols = s->group_cols == 64 ? 64 : 128;
    m->words = s->n_cols / 128 * 8 + (rest + 15) / 16;

    const size_t n_bytes = (size_t)lines * m->n_cols * 64, n_scales = (size_t)m->n_groups * lines * LB_LINE_ROWS;
    uint8_t *codes = allocate_aligned(n_bytes);
    for (size_t i = 0; i < n_bytes; i++) {
        int32_t byte = 0;
        for (int f = 0; f < 4; f++) {
            byte |= (s->fill == RANDOM ? random_int(0, 2) : s->fill == LOWEST ? 0 : 2) << (2 * f);
        }
        codes[i] = (uint8_t)byte;
    }
    float *scales = allocate(n_scales * sizeof *scales);
    fill_random(scales, (int32_t)n_scales, -2.0f, 2.0f);
    m->codes = codes, m->scales = scales;
    if (s->scales_f16) {
        uint16_t *halves = allocate(n_scales * sizeof *halves);
        for (size_t i = 0; i < n_scales; i++) halves[i] = lb_float_to_half(scales[i]);
        free(scales);
        m->scales = halves;
    }
}

static float scale_at(const lb_matrix *m, int32_t row, int32_t group) {
    const size_t at = (size_t)group * lb_lines(m->n_rows) * LB_LINE_ROWS + row;
    return m->scales_f16 ? lb_half_to_float(((const uint16_t *)m->scales)[at]) : ((const float *)m->scales)[at];
}

static int32_t group_sum(const lb_matrix *m, const int8_t *q, int32_t row, int32_t group) {
    const int32_t begin = group * m->group_cols, end = begin + m->group_cols;
    int32_t sum = 0;
    for (int32_t c = begin; c < end && c < m->n_cols; c++) sum += (code_at(m, row, c) - 1) * q[c];
    return sum;
}

/* Lists the channels whose activation is not 0, in n_parts parts or one for each scale group. */
static void list_active(lb_sparse_args *args, const int8_t *q, int32_t n_parts) {
    const lb_matrix *m = args->w;
    int32_t *channels = allocate(((size_t)m->n_cols + (size_t)LB_CHANNELS * n_parts) * sizeof *channels);
    int8_t *values = allocate((size_t)m->n_cols + (size_t)LB_CHANNELS * n_parts);
    int32_t *ends = allocate(((size_t)n_parts + 1) * sizeof *ends), n = 0;
    for (int32_t part = 0; part < n_parts; part++) {
        const int32_t begin = m->n_groups > 1 ? part * m->group_cols : (int32_t)((int64_t)m->n_cols * part / n_parts);
        int32_t end = m->n_groups > 1 ? begin + m->group_cols : (int32_t)((int64_t)m->n_cols * (part + 1) / n_parts);
        if (end > m->n_cols) end = m->n_cols;
        ends[part] = n;
        for (int32_t c = begin; c < end; c++) {
            if (q[c]) channels[n] = c, values[n++] = q[c];
        }
        for (; n % LB_CHANNELS; n++) channels[n] = channels[n - 1], values[n] = 0;
    }
    ends[n_parts] = n;
    args->channels = channels, args->q = values, args->ends = ends, args->n_parts = n_parts;
}

/* Runs both steps, each in two ranges. */
static void run(const lb_sparse_args *args) {
    const int32_t units = args->w->tiles * args->n_parts, lines = lb_lines(args->w->n_rows);
    memset(args->partial, GUARD, (size_t)args->n_parts * lines * LB_LINE_ROWS * sizeof *args->partial);
    lb_table.sparse(args, units / 3, units);
    lb_table.sparse(args, 0, units / 3);
    lb_table.sparse_finish(args, lines / 2, lines);
    lb_table.sparse_finish(args, 0, lines / 2);
}

/* The row groups that are made of the matrix are those of the same weights: their product is the same. */
static void check_row_groups(const char *text, const lb_matrix *m, const int8_t *q, const float *expected,
                             const float *scale, const int32_t *sum) {
    const int32_t quarters = (m->n_rows + 63) / 64;
    const size_t quarter = (size_t)4 * m->words * 64, scales = (size_t)4 * quarters * m->n_groups * LB_ROWS;
    uint8_t *codes = allocate_aligned(quarters * quarter + 1);
    float *row_scales = allocate(scales * sizeof *row_scales), *y = allocate((size_t)m->n_rows * sizeof *y);
    int8_t *padded = allocate((size_t)m->words * 16);
    lb_matrix dense = *m;
    memset(padded, 0, (size_t)m->words * 16);
    memcpy(padded, q, (size_t)m->n_cols);
    memset(row_scales, 0, scales * sizeof *row_scales);
    codes[quarters * quarter] = GUARD;
    for (int32_t i = quarters - 1; i >= 0; i--) lb_table.to_row_groups(m, i, codes + i * quarter);
    if (codes[quarters * quarter] != GUARD) report(text, "bytes after the row groups were written");
    for (int32_t row = 0; row < m->n_rows; row++) {
        for (int32_t g = 0; g < m->n_groups; g++) {
            row_scales[((size_t)(row / LB_ROWS) * m->n_groups + g) * LB_ROWS + row % LB_ROWS] = scale_at(m, row, g);
        }
    }
    dense.codes = codes, dense.scales = row_scales, dense.scales_f16 = 0, dense.tiles = 0;
    const lb_activations a = {padded, scale, sum, NULL, m->words * 16, m->n_groups, 1};
    const lb_matmul_args args = {&dense, &a, y, NULL, m->n_rows};
    lb_table.matmul[LB_U2](&args, 0, lb_row_groups(m->n_rows));
    check_floats(text, "y of the row groups", y, expected, m->n_rows);
    free(codes), free(row_scales), free(y), free(padded);
}

static void check_shape(const shape *s) {
    char text[200];
    lb_matrix m;
    fill_matrix(&m, s);
    const size_t rows = (size_t)lb_lines(m.n_rows) * LB_LINE_ROWS, guard = 64;
    snprintf(text, sizeof text, "%d rows, %d columns, %d tiles, groups of %d, float%d scales, %d%% zeros, %d parts, %d",
             (int)s->n_rows, (int)s->n_cols, (int)s->tiles, (int)s->group_cols, s->scales_f16 ? 16 : 32, (int)s->zeros,
             (int)s->n_parts, (int)s->fill);
    int8_t *q = allocate((size_t)m.n_cols);
    float *scale = allocate((size_t)m.n_groups * sizeof *scale), *expected = allocate((size_t)m.n_rows * 4);
    int32_t *sum = allocate((size_t)m.n_groups * sizeof *sum), *sums = allocate((size_t)m.n_rows * sizeof *sums);
    memset(sum, 0, (size_t)m.n_groups * sizeof *sum);
    fill_random(scale, m.n_groups, 0.0f, 0.1f);
    for (int32_t c = 0; c < m.n_cols; c++) {
        const int32_t value = s->fill == RANDOM ? random_int(-128, 127) : s->fill == LOWEST ? -128 : 127;
        q[c] = (int8_t)(random_int(0, 99) < s->zeros ? 0 : value);
        sum[c / m.group_cols] += q[c];
    }
    for (int32_t row = 0; row < m.n_rows; row++) {
        float y = 0.0f;
        for (int32_t g = 0; g < m.n_groups; g++) {
            sums[row] = group_sum(&m, q, row, g);
            y = y + (float)sums[row] * (scale_at(&m, row, g) * scale[g]);
        }
        expected[row] = y;
    }
    float *y = allocate(m.n_rows * sizeof *y + guard);
    lb_sparse_args args = {.w = &m, .scale = scale, .sum = sum, .y = y};
    list_active(&args, q, m.n_groups > 1 ? m.n_groups : s->n_parts);
    args.partial = allocate_aligned((size_t)args.n_parts * rows * sizeof *args.partial);
    memset(y, GUARD, m.n_rows * sizeof *y + guard);
    run(&args);
    check_floats(text, "y", y, expected, m.n_rows);
    if (!guards_hold(y + m.n_rows, guard)) report(text, "bytes after y were written");
    if (m.n_groups == 1) {
        args.sums = (int32_t *)(void *)y;
        run(&args);
        check_bytes(text, "sums", y, sums, m.n_rows * sizeof *sums);
        if (!guards_hold(y + m.n_rows, guard)) report(text, "bytes after the sums were written");
    }
    check_row_groups(text, &m, q, expected, scale, sum);
    free((void *)args.channels), free((void *)args.q), free((void *)args.ends), free(args.partial);
    free(q), free(scale), free(expected), free(sum), free(sums), free(y), free((void *)m.codes), free((void *)m.scales);
}

void test_sparse(void) {
    static const int32_t rows[] = {1, 16, 63, 257, 600, 1500}, cols[] = {1, 7, 8, 17, 128, 300},
                         zeros[] = {0, 50, 95, 100};
    for (int r = 0; r < COUNT(rows); r++) {
        for (int c = 0; c < COUNT(cols); c++) {
            for (int z = 0; z < COUNT(zeros); z++) {
                const int32_t tiles = 1 + (c + z) % lb_lines(rows[r]), parts = 1 + (r + z) % 3;
                check_shape(&(shape){rows[r], cols[c], tiles, cols[c], z % 2, zeros[z], parts, RANDOM});
                if (cols[c] > 128) check_shape(&(shape){rows[r], cols[c], tiles, 128, z % 2, zeros[z], 1, RANDOM});
            }
        }
    }
    check_shape(&(shape){300, 1000, 2, 64, 1, 70, 1, RANDOM});
    check_shape(&(shape){300, 1000, 1, 256, 1, 30, 1, RANDOM});
    for (int fill = LOWEST; fill <= HIGHEST; fill++) { /* the longest part does not overflow */
        check_shape(&(shape){3, 1 << 16, 1, 1 << 16, 0, 0, 1, fill});
        check_shape(&(shape){300, 500, 1, 128, 0, 0, 1, fill});
    }
}
