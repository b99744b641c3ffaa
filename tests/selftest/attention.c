/* The KV cache and attention: the cache against the layout that kernels.h describes, attention of the portable set
 * against softmax in double precision, that of the others against the portable set, bit for bit. */
#include <float.h>
#include <math.h>

#include "sizes.h"

#include "selftest.h"

typedef struct {
    int32_t type, n_heads, n_kv_heads, head_dim, n_positions, window, sinks;
    int32_t value_dim; /* 0: as head_dim */
    int32_t units; /* above 0: values are part of the keys, and the query heads of the one kv head shared out among so
                      many */
} shape;

static int32_t value_dim(const shape *s) { return s->value_dim ? s->value_dim : s->head_dim; }

enum { MOST_BLOCKS = 40, MOST_HEADS = 8 };

/* Blocks of LB_KV_SPAN positions, apart from each other, of two layers, of which the second is used. */
typedef struct {
    lb_kv kv;
    char *blocks[MOST_BLOCKS];
    size_t nbytes; /* of one block */
    int32_t n_blocks;
} cache;

static char text[200];

static size_t element(int32_t type) { return type == LB_KV_F32 ? 4 : type == LB_KV_F16 ? 2 : 1; }

static cache new_cache(const shape *s) {
    const lb_kv_layout at = lb_lay_out_kv(element(s->type), (size_t)s->n_kv_heads, (size_t)s->head_dim,
                                          s->units ? 0 : (size_t)value_dim(s), LB_KV_SPAN, 2);
    cache c = {.nbytes = at.nbytes, .n_blocks = (s->n_positions + LB_KV_SPAN - 1) / LB_KV_SPAN};
    c.kv.keys = at.layer_bytes, c.kv.values = at.layer_bytes + at.values_at;
    c.kv.key_scales = at.layer_bytes + at.key_scales_at, c.kv.value_scales = at.layer_bytes + at.value_scales_at;
    c.kv.key_stride = c.kv.value_stride = (ptrdiff_t)at.stride;
    for (int32_t i = c.n_blocks - 1; i >= 0; i--) {
        c.blocks[i] = allocate(at.nbytes);
        memset(c.blocks[i], 0xff, at.nbytes); /* no numbers: whatever a new block holds weighs nothing */
    }
    return c;
}

static void free_cache(cache *c) {
    for (int32_t i = 0; i < c->n_blocks; i++) free(c->blocks[i]);
}

/* Compares all that was stored, and that nothing else was written. */
static void check_cache(const cache *got, const cache *expected, const shape *s) {
    const size_t codes = (size_t)s->n_kv_heads * (size_t)got->kv.key_stride * element(s->type);
    for (int32_t i = 0; i < got->n_blocks; i++) {
        const char *a = got->blocks[i], *b = expected->blocks[i];
        check_bytes(text, "the other layer", a, b, got->kv.keys);
        if (s->type == LB_KV_I8) {
            check_rounded(text, "keys and values", (const int8_t *)a + got->kv.keys, (const int8_t *)b + got->kv.keys,
                          codes);
            check_bytes(text, "scales", a + got->kv.key_scales, b + got->kv.key_scales,
                        got->nbytes - got->kv.key_scales);
        } else {
            check_bytes(text, "keys and values", a + got->kv.keys, b + got->kv.keys, got->nbytes - got->kv.keys);
        }
    }
}

/* Puts one element into a cache and returns what it is worth there. */
static float put(void *memory, ptrdiff_t at, int32_t type, float value, float most) {
    if (type == LB_KV_F16) {
        ((uint16_t *)memory)[at] = lb_float_to_half(value);
        return lb_half_to_float(((uint16_t *)memory)[at]);
    }
    if (type == LB_KV_I8) {
        volatile float scaled = most > 0 ? 127.0f / most : 0.0f; /* volatile: rounded to float also by an x87 */
        scaled = scaled * tame(value);
        ((int8_t *)memory)[at] = (int8_t)rintf(scaled);
        return ((int8_t *)memory)[at] * (most / 127.0f);
    }
    return ((float *)memory)[at] = value;
}

static float largest(const float *x, int32_t n) {
    float most = 0.0f;
    for (int32_t i = 0; i < n; i++) most = fmaxf(most, fabsf(tame(x[i])));
    return most;
}

/* The layout of kernels.h. k and v, (n_kv_heads, their size), become what the cache holds of them. */
static void reference_store(float *k, float *v, const cache *c, const shape *s, int32_t position) {
    const int32_t dim = s->head_dim, wide = value_dim(s), padded = (wide + 15) / 16 * 16, at = position % LB_KV_SPAN;
    char *block = c->blocks[position / LB_KV_SPAN];
    for (int32_t head = 0; head < s->n_kv_heads; head++, k += dim, v += wide) {
        const float k_most = largest(k, dim), v_most = largest(v, wide);
        const ptrdiff_t key = head * c->kv.key_stride + (ptrdiff_t)(at / 16) * dim * 16 + at % 16;
        const ptrdiff_t value = head * c->kv.value_stride + (ptrdiff_t)at * padded;
        for (int32_t i = 0; i < dim; i++) k[i] = put(block + c->kv.keys, key + i * 16, s->type, k[i], k_most);
        if (s->units) {
            if (s->type == LB_KV_I8)
                ((float *)(void *)(block + c->kv.key_scales))[head * LB_KV_SPAN + at] = k_most / 127.0f;
            memcpy(v, k, (size_t)wide * sizeof *v);
            continue;
        }
        for (int32_t i = 0; i < wide; i++) v[i] = put(block + c->kv.values, value + i, s->type, v[i], v_most);
        for (int32_t i = wide; i < padded; i++) put(block + c->kv.values, value + i, s->type, 0.0f, 0.0f);
        if (s->type == LB_KV_I8) {
            ((float *)(void *)(block + c->kv.key_scales))[head * LB_KV_SPAN + at] = k_most / 127.0f;
            ((float *)(void *)(block + c->kv.value_scales))[head * LB_KV_SPAN + at] = v_most / 127.0f;
        }
    }
}

static void exact_attention(const shape *s, const float *q, const float *k, const float *v, const float *sinks,
                            int32_t position, double *out) {
    const int32_t dim = s->head_dim, wide = value_dim(s), width = s->n_kv_heads * dim, v_width = s->n_kv_heads * wide;
    double *scores = allocate((size_t)(position + 1) * sizeof *scores);
    for (int32_t head = 0; head < s->n_heads; head++, q += dim, out += wide) {
        const int32_t kv_head = head / (s->n_heads / s->n_kv_heads);
        double most = s->sinks ? sinks[head] : -INFINITY, total = 0;
        const int32_t first = s->window && position >= s->window ? position + 1 - s->window : 0;
        for (int32_t p = first; p <= position; p++) {
            scores[p] = 0;
            for (int32_t i = 0; i < dim; i++) scores[p] += (double)q[i] * k[p * width + kv_head * dim + i];
            most = fmax(most, scores[p]);
        }
        for (int32_t i = 0; i < wide; i++) out[i] = 0;
        if (s->sinks) total = exp(sinks[head] - most);
        for (int32_t p = first; p <= position; p++) {
            const double weight = exp(scores[p] - most);
            total += weight;
            for (int32_t i = 0; i < wide; i++) out[i] += weight * v[p * v_width + kv_head * wide + i];
        }
        for (int32_t i = 0; i < wide; i++) out[i] /= total;
    }
    free(scores);
}

/* Rows shared out by pieces, in any order and by any heads, give what they give as a whole. */
static void check_pieces(const lb_attention_args *whole, int32_t rows, const float *expected) {
    const int32_t out_width = whole->n_heads * whole->value_dim;
    lb_attention_args args = *whole;
    args.n_parts = whole->positions[rows - 1] / LB_PIECE + 1;
    const size_t n_parts = (size_t)args.n_parts * args.n_heads * lb_part_floats(args.value_dim);
    float *parts = allocate(n_parts * sizeof *parts), *out = allocate((size_t)out_width * sizeof *out);
    args.parts = parts, args.out = out;
    for (int32_t row = 0; row < rows; row++, args.q += args.q_stride, args.blocks++, args.positions++) {
        const int32_t seen = args.positions[0] + 1;
        const int32_t first = args.window && seen > args.window ? (seen - args.window) / LB_PIECE : 0;
        memset(parts, 0xff, n_parts * sizeof *parts);
        for (int32_t piece = (seen - 1) / LB_PIECE; piece >= first; piece--) {
            const int32_t some = args.n_kv_heads / 2;
            if (some) lb_table.attention(&args, 0, 1, 0, some, piece);
            lb_table.attention(&args, 0, 1, some, args.n_kv_heads - some, piece);
        }
        for (int32_t head = args.n_heads - 1; head >= 0; head--) lb_table.attention_sum(&args, head);
        check_floats(text, "output by pieces", out, expected + (ptrdiff_t)row * out_width, out_width);
    }
    free(parts), free(out);
}

static void check_attention(const shape *s) {
    static const char *const types[] = {"float32", "float16", "int8"};
    enum { ROWS = 9, AFTER = 8 };
    const int32_t width = s->n_kv_heads * s->head_dim, q_width = s->n_heads * s->head_dim, q_stride = q_width + 1;
    const int32_t v_width = s->n_kv_heads * value_dim(s), out_width = s->n_heads * value_dim(s);
    snprintf(text, sizeof text, "attention: %s cache, %d heads, %d kv heads of %d and %d, %d positions, window %d%s",
             types[s->type], (int)s->n_heads, (int)s->n_kv_heads, (int)s->head_dim, (int)value_dim(s),
             (int)s->n_positions, (int)s->window, s->sinks ? ", sinks" : "");
    float *k = allocate((size_t)s->n_positions * width * sizeof *k);
    float *v = allocate((size_t)s->n_positions * v_width * sizeof *v);
    float *q = allocate((size_t)ROWS * q_stride * sizeof *q);
    fill_random(k, s->n_positions * width, -3.0f, 3.0f), fill_random(v, s->n_positions * v_width, -3.0f, 3.0f);
    fill_random(q, ROWS * q_stride, -0.5f, 0.5f);
    for (int32_t i = 0; i < s->n_positions * width; i += 11) k[i] *= 1e-6f;   /* subnormal as float16 */
    for (int32_t i = 0; i < s->n_positions * v_width; i += 11) v[i] *= 1e-7f; /* likewise */
    if (s->n_positions > 1) memset(v, 0, (size_t)v_width * sizeof *v);        /* no largest magnitude */

    cache c = new_cache(s), expected_cache = new_cache(s);
    char *const *blocks[ROWS];
    int32_t positions[ROWS]; /* one, and then neighbours up to the last position */
    for (int32_t row = 0; row < ROWS; row++) {
        const int32_t before = ROWS - 1 - row;
        blocks[row] = c.blocks;
        positions[row] = row == 0 ? s->n_positions / 2 : s->n_positions > before ? s->n_positions - 1 - before : 0;
    }
    const size_t n_out = (size_t)ROWS * out_width, out_bytes = (n_out + AFTER) * sizeof(float);
    float *got = allocate(out_bytes), *expected = allocate(out_bytes);
    double *exact = allocate((size_t)out_width * sizeof *exact);
    float sinks[MOST_HEADS]; /* scores reach 20: some sinks are above all of them */
    fill_random(sinks, s->n_heads, -10.0f, 25.0f);
    lb_attention_args args = {q,
                              got,
                              blocks,
                              positions,
                              c.kv,
                              q_stride,
                              s->n_heads,
                              s->n_kv_heads,
                              s->head_dim,
                              s->type,
                              value_dim(s),
                              s->window,
                              s->sinks ? sinks : NULL,
                              NULL,
                              0};

    for (int32_t p = 0; p < s->n_positions; p++) {
        lb_table.kv_store(k + (ptrdiff_t)p * width, v + (ptrdiff_t)p * v_width, c.blocks[p / LB_KV_SPAN], &args, p);
        reference_store(k + (ptrdiff_t)p * width, v + (ptrdiff_t)p * v_width, &expected_cache, s, p);
    }
    check_cache(&c, &expected_cache, s);
    if (s->units) args.kv.key_stride = args.kv.value_stride = 0, args.n_kv_heads = s->units;

    /* Scores reach 20, with a rounding error of some 1e-6 each, which weighs values of up to 3; see also check_rounded.
     */
    const double tolerance = FLT_EVAL_METHOD != 0 && s->type == LB_KV_I8 ? 1e-3 : 5e-5;
    memset(got, GUARD, out_bytes);
    lb_table.attention(&args, 0, ROWS, 0, args.n_kv_heads, 0);
    if (!guards_hold(got + n_out, AFTER * sizeof *got)) report(text, "bytes after the output were written");
    if (is_portable) {
        for (int32_t row = 0; row < ROWS; row++) {
            exact_attention(s, q + (ptrdiff_t)row * q_stride, k, v, sinks, positions[row], exact);
            check_near(text, "output", got + (ptrdiff_t)row * out_width, exact, out_width, tolerance, tolerance);
        }
    }
    args.out = expected;
    for (int32_t row = 0; row < ROWS; row++) {
        for (int32_t head = 0; head < args.n_kv_heads; head++) portable.attention(&args, row, 1, head, 1, 0);
    }
    check_floats(text, "output", got, expected, (int32_t)n_out);
    if (!s->units) check_pieces(&args, ROWS, got);
    free_cache(&c), free_cache(&expected_cache);
    free(k), free(v), free(q), free(got), free(expected), free(exact);
}

/* Keys, values and queries that are no numbers, or infinite: the same int8, and the same outputs, on every set. */
static void check_wild(const shape *s, int32_t wild) {
    static const float values[] = {NAN, INFINITY, -INFINITY, FLT_MAX};
    const int32_t width = s->n_kv_heads * s->head_dim, q_width = s->n_heads * s->head_dim;
    const size_t kv_bytes = (size_t)s->n_positions * width * sizeof(float);
    snprintf(text, sizeof text, "wild attention: type %d, %d heads of %d, %d positions, each %dth wild", (int)s->type,
             (int)s->n_heads, (int)s->head_dim, (int)s->n_positions, (int)wild);
    float *k = allocate(kv_bytes), *v = allocate(kv_bytes), *q = allocate((size_t)q_width * sizeof *q);
    float *got = allocate((size_t)q_width * sizeof *got), *expected = allocate((size_t)q_width * sizeof *expected);
    fill_random(k, s->n_positions * width, -3.0f, 3.0f), fill_random(v, s->n_positions * width, -3.0f, 3.0f);
    fill_random(q, q_width, -0.5f, 0.5f);
    for (int32_t i = wild / 2, j = 0; i < s->n_positions * width; i += wild, j++) {
        k[i] = values[j % COUNT(values)];
        if (s->type == LB_KV_I8) v[i] = values[(j + 1) % COUNT(values)];
    }
    cache c = new_cache(s), expected_cache = new_cache(s);
    const int32_t position = s->n_positions - 1;
    char *const *blocks = c.blocks;
    float sinks[MOST_HEADS];
    fill_random(sinks, s->n_heads, -10.0f, 25.0f);
    lb_attention_args args = {q,
                              got,
                              &blocks,
                              &position,
                              c.kv,
                              q_width,
                              s->n_heads,
                              s->n_kv_heads,
                              s->head_dim,
                              s->type,
                              value_dim(s),
                              s->window,
                              s->sinks ? sinks : NULL,
                              NULL,
                              0};
    for (int32_t p = 0; p < s->n_positions; p++) {
        lb_table.kv_store(k + (ptrdiff_t)p * width, v + (ptrdiff_t)p * width, c.blocks[p / LB_KV_SPAN], &args, p);
        reference_store(k + (ptrdiff_t)p * width, v + (ptrdiff_t)p * width, &expected_cache, s, p);
    }
    check_cache(&c, &expected_cache, s);
    lb_table.attention(&args, 0, 1, 0, s->n_kv_heads, 0);
    args.out = expected;
    for (int32_t head = 0; head < s->n_kv_heads; head++) portable.attention(&args, 0, 1, head, 1, 0);
    check_floats(text, "output", got, expected, q_width);
    free_cache(&c), free_cache(&expected_cache);
    free(k), free(v), free(q), free(got), free(expected);
}

void test_attention(void) {
    static const int32_t positions[] = {1, 2, 15, 16, 17, 33, 64, 65, 128, 200};
    static const int32_t long_positions[] = {LB_PIECE, LB_PIECE + 1, LB_PIECE + 5, LB_PIECE + 100, 2 * LB_PIECE + 7};
    static const int32_t dims[] = {4, 16, 21, 48, 64, 80, 128};
    static const int32_t windows[] = {1, 3, 16, 63, 64, 65, 100};
    static const int32_t heads[][2] = {{1, 1}, {4, 2}, {6, 3}, {5, 1}};
    int n = 0;
    for (int32_t type = LB_KV_F32; type <= LB_KV_I8; type++) {
        for (int i = 0; i < COUNT(positions); i++) {
            for (int j = 0; j < COUNT(dims); j++, n++) {
                const int32_t *h = heads[n % COUNT(heads)];
                check_attention(&(shape){type, h[0], h[1], dims[j], positions[i], 0, n % 2, 0, 0});
                check_attention(
                    &(shape){type, h[0], h[1], dims[j], positions[i], windows[n % COUNT(windows)], n / 2 % 2, 0, 0});
            }
        }
        check_attention(&(shape){type, 2, 1, LB_MAX_HEAD_DIM, 70, 0, 1, 0, 0});
        check_attention(&(shape){type, 4, 2, 48, 70, 0, 0, 21, 0}); /* values of another size than keys */
        check_attention(&(shape){type, 3, 1, 24, 200, 20, 1, 80, 0});
        check_attention(&(shape){type, 8, 1, LB_MAX_HEAD_DIM + 64, 70, 0, 0, LB_MAX_HEAD_DIM, 2});
        check_attention(&(shape){type, 6, 1, 40, 193, 0, 0, 32, 6});
        check_attention(&(shape){type, 6, 1, 40, 193, 0, 0, 32, 2});
        check_attention(&(shape){type, 3, 1, 21, 17, 0, 0, 5, 1});
        for (int i = 0; i < COUNT(positions); i++) check_attention(&(shape){type, 4, 1, 80, positions[i], 0, 0, 64, 2});
        for (int32_t n_positions = 193; n_positions <= 600; n_positions += n_positions == 193 ? 64 : 343) {
            check_attention(&(shape){type, 4, 2, 21, n_positions, n_positions / 3, n_positions % 2, 0, 0});
            check_attention(&(shape){type, 3, 1, 64, n_positions, 0, n_positions % 2, 0, 0});
        }
        for (int i = 0; i < COUNT(long_positions); i++) {
            check_attention(&(shape){type, 5, 1, 21, long_positions[i], 0, i % 2, 0, 0});
            check_attention(&(shape){type, 6, 3, 16, long_positions[i], i % 2 ? 70 : 1100, 1, 0, 0});
        }
        for (int32_t wild = 1; wild < 2000; wild *= 3) {
            check_wild(&(shape){type, 1, 1, 21, 17, 0, 0, 0, 0}, wild);
            check_wild(&(shape){type, 4, 2, 32, 130, 70, 1, 0, 0}, wild);
            check_wild(&(shape){type, 4, 1, 32, 130, 0, 0, 32, 1}, wild);
        }
    }
}
