/*
 * One decode step of a Llama in plain float32 C, in the manner of the programs that made such models run on old PCs:
 * a matrix product is a loop over rows and a loop over columns. RoPE's sines and cosines come from tables.
 *
 *     float_decode SHAPE POSITION LOGITS_FILE
 */
#include <callgrind.h>
#include <math.h>

#include "largest.h"
#include "model.h"

typedef struct {
    float *q, *k, *v, *o, *gate, *up, *down; /* (rows, columns) */
    float *keys, *values;                    /* (positions, kv_dim) */
} layer;

typedef struct {
    shape s;
    int head_dim, kv_dim;
    layer *layers;
    float *table;                 /* (vocab, dim): embedding and head */
    float *norm;                  /* (dim,) */
    float *cos, *sin;             /* (positions, head_dim / 2) */
    float *x, *h, *h2, *q, *gate, *up, *scores, *logits;
} model;

static void rms_norm(float *out, const float *x, const float *weight, int n) {
    float sum = 0.0f;
    for (int i = 0; i < n; i++) sum += x[i] * x[i];
    const float factor = 1.0f / sqrtf(sum / n + EPSILON);
    for (int i = 0; i < n; i++) out[i] = weight[i] * (factor * x[i]);
}

static void softmax(float *x, int n) {
    float most = x[0], sum = 0.0f;
    for (int i = 1; i < n; i++) {
        if (x[i] > most) most = x[i];
    }
    for (int i = 0; i < n; i++) {
        x[i] = expf(x[i] - most);
        sum += x[i];
    }
    for (int i = 0; i < n; i++) x[i] /= sum;
}

static void matmul(float *out, const float *x, const float *w, int n, int rows) {
    for (int i = 0; i < rows; i++) {
        float sum = 0.0f;
        for (int j = 0; j < n; j++) sum += w[i * n + j] * x[j];
        out[i] = sum;
    }
}

static void rotate(float *x, int n, const float *cos, const float *sin, int head_dim) {
    for (int i = 0; i < n; i += 2) {
        const int j = i % head_dim / 2;
        const float a = x[i], b = x[i + 1];
        x[i] = a * cos[j] - b * sin[j];
        x[i + 1] = a * sin[j] + b * cos[j];
    }
}

static void attend(model *m, const layer *l, int position) {
    const int head_dim = m->head_dim, shared = m->s.heads / m->s.kv_heads;
    const float root = sqrtf((float)head_dim);
    for (int h = 0; h < m->s.heads; h++) {
        const float *q = m->q + h * head_dim;
        float *out = m->h + h * head_dim;
        for (int p = 0; p <= position; p++) {
            const float *k = l->keys + p * m->kv_dim + h / shared * head_dim;
            float score = 0.0f;
            for (int i = 0; i < head_dim; i++) score += q[i] * k[i];
            m->scores[p] = score / root;
        }
        softmax(m->scores, position + 1);
        memset(out, 0, (size_t)head_dim * sizeof *out);
        for (int p = 0; p <= position; p++) {
            const float *v = l->values + p * m->kv_dim + h / shared * head_dim, weight = m->scores[p];
            for (int i = 0; i < head_dim; i++) out[i] += weight * v[i];
        }
    }
}

/* What is counted. */
static int decode_step(model *m, int token, int position) {
    const shape *s = &m->s;
    const float *cos = m->cos + position * (m->head_dim / 2), *sin = m->sin + position * (m->head_dim / 2);
    memcpy(m->x, m->table + token * s->dim, (size_t)s->dim * sizeof *m->x);
    for (int i = 0; i < s->layers; i++) {
        layer *l = &m->layers[i];
        float *k = l->keys + position * m->kv_dim, *v = l->values + position * m->kv_dim;
        rms_norm(m->h, m->x, m->norm, s->dim);
        matmul(m->q, m->h, l->q, s->dim, s->dim);
        matmul(k, m->h, l->k, s->dim, m->kv_dim);
        matmul(v, m->h, l->v, s->dim, m->kv_dim);
        rotate(m->q, s->dim, cos, sin, m->head_dim);
        rotate(k, m->kv_dim, cos, sin, m->head_dim);
        attend(m, l, position);
        matmul(m->h2, m->h, l->o, s->dim, s->dim);
        for (int j = 0; j < s->dim; j++) m->x[j] += m->h2[j];
        rms_norm(m->h, m->x, m->norm, s->dim);
        matmul(m->gate, m->h, l->gate, s->dim, s->hidden);
        matmul(m->up, m->h, l->up, s->dim, s->hidden);
        for (int j = 0; j < s->hidden; j++) {
            const float g = m->gate[j];
            m->gate[j] = g * (1.0f / (1.0f + expf(-g))) * m->up[j];
        }
        matmul(m->h2, m->gate, l->down, s->hidden, s->dim);
        for (int j = 0; j < s->dim; j++) m->x[j] += m->h2[j];
    }
    rms_norm(m->x, m->x, m->norm, s->dim);
    matmul(m->logits, m->x, m->table, s->dim, s->vocab);
    return lb_largest(m->logits, s->vocab);
}

static float *ternary(int index, int role, int rows, int columns) {
    float *w = take((size_t)rows * columns, sizeof *w);
    const float scale = ternary_scale(columns);
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < columns; j++) w[i * columns + j] = (float)ternary_at(index, role, i, j) * scale;
    }
    return w;
}

static model make(const shape *s, int position) {
    model m = {.s = *s, .head_dim = s->dim / s->heads, .kv_dim = s->dim / s->heads * s->kv_heads};
    const int dim = s->dim, half = m.head_dim / 2, positions = position + 1;
    m.layers = take((size_t)s->layers, sizeof *m.layers);
    for (int i = 0; i < s->layers; i++) {
        layer *l = &m.layers[i];
        l->q = ternary(i, Q, dim, dim), l->k = ternary(i, K, m.kv_dim, dim), l->v = ternary(i, V, m.kv_dim, dim);
        l->o = ternary(i, O, dim, dim), l->gate = ternary(i, GATE, s->hidden, dim);
        l->up = ternary(i, UP, s->hidden, dim), l->down = ternary(i, DOWN, dim, s->hidden);
        l->keys = take((size_t)positions * m.kv_dim, sizeof(float));
        l->values = take((size_t)positions * m.kv_dim, sizeof(float));
        for (int p = 0; p < position; p++) {
            for (int c = 0; c < m.kv_dim; c++) {
                l->keys[p * m.kv_dim + c] = (float)cache_at(KEYS, i, p, c) * KEY_SCALE;
                l->values[p * m.kv_dim + c] = (float)cache_at(VALUES, i, p, c) * KEY_SCALE;
            }
        }
    }
    m.table = take((size_t)s->vocab * dim, sizeof *m.table);
    for (int i = 0; i < s->vocab; i++) {
        for (int j = 0; j < dim; j++) m.table[i * dim + j] = (float)table_at(i, j) * table_scale(i, j);
    }
    m.norm = take((size_t)dim, sizeof *m.norm);
    for (int i = 0; i < dim; i++) m.norm[i] = 1.0f;
    m.cos = take((size_t)positions * half, sizeof *m.cos), m.sin = take((size_t)positions * half, sizeof *m.sin);
    for (int p = 0; p < positions; p++) {
        for (int j = 0; j < half; j++) {
            const double angle = p * pow(ROPE_THETA, -2.0 * j / m.head_dim);
            m.cos[p * half + j] = (float)cos(angle), m.sin[p * half + j] = (float)sin(angle);
        }
    }
    m.x = take((size_t)dim, 4), m.h = take((size_t)dim, 4), m.h2 = take((size_t)dim, 4), m.q = take((size_t)dim, 4);
    m.gate = take((size_t)s->hidden, 4), m.up = take((size_t)s->hidden, 4);
    m.scores = take((size_t)positions, 4), m.logits = take((size_t)s->vocab, 4);
    return m;
}

int main(int count, char **arguments) {
    if (count != 4) return 2;
    const shape *s = shape_named(arguments[1]);
    const int position = atoi(arguments[2]);
    model m = make(s, position);
    CALLGRIND_START_INSTRUMENTATION;
    CALLGRIND_TOGGLE_COLLECT;
    const int token = decode_step(&m, TOKEN, position);
    CALLGRIND_TOGGLE_COLLECT;
    CALLGRIND_STOP_INSTRUMENTATION;
    return finish(m.logits, token, s, arguments[3]);
}
