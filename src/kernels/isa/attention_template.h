/*
 * Softmax attention of a query over the positions 0..p of its sequence, a part of mixer_template.h. It is online: 64
 * positions at a time, with the running maximum, the sum of the weights and the weighted sum of the values rescaled
 * when the maximum grows. Each piece of LB_PIECE positions begins anew, and pieces are added in their order. Keys lie
 * with sixteen positions side by side, so the scores need no horizontal sum; channels are added in two chains, and
 * positions in one. All is read in the order in which it lies in a block: a processor brings one stream in time, and
 * not two.
 */
enum { SPAN = LB_KV_SPAN };

/* Queries that share one reading of the keys and values, heads or neighbouring rows: as many as the registers hold. And
 * whether so few queries may each convert half floats anew, for it costs nearly nothing. */
#if defined(__AVX512F__)
#define LB_HEADS 4
#define LB_CHEAP_HALVES 0
#elif defined(__AVX2__) || defined(__ARM_NEON)
#define LB_HEADS 2
#define LB_CHEAP_HALVES 1
#else
#define LB_HEADS 2
#define LB_CHEAP_HALVES 0
#endif

/* Scores of sixteen positions, from element `at` of the keys on, for `heads` queries of `dim` floats, `step` apart. */
LB_INLINED void score_block(const void *keys, ptrdiff_t at, const float *q, ptrdiff_t step, int32_t dim,
                            float (*scores)[SPAN], const int heads, const int32_t type) {
    f32x16 even[LB_HEADS], odd[LB_HEADS];
    for (int h = 0; h < heads; h++) even[h] = odd[h] = v_set1(0.0f);
    int32_t d = 0;
    for (; d + 1 < dim; d += 2, at += 32) {
        const f32x16 k0 = load_kv(keys, at, type), k1 = load_kv(keys, at + 16, type);
        for (int h = 0; h < heads; h++) {
            even[h] = v_add(even[h], v_mul(k0, v_set1(q[h * step + d])));
            odd[h] = v_add(odd[h], v_mul(k1, v_set1(q[h * step + d + 1])));
        }
    }
    if (d < dim) {
        const f32x16 k = load_kv(keys, at, type);
        for (int h = 0; h < heads; h++) even[h] = v_add(even[h], v_mul(k, v_set1(q[h * step + d])));
    }
    for (int h = 0; h < heads; h++) v_store(scores[h], v_add(even[h], odd[h]));
}

/* total[head][c] += sum over the positions begin to end of weight * value, for `count` chunks of sixteen channels. */
LB_INLINED void add_values(const void *values, ptrdiff_t at, int32_t chunks, float (*weights)[SPAN], int32_t begin,
                           int32_t end, f32x16 *total, const int heads, const int count, const int32_t type) {
    f32x16 t[LB_HEADS * 4];
    for (int h = 0; h < heads; h++) {
        for (int c = 0; c < count; c++) t[h * count + c] = total[h * chunks + c];
    }
    at += (ptrdiff_t)begin * chunks * 16;
    for (int32_t i = begin; i < end; i++, at += (ptrdiff_t)chunks * 16) {
        f32x16 v[4];
        for (int c = 0; c < count; c++) v[c] = load_kv(values, at + c * 16, type);
        for (int h = 0; h < heads; h++) {
            const f32x16 w = v_set1(weights[h][i]);
            for (int c = 0; c < count; c++) t[h * count + c] = v_add(t[h * count + c], v_mul(v[c], w));
        }
    }
    for (int h = 0; h < heads; h++) {
        for (int c = 0; c < count; c++) total[h * chunks + c] = t[h * count + c];
    }
}

/* From the scores of one span to weights: updates the running maximum and sum, and rescales `total` if need be. */
static void soften(float *weights, int32_t n, int32_t chunks, f32x16 *total, float *highest, float *weight_sum) {
    const int32_t blocks = (n + 15) / 16;
    for (int32_t i = n; i < 16 * blocks; i++) weights[i] = -INFINITY; /* lanes past the last position */
    f32x16 most = v_set1(-INFINITY), sum = v_set1(0.0f);
    for (int32_t b = 0; b < blocks; b++)
        most = v_max(v_load(weights + 16 * b), most); /* passes over what is no number */
    const float top = v_most(most);
    if (top > *highest) {
        float factor[16];
        const f32x16 shrink = v_exp(v_set1(*highest - top)); /* exp(-inf) is 0: nothing was added yet */
        v_store(factor, shrink);
        *weight_sum *= factor[0];
        for (int32_t c = 0; c < chunks; c++) total[c] = v_mul(total[c], shrink);
        *highest = top;
    }
    for (int32_t b = 0; b < blocks; b++) {
        const f32x16 w = v_exp(v_sub(v_load(weights + 16 * b), v_set1(*highest)));
        v_store(weights + 16 * b, w);
        sum = v_add(sum, w);
    }
    *weight_sum += v_sum(sum);
}

LB_INLINED void scale_blocks(float *values, const float *scales, int32_t blocks) {
    for (int32_t b = 0; b < blocks; b++)
        v_store(values + 16 * b, v_mul(v_load(values + 16 * b), v_load(scales + 16 * b)));
}

static inline const float *scales_of(const char *scales, int32_t kv_head) {
    return (const float *)(const void *)scales + kv_head * LB_KV_SPAN;
}

/* The same for all chunks. */
LB_INLINED void add_all_values(const void *values, ptrdiff_t at, int32_t chunks, float (*weights)[SPAN], int32_t begin,
                               int32_t end, f32x16 *total, const int heads, const int32_t type) {
    int32_t c = 0;
    if (heads == 1 || LB_HEADS == 4) { /* as many sums as there are registers for */
        for (; c + 4 <= chunks; c += 4)
            add_values(values, at + c * 16, chunks, weights, begin, end, total + c, heads, 4, type);
    }
    for (; c + 2 <= chunks; c += 2)
        add_values(values, at + c * 16, chunks, weights, begin, end, total + c, heads, 2, type);
    if (c < chunks) add_values(values, at + c * 16, chunks, weights, begin, end, total + c, heads, 1, type);
}

/*
 * Up to LB_HEADS queries that share one reading of the keys and values, q_step apart: heads of one row (more = 0),
 * which all see as many positions, or one head of neighbouring rows (more = 1), which see one more each, end in the
 * same span and begin at 0.
 */
typedef struct {
    const float *q;
    float *out;
    ptrdiff_t q_step, out_step;
    int32_t kv_head, head, heads, more;
    int32_t first, count; /* positions that the first of them sees: from `first` to `count` */
    int32_t at;           /* number of the first of them */
} lb_group;

/* Of each query the weighted sums of the values, the highest score and the sum of the weights. They fit the first cache
 * beside a part of a block. */
enum { MOST_QUERIES = 64, MOST_SUMS = 256 };
typedef struct {
    f32x16 total[MOST_SUMS];
    float highest[MOST_QUERIES], weight_sum[MOST_QUERIES];
} lb_sums;

/* Queries of one sequence, and their sums, of a piece and of all pieces before it. */
enum { MOST_UNPACKED = 128 }; /* channels of a head that is converted: both arrays fit the stack of any thread */
typedef struct {
    const lb_attention_args *a;
    char *const *blocks;
    int32_t n_groups, n_queries;
    lb_group groups[MOST_QUERIES];
    lb_sums piece, whole;
    float keys[SPAN * MOST_UNPACKED], values[SPAN * MOST_UNPACKED]; /* of one kv head in one block */
} lb_run;

/* What a block has of one kv head. */
typedef struct {
    const void *keys, *values;
    const float *key_scales, *value_scales;
} lb_head;

/* Adds the sums of a piece to those of the pieces before it. */
static void add_piece(f32x16 *total, float *highest, float *weight_sum, const f32x16 *more, float highest_more,
                      float weight_sum_more, int32_t chunks) {
    const float top = highest_more > *highest ? highest_more : *highest;
    const f32x16 before = v_exp(v_set1(*highest - top)), now = v_exp(v_set1(highest_more - top));
    float sums[16];
    for (int32_t c = 0; c < chunks; c++) total[c] = v_add(v_mul(total[c], before), v_mul(more[c], now));
    v_store(sums, v_add(v_mul(v_set1(*weight_sum), before), v_mul(v_set1(weight_sum_more), now)));
    *highest = top, *weight_sum = sums[0];
}

/* The positions of one block. A query's additions are the same, and in the same order, as if it came alone. */
LB_INLINED void attend_span(lb_run *run, const lb_group *g, lb_head head, int32_t start, const int heads,
                            const int more, const int32_t type) {
    const lb_attention_args *a = run->a;
    const int32_t dim = a->head_dim, chunks = (a->value_dim + 15) / 16;
    const int32_t begin = g->first > start ? g->first - start : 0;
    lb_sums *s = &run->piece;
    f32x16 *total = s->total + g->at * chunks;
    float weights[LB_HEADS][SPAN];
    int32_t n[LB_HEADS];
    for (int h = 0; h < heads; h++) n[h] = g->count + more * h - start < SPAN ? g->count + more * h - start : SPAN;
    for (int32_t i = 0; i < n[heads - 1]; i += 16) {
        score_block(head.keys, (ptrdiff_t)i * dim, g->q, g->q_step, dim, (float (*)[SPAN])(weights[0] + i), heads,
                    type);
    }
    for (int h = 0; h < heads; h++) {
        const int32_t own = (n[h] + 15) / 16;
        if (a->kv_type == LB_KV_I8) scale_blocks(weights[h], head.key_scales, own);
        for (int32_t i = 0; i < begin; i++) weights[h][i] = -INFINITY; /* lanes before the window */
        soften(weights[h], n[h], chunks, total + h * chunks, &s->highest[g->at + h], &s->weight_sum[g->at + h]);
        if (a->kv_type == LB_KV_I8) scale_blocks(weights[h], head.value_scales, own);
    }
    add_all_values(head.values, 0, chunks, weights, begin, n[0], total, heads, type);
    if (more && n[heads - 1] > n[0]) { /* the last positions, which the first row does not have */
        for (int h = 1; h < heads; h++) {
            add_all_values(head.values, 0, chunks, weights + h, n[0], n[h], total + h * chunks, 1, type);
        }
    }
}

LB_INLINED void attend_group(lb_run *run, const lb_group *g, lb_head head, int32_t start, const int32_t type) {
    if (g->more) {
        attend_span(run, g, head, start, LB_HEADS, 1, type);
    } else if (g->heads == LB_HEADS) {
        attend_span(run, g, head, start, LB_HEADS, 0, type);
    } else if (LB_HEADS == 4 && g->heads == 3) {
        attend_span(run, g, head, start, 3, 0, type);
    } else if (g->heads == 2) {
        attend_span(run, g, head, start, 2, 0, type);
    } else {
        attend_span(run, g, head, start, 1, 0, type);
    }
}

static inline int sees(const lb_group *g, int32_t start) { return g->count > start && g->first < start + SPAN; }

LB_INLINED void unpack_kv(const void *from, ptrdiff_t n, float *to, const int32_t type) {
    for (ptrdiff_t i = 0; i < n; i += 16) v_store(to + i, load_kv(from, i, type));
}

/*
 * Groups that follow each other and share a kv head, in one block; returns the first that does not. Three or more have
 * its keys and values converted once for all.
 */
LB_INLINED int32_t attend_head(lb_run *run, int32_t first, const char *block, int32_t start, const int32_t type) {
    const lb_attention_args *a = run->a;
    const lb_kv *kv = &a->kv;
    const int32_t kv_head = run->groups[first].kv_head, chunks = (a->value_dim + 15) / 16;
    const ptrdiff_t size = type == LB_KV_F32 ? 4 : type == LB_KV_F16 ? 2 : 1;
    lb_head head = {block + kv->keys + kv_head * kv->key_stride * size,
                    block + kv->values + kv_head * kv->value_stride * size, scales_of(block + kv->key_scales, kv_head),
                    scales_of(block + kv->value_scales, kv_head)};
    int32_t end = first, wanted = 0, most = 0;
    for (; end < run->n_groups && run->groups[end].kv_head == kv_head; end++) {
        const lb_group *g = run->groups + end;
        wanted += sees(g, start);
        most = g->count + g->heads - start > most ? g->count + g->heads - start : most;
    }
    most = most < SPAN ? (most + 15) / 16 * 16 : SPAN;
    const int unpack = type != LB_KV_F32 && !(LB_CHEAP_HALVES && type == LB_KV_F16) && wanted > 2 &&
                       a->head_dim <= MOST_UNPACKED && chunks * 16 <= MOST_UNPACKED;
    if (unpack) {
        unpack_kv(head.keys, (ptrdiff_t)most * a->head_dim, run->keys, type);
        unpack_kv(head.values, (ptrdiff_t)most * chunks * 16, run->values, type);
        head.keys = run->keys, head.values = run->values;
    }
    for (int32_t i = first; i < end; i++) {
        const lb_group *g = run->groups + i;
        if (!sees(g, start)) continue;
        if (unpack) {
            attend_group(run, g, head, start, LB_KV_F32);
        } else {
            attend_group(run, g, head, start, type);
        }
    }
    return end;
}

/* The sums of query i before its first position. A sink is where the running maximum begins, so that its own weight is
 * 1 then. */
static void begin_sums(lb_sums *s, int32_t i, int32_t chunks, const float *sink) {
    s->highest[i] = sink ? *sink : -INFINITY;
    s->weight_sum[i] = sink ? 1.0f : 0.0f;
    for (int32_t c = 0; c < chunks; c++) s->total[i * chunks + c] = v_set1(0.0f);
}

/* The sums of a piece go to those of the whole, or to args->parts; those of the next piece begin. */
static void end_piece(lb_run *run, int32_t piece) {
    const lb_attention_args *a = run->a;
    const int32_t chunks = (a->value_dim + 15) / 16, size = lb_part_floats(a->value_dim);
    for (int32_t i = 0; i < run->n_groups; i++) {
        const lb_group *g = run->groups + i;
        if (g->count <= piece * LB_PIECE || g->first >= (piece + 1) * LB_PIECE) continue;
        for (int32_t q = g->at; q < g->at + g->heads; q++) {
            const f32x16 *total = run->piece.total + q * chunks;
            if (a->parts) {
                float *part = a->parts + ((ptrdiff_t)(g->head + q - g->at) * a->n_parts + piece) * size;
                for (int32_t c = 0; c < chunks; c++) v_store(part + 16 * c, total[c]);
                part[16 * chunks] = run->piece.highest[q], part[16 * chunks + 1] = run->piece.weight_sum[q];
            } else if (g->first >= piece * LB_PIECE) {
                memcpy(run->whole.total + q * chunks, total, (size_t)chunks * sizeof *total);
                run->whole.highest[q] = run->piece.highest[q], run->whole.weight_sum[q] = run->piece.weight_sum[q];
            } else {
                add_piece(run->whole.total + q * chunks, &run->whole.highest[q], &run->whole.weight_sum[q], total,
                          run->piece.highest[q], run->piece.weight_sum[q], chunks);
            }
            begin_sums(&run->piece, q, chunks, NULL);
        }
    }
}

static void finish(const f32x16 *total, float weight_sum, int32_t n, float *out) {
    for (int32_t c = 0; 16 * c < n; c++) store_upto16(out + 16 * c, v_div(total[c], v_set1(weight_sum)), n - 16 * c);
}

/* Takes all queries through the blocks of the pieces from `piece` to `end`, so that what lies together in a block is
 * read in one go, and once. */
static void attend(lb_run *run, int32_t piece, int32_t end) {
    const lb_attention_args *a = run->a;
    const int32_t chunks = (a->value_dim + 15) / 16, type = a->kv_type;
    int32_t first = INT32_MAX, last = 0;
    for (int32_t i = 0; i < run->n_groups; i++) {
        const lb_group *g = run->groups + i;
        first = g->first < first ? g->first : first;
        last = g->count > last ? g->count : last;
    }
    piece = first / LB_PIECE > piece ? first / LB_PIECE : piece;
    for (; piece < end && piece * LB_PIECE < last; piece++) {
        for (int32_t start = piece * LB_PIECE; start < (piece + 1) * LB_PIECE && start < last; start += SPAN) {
            const char *block = run->blocks[start / SPAN];
            for (int32_t i = 0; i < run->n_groups;) {
                if (type == LB_KV_F16) {
                    i = attend_head(run, i, block, start, LB_KV_F16);
                } else if (type == LB_KV_I8) {
                    i = attend_head(run, i, block, start, LB_KV_I8);
                } else {
                    i = attend_head(run, i, block, start, LB_KV_F32);
                }
            }
        }
        end_piece(run, piece);
    }
    for (int32_t i = 0; i < run->n_groups && !a->parts; i++) {
        const lb_group *g = run->groups + i;
        for (int32_t h = 0; h < g->heads; h++)
            finish(run->whole.total + (g->at + h) * chunks, run->whole.weight_sum[g->at + h], a->value_dim,
                   g->out + h * g->out_step);
    }
    run->n_groups = run->n_queries = 0;
}

void LB_NAME(lb_attention_sum)(const lb_attention_args *a, int32_t head) {
    const int32_t chunks = (a->value_dim + 15) / 16, size = lb_part_floats(a->value_dim);
    const int32_t count = a->positions[0] + 1;
    const int32_t first = a->window && count > a->window ? (count - a->window) / LB_PIECE : 0;
    const float *part = a->parts + ((ptrdiff_t)head * a->n_parts + first) * size;
    f32x16 total[LB_MAX_HEAD_DIM / 16], more[LB_MAX_HEAD_DIM / 16];
    float highest = part[16 * chunks], weight_sum = part[16 * chunks + 1];
    for (int32_t c = 0; c < chunks; c++) total[c] = v_load(part + 16 * c);
    for (int32_t piece = first + 1; piece * LB_PIECE < count; piece++) {
        part += size;
        for (int32_t c = 0; c < chunks; c++) more[c] = v_load(part + 16 * c);
        add_piece(total, &highest, &weight_sum, more, part[16 * chunks], part[16 * chunks + 1], chunks);
    }
    finish(total, weight_sum, a->value_dim, a->out + (ptrdiff_t)head * a->value_dim);
}

/* One more group of queries. */
static void add_group(lb_run *run, int32_t row, int32_t kv_head, int32_t head, int32_t heads, int32_t more,
                      int32_t piece, int32_t end) {
    const lb_attention_args *a = run->a;
    const int32_t chunks = (a->value_dim + 15) / 16, count = a->positions[row] + 1;
    if (run->n_queries + heads > MOST_QUERIES || (run->n_queries + heads) * chunks > MOST_SUMS) attend(run, piece, end);
    lb_group *g = run->groups + run->n_groups++;
    g->q = a->q + row * a->q_stride + (ptrdiff_t)head * a->head_dim;
    g->out = a->out + ((ptrdiff_t)row * a->n_heads + head) * a->value_dim;
    g->q_step = more ? a->q_stride : a->head_dim;
    g->out_step = more ? (ptrdiff_t)a->n_heads * a->value_dim : a->value_dim;
    g->kv_head = kv_head, g->head = head, g->heads = heads, g->more = more;
    g->first = a->window && count > a->window ? count - a->window : 0, g->count = count;
    g->at = run->n_queries;
    for (int32_t h = 0; h < heads; h++, run->n_queries++) {
        const int from_first = a->sinks && piece <= g->first / LB_PIECE;
        begin_sums(&run->piece, run->n_queries, chunks, from_first ? a->sinks + (more ? head : head + h) : NULL);
    }
}

#include "latent_template.h"

/* Whether LB_HEADS rows follow each other in one sequence, begin at 0 and end in the same span. */
static inline int are_neighbours(const lb_attention_args *a, int32_t row) {
    for (int i = 1; i < LB_HEADS; i++) {
        if (a->blocks[row + i] != a->blocks[row] || a->positions[row + i] != a->positions[row] + i) return 0;
    }
    if (a->window && a->positions[row] + LB_HEADS > a->window) return 0;
    return a->positions[row] / SPAN == (a->positions[row] + LB_HEADS - 1) / SPAN;
}

/* Rows of one sequence, and the heads that share some kv heads. */
static void attend_rows(lb_run *run, int32_t row, int32_t end, int32_t kv_head, int32_t kv_heads, int32_t piece,
                        int32_t last) {
    const lb_attention_args *a = run->a;
    const int32_t shared = a->n_heads / a->n_kv_heads, whole = shared / LB_HEADS * LB_HEADS;
    run->blocks = a->blocks[row];
    for (int32_t k = kv_head; k < kv_head + kv_heads; k++) {
        for (int32_t r = row; r < end;) {
            const int together = whole < shared && end - r >= LB_HEADS && are_neighbours(a, r);
            const int32_t after = r + (together ? LB_HEADS : 1);
            int32_t head = k * shared + whole;
            if (together) {
                for (; head < (k + 1) * shared; head++) add_group(run, r, k, head, LB_HEADS, 1, piece, last);
            }
            for (; r < after; r++) {
                int32_t one = k * shared;
                for (; one < k * shared + whole; one += LB_HEADS) add_group(run, r, k, one, LB_HEADS, 0, piece, last);
            }
            r = after;
            const int32_t left = (k + 1) * shared - head;
            if (left) add_group(run, r - 1, k, head, left, 0, piece, last);
        }
    }
    attend(run, piece, last);
}

void LB_NAME(lb_attention)(const lb_attention_args *a, int32_t row, int32_t rows, int32_t kv_head, int32_t kv_heads,
                           int32_t piece) {
    for (int32_t end = row + rows, next; row < end; row = next) {
        for (next = row + 1; next < end && a->blocks[next] == a->blocks[row];) next++;
        if (a->kv.values == a->kv.keys) {
            attend_latent_rows(a, row, next, kv_head, kv_heads);
        } else {
            lb_run run; /* of this branch alone: latents take as much of the stack */
            run.a = a, run.n_groups = run.n_queries = 0;
            attend_rows(&run, row, next, kv_head, kv_heads, a->parts ? piece : 0, a->parts ? piece + 1 : INT32_MAX);
        }
    }
}
