/*
 * Matrix products over packed weights: the loops that all instruction sets share.
 *
 * The including file provides, for its registers:
 *     LB_ISA                its name, such as avx2
 *     simd.h                sixteen lanes of float and of int32
 *     LB_TILE               most tokens that one pass over the weights of a row group serves (a power of two)
 *     LB_LONGEST_TILE       that of an LB_TILED_INT_MATMUL, if one serves more tokens than LB_TILE
 *     LB_FLOAT_TILE         the same for float weights, if it has products of these
 *     LB_U8_OFFSET          128 if u8_tile reads unsigned codes, 0 if it subtracts the offset itself
 *     u2_tile, u4_tile, u8_tile (which also serve the formats with minima)
 *                           add the products of one scale group, for sixteen rows and `tokens` tokens, to acc:
 *                               (const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, int tokens,
 *                                i32x16 *acc)
 *                           `tokens` is a constant after inlining, so that acc can live in registers.
 *
 * The weights are one sequential stream. For one token no instruction prefetches those of 2 and 8 bits: the CPU's own
 * prefetcher reads such a stream at 95 % of the speed of memory, and with prefetches of 1 to 16 KB ahead it was always
 * slower. Codes of 3 to 6 bits take longer to be taken apart, as does anything with more tokens; there a line that is
 * prefetched LB_AHEAD bytes ahead saves the wait for the second cache.
 *
 * A token's result does not depend on which tile it was in: integer sums are exact, and the groups are scaled and added
 * up in their order, in float32 and never fused. What a group adds is
 *     sum * (scale * x_scale)                                  sum of (code - offset) * q
 *     sum * (scale * x_scale) + minimum * (x_scale * x_sum)    with minima; x_sum is the sum of q
 */
#ifndef LB_MATMUL_TEMPLATE_H
#define LB_MATMUL_TEMPLATE_H

#include <string.h>

#include "inline.h"
#include "names.h"

/* A run of blocks: `full` blocks of `words` words, then one of `tail` words if that is not 0. */
typedef struct {
    int32_t full, words, tail;
} lb_run;

#define LB_AHEAD 2048

#ifndef LB_LONGEST_TILE
#define LB_LONGEST_TILE LB_TILE
#endif

typedef void lb_tile_fn(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, int tokens, i32x16 *acc);

static const int32_t lb_bits[] = {2, 4, 8, 4, 8, 2}; /* of a field; T5 counts as the U2 that it becomes */

LB_INLINE void lb_store_rows(float *y, f32x16 value, int32_t rows) {
    if (rows >= LB_ROWS) {
        v_store(y, value);
    } else {
        float all[LB_ROWS];
        v_store(all, value);
        memcpy(y, all, (size_t)rows * sizeof *y);
    }
}

LB_INLINE void lb_store_sums(int32_t *y, i32x16 value, int32_t rows) {
    int32_t all[LB_ROWS];
    vi_store(all, value);
    memcpy(y, all, (size_t)(rows < LB_ROWS ? rows : LB_ROWS) * sizeof *y);
}

/* Scales of a row group and a scale group, and their minima where the format has them. */
typedef struct {
    f32x16 scale, minimum;
} lb_scales;

LB_INLINE f32x16 lb_load_16(const lb_matrix *m, size_t at) {
    return m->scales_f16 ? v_load_f16((const uint16_t *)m->scales + at) : v_load((const float *)m->scales + at);
}

LB_INLINE lb_scales lb_load_scales(const lb_matrix *m, int32_t row_group, int32_t group, const int32_t format) {
    lb_scales s = {v_set1(0.0f), v_set1(0.0f)};
    if ((format == LB_U4M || lb_has_planes(format)) && m->scales_super) {
        const float *super = lb_super(m, row_group, group);
        const int8_t *multiples = lb_multiples(m, super, group);
        s.scale = v_mul(v_load(super), v_load_i8(multiples));
        if (lb_has_minima(format)) s.minimum = v_mul(v_load(super + LB_ROWS), v_load_i8(multiples + LB_ROWS));
        return s;
    }
    const size_t at = ((size_t)row_group * m->n_groups + group) * LB_ROWS * (lb_has_minima(format) ? 2 : 1);
    s.scale = lb_load_16(m, at);
    if (lb_has_minima(format)) s.minimum = lb_load_16(m, at + LB_ROWS);
    return s;
}

/* x_scale * x_sum of the next groups of some tokens: made in vectors, read one by one. */
enum { LB_SUMS_AHEAD = 16 };
LB_INLINE void lb_make_x_sums(const lb_activations *a, int32_t token, const int tokens, int32_t group,
                              float (*x_sums)[LB_SUMS_AHEAD]) {
    const int32_t n = a->n_groups - group < LB_SUMS_AHEAD ? a->n_groups - group : LB_SUMS_AHEAD;
    for (int j = 0; j < tokens; j++) {
        const ptrdiff_t at = (ptrdiff_t)(token + j) * a->n_groups + group;
        for (int32_t i = 0; i < n; i++) x_sums[j][i] = a->scale[at + i] * (float)a->sum[at + i];
    }
}

/* Adds a group to y; x_sum is read where there are minima. */
LB_INLINE f32x16 lb_add_group(f32x16 y, i32x16 sum, lb_scales s, float x_scale, const float *x_sum,
                              const int32_t format) {
    f32x16 part = v_mul(v_from_i32(sum), v_mul(s.scale, v_set1(x_scale)));
    if (lb_has_minima(format)) part = v_add(part, v_mul(s.minimum, v_set1(*x_sum)));
    return v_add(y, part);
}

/* Whether all scale groups are whole blocks of 32 columns. */
LB_INLINE int lb_is_blocks_of_32(const lb_matmul_args *args) {
    const lb_matrix *m = args->w;
    return m->group_cols == 32 && m->block_cols == 32 && m->n_cols % 32 == 0 && !args->sums;
}

/* The run of a scale group that is not the last one. */
LB_INLINE lb_run lb_group_run(const lb_matrix *m, int32_t block_words, const int32_t format) {
    if (format != LB_T5) return (lb_run){m->group_cols / m->block_cols, block_words, 0};
    const int32_t words = (m->group_cols + 19) / 20;
    return (lb_run){words / block_words, block_words, words % block_words};
}

LB_INLINE void lb_int_tile(const lb_matmul_args *args, int32_t row_group, int32_t token, const int tokens,
                           const int32_t format, const int32_t offset, lb_tile_fn *tile) {
    const lb_matrix *m = args->w;
    const lb_activations *a = args->x;
    const int32_t fields = 8 / lb_bits[format], block_words = m->block_cols / (4 * fields);
    const lb_run whole = lb_group_run(m, block_words, format);
    const int32_t rows = m->n_rows - row_group * LB_ROWS;
    const uint8_t *w = m->codes + (size_t)row_group * m->words * 64;
    const int8_t *x = a->q + (ptrdiff_t)token * a->stride;
    int32_t words_left = m->words;
    const int minima = lb_has_minima(format);
    float x_sums[LB_LONGEST_TILE][LB_SUMS_AHEAD];
    f32x16 y[LB_LONGEST_TILE];
    for (int j = 0; j < tokens; j++) y[j] = v_set1(0.0f);

    for (int32_t g = 0; g < m->n_groups; g++) {
        lb_run run = whole;
        if (g == m->n_groups - 1) { /* the last group takes what is left, with a shorter block at the end */
            run.full = words_left / block_words;
            run.tail = words_left % block_words;
        }
        const int32_t words = run.full * block_words + run.tail;
        i32x16 acc[LB_LONGEST_TILE];
        for (int j = 0; j < tokens; j++) {
            acc[j] = vi_set1(-offset * a->sum[(ptrdiff_t)(token + j) * a->n_groups + g]);
        }
        tile(w, run, x, a->stride, tokens, acc);
        w += (size_t)words * 64;
        x += format == LB_T5 ? m->group_cols : words * 4 * fields;
        words_left -= words;

        if (args->sums) {
            for (int j = 0; j < tokens; j++) {
                lb_store_sums(args->sums + (token + j) * args->y_stride + row_group * LB_ROWS, acc[j], rows);
            }
            return;
        }
        const lb_scales scales = lb_load_scales(m, row_group, g, format);
        if (minima && g % LB_SUMS_AHEAD == 0) lb_make_x_sums(a, token, tokens, g, x_sums);
        for (int j = 0; j < tokens; j++) {
            const float x_scale = a->scale[(ptrdiff_t)(token + j) * a->n_groups + g];
            y[j] = lb_add_group(y[j], acc[j], scales, x_scale, &x_sums[j][g % LB_SUMS_AHEAD], format);
        }
    }
    for (int j = 0; j < tokens; j++) {
        lb_store_rows(args->y + (token + j) * args->y_stride + row_group * LB_ROWS, y[j], rows);
    }
}

/*
 * Words of T5 become as many words of U2, and a quarter more with the fifth codes. Plain C: compilers make vectors of
 * it. A factor of 1, 4, 16 or 64 puts a fifth code into its field.
 */
LB_INLINE void lb_t5_unpack(const uint8_t *w, int32_t words, uint8_t *codes, uint8_t *fifths) {
    const int32_t n = (words + 3) / 4;
    memset(fifths, 0, 64 * (size_t)n);
    for (int32_t t = 0; t < words; t++, w += 64, codes += 64) {
        uint8_t *fifth = fifths + 64 * (t % n);
        const uint8_t factor = (uint8_t)(1 << 2 * (t / n));
        for (int i = 0; i < 64; i++) {
            uint8_t q = w[i], code = 0;
            fifth[i] = (uint8_t)(fifth[i] + (q >= 84 ? factor : 0) + (q >= 168 ? factor : 0));
            q = (uint8_t)(q - (q >= 168 ? 168 : q >= 84 ? 84 : 0));
            code = (uint8_t)((q >= 27 ? 64 : 0) + (q >= 54 ? 64 : 0));
            q = (uint8_t)(q - (q >= 54 ? 54 : q >= 27 ? 27 : 0));
            code = (uint8_t)(code + (q >= 9 ? 16 : 0) + (q >= 18 ? 16 : 0));
            q = (uint8_t)(q - (q >= 18 ? 18 : q >= 9 ? 9 : 0));
            code = (uint8_t)(code + (q >= 3 ? 4 : 0) + (q >= 6 ? 4 : 0));
            codes[i] = (uint8_t)(code + (q - (q >= 6 ? 6 : q >= 3 ? 3 : 0)));
        }
    }
}

typedef void lb_t5_unpack_fn(const uint8_t *w, int32_t words, uint8_t *codes, uint8_t *fifths);

/* T5 by way of U2, in pieces that stay in the first cache. */
LB_INLINE void lb_t5_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens,
                          i32x16 *acc, lb_t5_unpack_fn *unpack, lb_tile_fn *u2_tile) {
    enum { PIECE = 32 };
    uint8_t codes[(PIECE + PIECE / 4) * 64];
    int32_t left = run.full * run.words + run.tail;
    const int8_t *fifth_x = x + 16 * left;
    for (; left > 0; left -= PIECE, w += PIECE * 64, x += PIECE * 16, fifth_x += PIECE * 4) {
        const int32_t words = left < PIECE ? left : PIECE;
        unpack(w, words, codes, codes + 64 * words);
        for (int fifths = 0; fifths < 2; fifths++) {
            const int32_t n = fifths ? (words + 3) / 4 : words;
            u2_tile(codes + (fifths ? 64 * words : 0), (lb_run){n / 8, 8, n % 8}, fifths ? fifth_x : x, stride, tokens,
                    acc);
        }
    }
}

#if defined(LB_FLOAT_TILE)
LB_INLINE f32x16 lb_load_column(const lb_matrix *m, size_t at, const int32_t format) {
    if (format == LB_F32) return v_load((const float *)(const void *)m->codes + at);
    if (format == LB_F16) return v_load_f16((const uint16_t *)(const void *)m->codes + at);
    return v_load_bf16((const uint16_t *)(const void *)m->codes + at);
}

/* Column sums go to the lanes in two chains, of the even and of the odd columns, which are added at the end. */
LB_INLINE void lb_float_tile(const lb_matmul_args *args, int32_t row_group, int32_t token, const int tokens,
                             const int32_t format) {
    const lb_matrix *m = args->w;
    const float *x = args->x->x + (ptrdiff_t)token * args->x->stride;
    const ptrdiff_t stride = args->x->stride;
    const size_t base = (size_t)row_group * m->n_cols * LB_ROWS;
    f32x16 even[LB_FLOAT_TILE], odd[LB_FLOAT_TILE];
    for (int j = 0; j < tokens; j++) even[j] = odd[j] = v_set1(0.0f);
    int32_t c = 0;
    for (; c + 1 < m->n_cols; c += 2) {
        const f32x16 w0 = lb_load_column(m, base + (size_t)c * LB_ROWS, format),
                     w1 = lb_load_column(m, base + (size_t)(c + 1) * LB_ROWS, format);
        for (int j = 0; j < tokens; j++) {
            even[j] = v_add(even[j], v_mul(w0, v_set1(x[j * stride + c])));
            odd[j] = v_add(odd[j], v_mul(w1, v_set1(x[j * stride + c + 1])));
        }
    }
    if (c < m->n_cols) {
        const f32x16 w = lb_load_column(m, base + (size_t)c * LB_ROWS, format);
        for (int j = 0; j < tokens; j++) even[j] = v_add(even[j], v_mul(w, v_set1(x[j * stride + c])));
    }
    for (int j = 0; j < tokens; j++) {
        lb_store_rows(args->y + (token + j) * args->y_stride + row_group * LB_ROWS, v_add(even[j], odd[j]),
                      m->n_rows - row_group * LB_ROWS);
    }
}
#endif

/*
 * Runs `call` for all row groups and tokens, in tiles of most, most/2, ... 1 tokens; `n` is the tile's constant. A tile
 * goes through LB_ROW_BLOCK row groups before the next, so that its activations are read from the second cache, and the
 * weights of a block stay there until the last tile.
 */
#define LB_ROW_BLOCK 8
#define LB_STEP(most, size, call)                                                 \
    if ((size) <= (most)) {                                                       \
        for (; tokens - token >= (size); token += (size)) {                       \
            enum { n = (size) };                                                  \
            for (int32_t row_group = block; row_group < block_end; row_group++) { \
                call;                                                             \
            }                                                                     \
        }                                                                         \
    }
#define LB_FOR_TILES(most, call)                                                           \
    for (int32_t block = begin; block < end; block += LB_ROW_BLOCK) {                      \
        const int32_t block_end = end - block < LB_ROW_BLOCK ? end : block + LB_ROW_BLOCK; \
        const int32_t tokens = args->x->n_tokens;                                          \
        int32_t token = 0;                                                                 \
        LB_STEP(most, 64, call)                                                            \
        LB_STEP(most, 32, call)                                                            \
        LB_STEP(most, 16, call)                                                            \
        LB_STEP(most, 8, call)                                                             \
        LB_STEP(most, 4, call)                                                             \
        LB_STEP(most, 2, call)                                                             \
        LB_STEP(most, 1, call)                                                             \
    }

/* The peak is that of a U8 tile whose weights and activations stay in the first cache: 64 weights, one token tile. */
#define LB_DOT_PEAK(tile)                                                       \
    int64_t LB_NAME(lb_dot_peak)(int32_t rounds) {                              \
        uint8_t w[64 * 8];                                                      \
        int8_t x[LB_TILE * 64];                                                 \
        i32x16 acc[LB_TILE];                                                    \
        const lb_run run = {1, 8, 0};                                           \
        memset(w, 129, sizeof w);                                               \
        memset(x, 1, sizeof x);                                                 \
        for (int j = 0; j < LB_TILE; j++) acc[j] = vi_set1(0);                  \
        for (int32_t i = 0; i < rounds; i++) tile(w, run, x, 64, LB_TILE, acc); \
        int32_t lanes[16];                                                      \
        int64_t done = 0;                                                       \
        for (int j = 0; j < LB_TILE; j++) {                                     \
            vi_store(lanes, acc[j]);                                            \
            done += lanes[0] ? (int64_t)rounds * 8 * 64 : 0;                    \
        }                                                                       \
        return done;                                                            \
    }

#define LB_TILED_INT_MATMUL(name, format, offset, most, tile)                            \
    void LB_NAME(name)(const lb_matmul_args *args, int32_t begin, int32_t end) {         \
        LB_FOR_TILES(most, lb_int_tile(args, row_group, token, n, format, offset, tile)) \
    }
#define LB_INT_MATMUL(name, format, offset, tile) LB_TILED_INT_MATMUL(name, format, offset, LB_TILE, tile)
/* T5, for a set whose tile of U2 is u2_tile. */
#define LB_T5_MATMUL(most, unpack)                                                                            \
    LB_INLINE void t5_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, \
                           i32x16 *acc) {                                                                     \
        lb_t5_tile(w, run, x, stride, tokens, acc, unpack, u2_tile);                                          \
    }                                                                                                         \
    LB_TILED_INT_MATMUL(lb_matmul_t5, LB_T5, 1, most, t5_tile)
#define LB_FLOAT_MATMUL(name, format)                                                 \
    void LB_NAME(name)(const lb_matmul_args *args, int32_t begin, int32_t end) {      \
        LB_FOR_TILES(LB_FLOAT_TILE, lb_float_tile(args, row_group, token, n, format)) \
    }

#endif
