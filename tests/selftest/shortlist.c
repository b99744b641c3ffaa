/* The largest rows of a matrix, and single rows, against the product of the whole matrix. */
#include <math.h>

#include "selftest.h"
#include "shortlist.h"

typedef struct {
    int32_t n_rows, n_cols, group_cols, scales_f16, alike;
} shape;

static int before(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

static float *random_scales(const shape *s, void **kept) {
    const size_t n = (size_t)lb_row_groups(s->n_rows) * LB_ROWS * (s->n_cols / s->group_cols);
    float *scales = allocate(n * sizeof *scales);
    uint16_t *halves = allocate(n * sizeof *halves);
    fill_random(scales, (int32_t)n, 0.001f, 0.01f);
    for (size_t i = 0; i < n && s->alike; i++) scales[i] = 0.01f;
    if (!s->alike && !s->scales_f16) scales[3] = 1e-30f, scales[5] = 1e25f, scales[7] = 0.0f; /* of single rows */
    for (size_t i = 0; i < n; i++) halves[i] = lb_float_to_half(scales[i]);
    for (size_t i = 0; i < n && s->scales_f16; i++) scales[i] = lb_half_to_float(halves[i]);
    *kept = halves;
    return scales;
}

/* The code of a weight, which may be either neighbour of what lies between two: an x87 rounds later than others. */
static int32_t code_of(const lb_sketch *s, int32_t row, int32_t c) {
    const int32_t r = row % LB_ROWS, lane = r / 4 * 16 + r % 2 * 2;
    const size_t group = (size_t)(row / LB_ROWS) * (size_t)s->spans * LB_SPAN_LANES;
    const int32_t both =
        s->codes[group + (size_t)(c / LB_SPAN_COLS * LB_SPAN_LANES + lane + c % LB_SPAN_COLS / 2 * 4 + c % 2)];
    const int32_t high = (both + 1024 + 16 * 2048) / 2048 - 16;
    return r % 4 < 2 ? both - 2048 * high : high;
}

/* Codes are the nearest to the weights, and the kernel makes their sums with z. */
static void check_sketch(const char *parameters, const lb_sketch *s, const float *rows, const int16_t *z) {
    const int32_t groups = lb_row_groups(s->n_rows);
    float *y = allocate((size_t)s->n_rows * sizeof *y), *best = allocate((size_t)groups * sizeof *best);
    float *values = allocate((size_t)s->n_rows * sizeof *y);
    lb_table.sketch(s, z, 0, groups, y, best);
    for (int32_t row = 0; row < s->n_rows; row++) {
        const float scale = s->scales[row];
        int32_t sum = 0;
        for (int32_t c = 0; c < s->n_cols; c++) {
            const int32_t code = code_of(s, row, c);
            if (scale > 0.0f && fabsf(rows[(size_t)row * s->n_cols + c] - scale * (float)code) > 0.501f * scale)
                report(parameters, "row %d, column %d has the code %d", (int)row, (int)c, (int)code);
            sum += code * z[c / 8 * 16 + c % 8 / 2 * 4 + c % 2];
        }
        values[row] = (float)sum * s->scales[row];
    }
    check_floats(parameters, "sketch", y, values, s->n_rows);
    for (int32_t g = 0; g < groups; g++) {
        float most = -INFINITY;
        for (int32_t r = 16 * g; r < 16 * g + 16 && r < s->n_rows; r++) most = values[r] > most ? values[r] : most;
        if (s->n_rows % LB_ROWS == 0) check_floats(parameters, "largest of a row group", best + g, &most, 1);
    }
    free(y), free(best), free(values);
}

static void check_shape(const shape *s) {
    const int32_t groups = lb_row_groups(s->n_rows), n_groups = s->n_cols / s->group_cols;
    const size_t n_codes = (size_t)groups * LB_ROWS * s->n_cols;
    uint8_t *codes = allocate_aligned(n_codes);
    void *halves;
    float *scales = random_scales(s, &halves), *x = allocate((size_t)s->n_cols * sizeof *x);
    float *rows = allocate((size_t)s->n_rows * s->n_cols * sizeof *rows);
    char parameters[100];
    snprintf(parameters, sizeof parameters, "shortlist of %d rows, %d columns, groups of %d, float%d scales%s",
             (int)s->n_rows, (int)s->n_cols, (int)s->group_cols, s->scales_f16 ? 16 : 32,
             s->alike ? ", all alike" : "");
    for (size_t i = 0; i < n_codes; i++) codes[i] = s->alike ? 200 : (uint8_t)random_int(0, 255);
    lb_matrix m = {.codes = codes,
                   .scales = s->scales_f16 ? halves : scales,
                   .format = LB_U8,
                   .n_rows = s->n_rows,
                   .n_cols = s->n_cols,
                   .block_cols = s->group_cols,
                   .group_cols = s->group_cols,
                   .n_groups = n_groups,
                   .words = s->n_cols / 4,
                   .scales_f16 = s->scales_f16};
    int16_t *sketched = allocate_aligned(n_codes), *inputs = allocate_aligned((size_t)s->n_cols * 6);
    float *sketch_scales = allocate((size_t)groups * LB_ROWS * sizeof *sketch_scales);
    lb_lengths *lengths = allocate((size_t)groups * sizeof *lengths);
    memset(sketched, 0, n_codes), memset(lengths, 0, (size_t)groups * sizeof *lengths);
    memset(sketch_scales, 0, (size_t)groups * LB_ROWS * sizeof *sketch_scales);
    for (int32_t row = 0; row < s->n_rows; row++) {
        float *w = rows + (size_t)row * s->n_cols;
        for (int32_t c = 0; c < s->n_cols; c++) {
            const size_t at = ((size_t)(row / LB_ROWS) * m.words + c / 4) * 64 + row % LB_ROWS * 4 + c % 4;
            w[c] = (float)(codes[at] - 128) *
                   scales[lb_scales_at(&m, row / LB_ROWS, c / s->group_cols) + (size_t)(row % LB_ROWS)];
        }
        lb_sketch_row(sketched, sketch_scales, lengths, s->n_cols, row, w);
    }
    const lb_sketch sketch = {sketched, sketch_scales, s->n_rows, s->n_cols, s->n_cols / LB_SPAN_COLS};
    float *want = allocate((size_t)s->n_rows * sizeof *want), *sorted = allocate((size_t)s->n_rows * sizeof *want);
    float *got = allocate((size_t)s->n_rows * sizeof *got), *best = allocate((size_t)groups * sizeof *best);
    int8_t *q = allocate_aligned((size_t)s->n_cols);
    float *x_scales = allocate((size_t)n_groups * sizeof *x_scales);
    int32_t *sums = allocate((size_t)n_groups * sizeof *sums);
    fill_random(x, s->n_cols, -1.0f, 1.0f);
    x[s->n_cols / 2] = 9.0f;
    lb_table.quantize(x, s->n_cols, s->group_cols, 0, s->n_cols, q, x_scales, sums);
    const lb_activations a = {q, x_scales, sums, NULL, s->n_cols, n_groups, 1};
    lb_matmul_args args = {&m, &a, want, NULL, s->n_rows};
    lb_table.matmul[LB_U8](&args, 0, groups);

    float off, length;
    const float d = lb_sketch_input(&a, &m, inputs, &off, &length);
    check_sketch(parameters, &sketch, rows, inputs);
    for (int32_t c = 0; c < s->n_cols; c += LB_SPAN_COLS) {
        int32_t sum = 0;
        for (int i = 0; i < LB_SPAN_COLS; i++) sum += abs(inputs[2 * c + i / 2 * 4 + i % 2]);
        if (!(d > 0.0f) || sum > 68) report(parameters, "inputs of a span sum to %d", (int)sum);
    }
    for (int32_t c = 0; c < s->n_cols; c++) inputs[2 * s->n_cols + c] = q[c];
    for (int32_t row = 0; row < s->n_rows; row++) got[row] = lb_table.row_u8(&args, inputs + 2 * s->n_cols, row);
    check_floats(parameters, "rows", got, want, s->n_rows);

    memcpy(sorted, want, (size_t)s->n_rows * sizeof *sorted);
    qsort(sorted, (size_t)s->n_rows, sizeof *sorted, before);
    for (int32_t k = 1; k <= LB_MOST_SHORTLISTED; k = 3 * k + 1) {
        const lb_shortlist_tools tools = {lb_table.matmul[LB_U8], lb_table.sketch, lb_table.row_u8, inputs, best};
        args.y = got;
        const int32_t made = lb_shortlist(&sketch, lengths, &args, k, &tools);
        for (int32_t row = 0; row < s->n_rows; row++) {
            if (got[row] == -INFINITY && want[row] < sorted[k - 1]) got[row] = want[row];
        }
        check_floats(parameters, "the largest", got, want, s->n_rows);
        if (!s->alike && k == 1 && groups >= 16 && made > s->n_rows / 4)
            report(parameters, "%d rows were made", (int)made);
    }
    free(codes), free(scales), free(halves), free(x), free(rows), free(sketched), free(inputs), free(sketch_scales);
    free(lengths), free(want), free(sorted), free(got), free(best), free(q), free(x_scales), free(sums);
}

void test_shortlist(void) {
    static const shape shapes[] = {
        {1024, 64, 32, 1, 0}, {1000, 64, 32, 0, 0}, {2048, 288, 32, 1, 0}, {2048, 96, 96, 0, 0},
        {1024, 104, 8, 1, 0}, {1024, 64, 32, 1, 1}, {96, 40, 40, 0, 0},
    };
    const uint64_t before = random_restart(7); /* how many rows are made is the same on every set */
    for (int i = 0; i < COUNT(shapes); i++) check_shape(shapes + i);
    random_restart(before);
}
