/*
 * One decode step of the same Llama with lowbit's kernels: the calls that forward.pyx makes for one row on one
 * thread, in the same order, without Python around them.
 *
 *     lowbit_decode SHAPE POSITION LOGITS_FILE f32|int8 INSTRUCTION_SET all|K
 *
 * `all` makes every logit, K those that the K likeliest tokens need, if the head has a sketch (shortlist.pyx). What is
 * written are all logits in either case.
 */
#include <callgrind.h>
#include <math.h>

#include "floats.h"
#include "half.h"
#include "kernels.h"
#include "table.h"

#include "largest.h"
#include "model.h"
#include "shortlist.h"
#include "sizes.h"

enum { MAX_PARTS = 3, BLOCK = 128, MAX_BLOCKS = 64, SKETCHED = 1 << 22 };

typedef struct {
    lb_matrix parts[MAX_PARTS]; /* read the same input, and write their outputs side by side */
    int n_parts;
} linear;

typedef struct {
    linear qkv, o, gate_up, down;
    char *blocks[MAX_BLOCKS]; /* keys and values, LB_KV_SPAN positions each */
} layer;

typedef struct {
    shape s;
    int head_dim, kv_dim, kv_type;
    lb_kv kv; /* of every block */
    layer *layers;
    linear table; /* (vocab, dim): embedding and head */
    float *norm, *cos, *sin;
    float *x, *h, *wide, *attended, *logits;
    int8_t *q8;
    float *scales;
    int32_t *sums;
    int32_t k; /* tokens that the logits are for, 0: all */
    lb_sketch sketch;
    lb_lengths *lengths;
    int16_t *z;
    float *best;
    int32_t made; /* logits that were */
} model;

static void apply(model *m, const linear *l, const float *x, int n, const float *norm, float *y) {
    if (norm) {
        lb_table.rms_norm(x, norm, n, EPSILON, m->h);
        x = m->h;
    }
    for (int i = 0; i < l->n_parts; i++) {
        const lb_matrix *w = &l->parts[i];
        const int fields = w->format == LB_U2 ? 4 : 1, padded = w->words * 4 * fields;
        if (i == 0) lb_table.quantize(x, n, w->group_cols, 0, padded, m->q8, m->scales, m->sums);
        const lb_activations a = {m->q8, m->scales, m->sums, NULL, padded, w->n_groups, 1};
        const lb_matmul_args args = {w, &a, y, NULL, w->n_rows};
        if (m->k && w == m->table.parts) {
            const lb_shortlist_tools tools = {lb_table.matmul[w->format], lb_table.sketch, lb_table.row_u8, m->z,
                                              m->best};
            m->made = lb_shortlist(&m->sketch, m->lengths, &args, m->k, &tools);
        } else {
            lb_table.matmul[w->format](&args, 0, lb_row_groups(w->n_rows));
        }
        y += w->n_rows;
    }
}

/* Pairs of neighbours, as ops.pyx turns them. */
static void rotate(float *head, const float *cos, const float *sin, int half) {
    for (int j = 0; j < half; j++) {
        const float a = head[2 * j], b = head[2 * j + 1];
        head[2 * j] = a * cos[j] - b * sin[j];
        head[2 * j + 1] = a * sin[j] + b * cos[j];
    }
}

static void embed(const model *m, int token) {
    const lb_matrix *w = &m->table.parts[0];
    const uint8_t *codes = w->codes + (size_t)(token / LB_ROWS) * w->words * 64 + token % LB_ROWS * 4;
    const uint16_t *scales = (const uint16_t *)w->scales + (size_t)(token / LB_ROWS) * w->n_groups * LB_ROWS;
    for (int c = 0; c < m->s.dim; c++) {
        const float scale = lb_half_to_float(scales[c / HEAD_GROUP * LB_ROWS + token % LB_ROWS]);
        m->x[c] = (float)(codes[c / 4 * 64 + c % 4] - 128) * scale;
    }
}

/* What is counted. */
static __attribute__((noinline)) int decode_step(model *m, int token, int32_t position) {
    const shape *s = &m->s;
    const int half = m->head_dim / 2, heads = s->heads + s->kv_heads;
    const float *cos = m->cos + position * half, *sin = m->sin + position * half;
    const float q_scale = (float)(1.0 / sqrt((double)m->head_dim));
    embed(m, token);
    for (int i = 0; i < s->layers; i++) {
        layer *l = &m->layers[i];
        apply(m, &l->qkv, m->x, s->dim, m->norm, m->wide);
        const float *k = m->wide + s->dim;
        char *const *blocks = l->blocks;
        const lb_attention_args args = {.q = m->wide,
                                        .out = m->attended,
                                        .blocks = &blocks,
                                        .positions = &position,
                                        .kv = m->kv,
                                        .q_stride = s->dim + 2 * m->kv_dim,
                                        .n_heads = s->heads,
                                        .n_kv_heads = s->kv_heads,
                                        .head_dim = m->head_dim,
                                        .kv_type = m->kv_type,
                                        .value_dim = m->head_dim};
        for (int h = 0; h < heads; h++) rotate(m->wide + h * m->head_dim, cos, sin, half);
        for (int j = 0; j < s->dim; j++) m->wide[j] *= q_scale;
        lb_table.kv_store(k, k + m->kv_dim, l->blocks[position / LB_KV_SPAN], &args, position);
        lb_table.attention(&args, 0, 1, 0, s->kv_heads, 0);
        apply(m, &l->o, m->attended, s->dim, NULL, m->wide);
        lb_table.add(m->x, m->wide, s->dim);
        apply(m, &l->gate_up, m->x, s->dim, m->norm, m->wide);
        lb_table.glu(m->wide, m->wide + s->hidden, s->hidden, 0);
        apply(m, &l->down, m->wide, s->hidden, NULL, m->attended);
        lb_table.add(m->x, m->attended, s->dim);
    }
    apply(m, &m->table, m->x, s->dim, m->norm, m->logits);
    return lb_largest(m->logits, s->vocab);
}

/* --- what happens once, and is not counted --- */

static lb_matrix empty_ternary(int rows, int columns) {
    lb_matrix w = {
        .format = LB_U2, .n_rows = rows, .n_cols = columns, .block_cols = BLOCK, .group_cols = columns, .n_groups = 1};
    w.words = columns / BLOCK * (BLOCK / 16) + (columns % BLOCK + 15) / 16;
    uint8_t *codes = take((size_t)lb_row_groups(rows) * w.words, 64);
    float *scales = take((size_t)lb_row_groups(rows) * LB_ROWS, sizeof *scales);
    memset(codes, 0x55, (size_t)lb_row_groups(rows) * w.words * 64);
    for (int i = 0; i < rows; i++) scales[i] = ternary_scale(columns);
    w.codes = codes, w.scales = scales;
    return w;
}

/* Puts a tensor's rows into a matrix, from row `first` on. The layout is drawn in kernels.h. */
static void fill_ternary(lb_matrix *w, int index, int role, int rows, int first) {
    uint8_t *codes = (uint8_t *)w->codes;
    for (int i = 0; i < rows; i++) {
        const int row = first + i;
        for (int j = 0; j < w->n_cols; j++) {
            const int start = j / BLOCK * BLOCK, left = w->words - start / 16, words = left < 8 ? left : 8;
            const int field = (j - start) / (4 * words), rest = (j - start) % (4 * words);
            uint8_t *byte = codes + ((size_t)(row / LB_ROWS) * w->words + start / 16 + rest / 4) * 64 +
                            row % LB_ROWS * 4 + rest % 4;
            const int code = ternary_at(index, role, i, j) + 1;
            *byte = (uint8_t)((*byte & ~(3 << 2 * field)) | code << 2 * field);
        }
    }
}

/* Several tensors become one matrix where their rows fill row groups, as packing.py does it. */
static linear ternary(int index, int count, const int *roles, const int *rows, int columns) {
    linear l = {.n_parts = 1};
    int all = 0, whole = 1;
    for (int i = 0; i < count; i++) {
        all += rows[i];
        whole = whole && (i == count - 1 || rows[i] % LB_ROWS == 0);
    }
    if (whole) {
        l.parts[0] = empty_ternary(all, columns);
        for (int i = 0, first = 0; i < count; first += rows[i], i++) {
            fill_ternary(&l.parts[0], index, roles[i], rows[i], first);
        }
        return l;
    }
    l.n_parts = count;
    for (int i = 0; i < count; i++) {
        l.parts[i] = empty_ternary(rows[i], columns);
        fill_ternary(&l.parts[i], index, roles[i], rows[i], 0);
    }
    return l;
}

static linear eight_bits(const shape *s) {
    const int groups = s->dim / HEAD_GROUP, row_groups = lb_row_groups(s->vocab);
    lb_matrix w = {.format = LB_U8,
                   .n_rows = s->vocab,
                   .n_cols = s->dim,
                   .block_cols = HEAD_GROUP,
                   .group_cols = HEAD_GROUP,
                   .n_groups = groups,
                   .words = s->dim / 4,
                   .scales_f16 = 1};
    uint8_t *codes = take((size_t)row_groups * w.words, 64);
    uint16_t *scales = take((size_t)row_groups * groups * LB_ROWS, sizeof *scales);
    for (int i = 0; i < s->vocab; i++) {
        const size_t base = (size_t)(i / LB_ROWS), lane = (size_t)(i % LB_ROWS);
        for (int j = 0; j < s->dim; j++) {
            codes[(base * w.words + j / 4) * 64 + lane * 4 + j % 4] = (uint8_t)(table_at(i, j) + 128);
        }
        for (int g = 0; g < groups; g++) {
            scales[(base * groups + g) * LB_ROWS + lane] = lb_float_to_half(table_scale(i, g * HEAD_GROUP));
        }
    }
    w.codes = codes, w.scales = scales;
    return (linear){{w}, 1};
}

static void make_sketch(model *m) {
    const lb_matrix *w = &m->table.parts[0];
    const size_t groups = (size_t)lb_row_groups(w->n_rows);
    int16_t *codes = take(groups * (size_t)w->n_cols * LB_ROWS / 2, sizeof *codes);
    float *scales = take(groups * LB_ROWS, sizeof *scales), *row = take((size_t)w->n_cols, sizeof *row);
    m->lengths = take(groups, sizeof *m->lengths), m->best = take(groups, sizeof *m->best);
    m->z = take((size_t)w->n_cols * 3, sizeof *m->z);
    for (int i = 0; i < w->n_rows; i++) {
        for (int j = 0; j < w->n_cols; j++) row[j] = (float)table_at(i, j) * table_scale(i, j);
        lb_sketch_row(codes, scales, m->lengths, w->n_cols, i, row);
    }
    m->sketch = (lb_sketch){codes, scales, w->n_rows, w->n_cols, w->n_cols / LB_SPAN_COLS};
}

static void fill_cache(const model *m, int index, char *const *blocks, int position) {
    const lb_attention_args args = {.kv = m->kv,
                                    .n_heads = m->s.heads,
                                    .n_kv_heads = m->s.kv_heads,
                                    .head_dim = m->head_dim,
                                    .kv_type = m->kv_type,
                                    .value_dim = m->head_dim};
    for (int p = 0; p < position; p++) {
        for (int c = 0; c < m->kv_dim; c++) {
            m->wide[c] = (float)cache_at(KEYS, index, p, c) * KEY_SCALE;
            m->wide[m->kv_dim + c] = (float)cache_at(VALUES, index, p, c) * KEY_SCALE;
        }
        lb_table.kv_store(m->wide, m->wide + m->kv_dim, blocks[p / LB_KV_SPAN], &args, p);
    }
}

static model make(const shape *s, int position, int kv_type) {
    model m = {.s = *s, .head_dim = s->dim / s->heads, .kv_dim = s->dim / s->heads * s->kv_heads, .kv_type = kv_type};
    const int dim = s->dim, half = m.head_dim / 2, positions = (position + 16) / 16 * 16;
    const int wide = dim + 2 * m.kv_dim > 2 * s->hidden ? dim + 2 * m.kv_dim : 2 * s->hidden;
    const int padded = (s->hidden > dim ? s->hidden : dim) + BLOCK;
    m.x = take((size_t)dim, 4), m.h = take((size_t)padded, 4), m.wide = take((size_t)wide, 4);
    m.attended = take((size_t)dim, 4), m.logits = take((size_t)s->vocab, 4);
    m.q8 = take((size_t)padded, 1), m.scales = take((size_t)padded, 4), m.sums = take((size_t)padded, 4);
    const lb_kv_layout at = lb_lay_out_kv(kv_type == LB_KV_I8 ? 1 : 4, (size_t)s->kv_heads, (size_t)m.head_dim,
                                          (size_t)m.head_dim, LB_KV_SPAN, 1);
    m.kv = (lb_kv){0, at.values_at, at.key_scales_at, at.value_scales_at, (ptrdiff_t)at.stride, (ptrdiff_t)at.stride};
    m.layers = take((size_t)s->layers, sizeof *m.layers);
    for (int i = 0; i < s->layers; i++) {
        layer *l = &m.layers[i];
        l->qkv = ternary(i, 3, (int[]){Q, K, V}, (int[]){dim, m.kv_dim, m.kv_dim}, dim);
        l->o = ternary(i, 1, (int[]){O}, (int[]){dim}, dim);
        l->gate_up = ternary(i, 2, (int[]){GATE, UP}, (int[]){s->hidden, s->hidden}, dim);
        l->down = ternary(i, 1, (int[]){DOWN}, (int[]){dim}, s->hidden);
        for (int b = 0; b <= position / LB_KV_SPAN && b < MAX_BLOCKS; b++) l->blocks[b] = take(at.nbytes, 1);
        fill_cache(&m, i, l->blocks, position);
    }
    m.table = eight_bits(s);
    m.norm = take((size_t)dim, sizeof *m.norm);
    for (int i = 0; i < dim; i++) m.norm[i] = 1.0f;
    m.cos = take((size_t)positions * half, sizeof *m.cos), m.sin = take((size_t)positions * half, sizeof *m.sin);
    for (int p = 0; p < positions; p++) {
        for (int j = 0; j < half; j++) {
            const double angle = p * pow(ROPE_THETA, -2.0 * j / m.head_dim);
            m.cos[p * half + j] = (float)cos(angle), m.sin[p * half + j] = (float)sin(angle);
        }
    }
    return m;
}

int main(int count, char **arguments) {
    if (count != 7) return 2;
    const shape *s = shape_named(arguments[1]);
    const int position = atoi(arguments[2]);
    int isa = -1;
    for (int i = 0; i < lb_isa_count(); i++) {
        if (strcmp(lb_isa_name(i), arguments[5]) == 0 && !lb_isa_lacks(i)) isa = i;
    }
    if (isa < 0) return 2;
    lb_isa_use(isa);
    lb_begin_floats();
    model m = make(s, position, strcmp(arguments[4], "int8") == 0 ? LB_KV_I8 : LB_KV_F32);
    if (s->vocab * s->dim >= SKETCHED) {
        make_sketch(&m);
        m.k = atoi(arguments[6]);
    }
    CALLGRIND_START_INSTRUMENTATION;
    CALLGRIND_TOGGLE_COLLECT;
    const int token = decode_step(&m, TOKEN, position);
    CALLGRIND_TOGGLE_COLLECT;
    CALLGRIND_STOP_INSTRUMENTATION;
    const float logit = m.logits[token];
    if (m.k) {
        m.k = 0;
        apply(&m, &m.table, m.x, s->dim, m.norm, m.logits);
    }
    if (fabsf(m.logits[token] - logit) > 1e-5f * fabsf(logit)) return 3; /* valgrind's x87 has one precision only */
    if (m.made) fprintf(stderr, "%d rows of %d\n", m.made, s->vocab);
    return finish(m.logits, token, s, arguments[3]);
}
