/*
 * Products with codes in planes: 32 columns of a row group become bytes, in the first cache, which a tile of bytes
 * then meets. LB_PLANES_MATMUL stands after the tiles, LB_PLANES_STREAMS before those of streams_template.h.
 *
 * A tile of bytes has the arguments of u8_tile. `first` is what it wants in each byte: 128 if it subtracts this. Bytes
 * of tables meet u8_tile, and come from `look_up`, or LB_LOOK_UP, where a set has an instruction for it.
 */
#ifndef LB_PLANES_TEMPLATE_H
#define LB_PLANES_TEMPLATE_H

#include "unpack_planes.h"

#ifndef LB_LOOK_UP
#define LB_LOOK_UP lb_look_up
#endif

/* One or more tokens, or one token and up to eight streams (row groups `apart` from one another). */
LB_INLINE void lb_planes_tile(const lb_matmul_args *args, int32_t row_group, int32_t apart, int streams, int32_t token,
                              const int tokens, const int has_table, const uint8_t first, lb_tile_fn *tile) {
    enum { MOST = LB_TILE > LB_MAX_STREAMS ? LB_TILE : LB_MAX_STREAMS };
    const lb_matrix matrix = *args->w, *m = &matrix; /* copies, which no store of codes can change */
    const lb_activations activations = *args->x, *a = &activations;
    const int32_t format = m->format;
    const int32_t offset = has_table ? LB_U8_OFFSET : format == LB_UP ? 1 << (m->bits - 1) : 0;
    const int32_t part = m->group_cols < LB_PLANE_COLS ? 16 : LB_PLANE_COLS; /* columns of one group, taken at once */
    const size_t row_bytes = (size_t)m->words * 64;
    const uint8_t *w = m->codes + (size_t)row_group * row_bytes;
    const int8_t *x = a->q + (ptrdiff_t)token * a->stride;
    uint8_t codes[LB_MAX_STREAMS][LB_PLANE_COLS * LB_ROWS];
    float x_sums[LB_TILE][LB_SUMS_AHEAD];
    i32x16 acc[MOST];
    f32x16 y[MOST];
    for (int i = 0; i < streams * tokens; i++) y[i] = v_set1(0.0f);

    int32_t g = -1, left = 0; /* columns of the group */
    for (int32_t c = 0; c < m->n_cols; c += part) {
        const int32_t inside = c % LB_PLANE_COLS;
        if (!inside) {
            for (int s = 0; s < streams; s++) {
                const uint8_t *from = w + (size_t)s * apart * row_bytes;
                for (int32_t t = 0; t < m->bits && streams * tokens > 1; t++) {
                    LB_PREFETCH((const void *)((uintptr_t)from + (uintptr_t)(64 * t) +
                                               (streams > 1 ? 2 * LB_AHEAD : LB_AHEAD)));
                }
                if (has_table) {
                    LB_LOOK_UP(from, lb_tables[m->table], codes[s]);
                } else {
                    lb_unpack_planes(from, m->bits, first, codes[s]);
                }
            }
            w += 64 * (ptrdiff_t)m->bits;
        }
        if (!left) {
            g++;
            left = m->n_cols - c < m->group_cols ? m->n_cols - c : m->group_cols;
            for (int i = 0; i < streams * tokens; i++) {
                acc[i] = vi_set1(-offset * a->sum[(ptrdiff_t)(token + i % tokens) * a->n_groups + g]);
            }
        }
        for (int s = 0; s < streams; s++) {
            if (tokens == 1 && part == 16) {
                tile(codes[s] + 16 * inside, (lb_run){1, 4, 0}, x + c, a->stride, tokens, acc + s);
            } else {
                tile(codes[s] + 16 * inside, (lb_run){1, part / 4, 0}, x + c, a->stride, tokens, acc + s);
            }
        }
        left = left < part ? 0 : left - part;
        if (left) continue;

        if (args->sums) {
            for (int i = 0; i < streams * tokens; i++) {
                const int32_t first_row = (row_group + i / tokens * apart) * LB_ROWS;
                lb_store_sums(args->sums + (token + i % tokens) * args->y_stride + first_row, acc[i],
                              m->n_rows - first_row);
            }
            return;
        }
        if (lb_has_minima(format) && g % LB_SUMS_AHEAD == 0) lb_make_x_sums(a, token, tokens, g, x_sums);
        for (int s = 0; s < streams; s++) {
            const lb_scales scales = lb_load_scales(m, row_group + s * apart, g, format);
            for (int j = 0; j < tokens; j++) {
                const float x_scale = a->scale[(ptrdiff_t)(token + j) * a->n_groups + g];
                y[s + j] = lb_add_group(y[s + j], acc[s + j], scales, x_scale, &x_sums[j][g % LB_SUMS_AHEAD], format);
            }
        }
    }
    for (int i = 0; i < streams * tokens; i++) {
        const int32_t first_row = (row_group + i / tokens * apart) * LB_ROWS;
        lb_store_rows(args->y + (token + i % tokens) * args->y_stride + first_row, y[i], m->n_rows - first_row);
    }
}

/* For a set whose tile of bytes is `tile`. */
#define LB_PLANES_TILES(first, tile)                                                           \
    static void planes_matmul(const lb_matmul_args *args, int32_t begin, int32_t end) {        \
        LB_FOR_TILES(LB_TILE, lb_planes_tile(args, row_group, 0, 1, token, n, 0, first, tile)) \
    }                                                                                          \
    static void table_matmul(const lb_matmul_args *args, int32_t begin, int32_t end) {         \
        LB_FOR_TILES(LB_TILE, lb_planes_tile(args, row_group, 0, 1, token, n, 1, 0, u8_tile))  \
    }
#define LB_PLANES_ENTRY(name, matmul) \
    void LB_NAME(name)(const lb_matmul_args *args, int32_t begin, int32_t end) { matmul(args, begin, end); }
#define LB_PLANES_MATMUL(first, tile)             \
    LB_PLANES_TILES(first, tile)                  \
    LB_PLANES_ENTRY(lb_matmul_up, planes_matmul)  \
    LB_PLANES_ENTRY(lb_matmul_upm, planes_matmul) \
    LB_PLANES_ENTRY(lb_matmul_ut, table_matmul)

/* The same for one token in several streams. */
#define LB_PLANES_STREAMS(first, tile)                                                                    \
    static void planes_streams(const lb_matmul_args *args, int32_t streams, int32_t begin, int32_t end) { \
        if (args->w->format == LB_UT) {                                                                   \
            LB_FOR_UNITS(lb_planes_tile(args, row_group, apart, n, 0, 1, 1, 0, u8_tile))                  \
        } else {                                                                                          \
            LB_FOR_UNITS(lb_planes_tile(args, row_group, apart, n, 0, 1, 0, first, tile))                 \
        }                                                                                                 \
    }

#endif
