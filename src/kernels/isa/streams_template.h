/*
 * Products of one token, for which several row groups are read at the same time, from distant parts of a matrix: some
 * processors read one sequential stream at a third of the speed at which they read four. Include after the tiles.
 *
 * A unit g is the row groups g, g + apart, g + 2 * apart, ... of which the last parts of a matrix may have one less. A
 * tile of streams adds the products of one scale group and of the row groups whose codes begin `apart` bytes from one
 * another to acc:
 *     (const uint8_t *w, size_t apart, int streams, lb_run run, const int8_t *x, i32x16 *acc)
 *
 * A row has the bits that lb_int_tile gives it: integer sums are exact, and scale groups are added in the same order.
 */
#ifndef LB_STREAMS_TEMPLATE_H
#define LB_STREAMS_TEMPLATE_H

enum {
    LB_STREAM_AHEAD = 4096, /* bytes that each stream is prefetched ahead of itself */
    LB_STREAM_PIECE = 1024  /* bytes of one stream that are read before those of the next, where they take turns */
};

typedef void lb_streams_tile_fn(const uint8_t *w, size_t apart, int streams, lb_run run, const int8_t *x, i32x16 *acc);

/* Streams that take turns, with a tile of one token. */
LB_INLINE void lb_take_turns(const uint8_t *w, size_t apart, int streams, lb_run run, const int8_t *x, i32x16 *acc,
                             const int fields, lb_tile_fn *tile) {
    const int32_t most = 64 * run.words < LB_STREAM_PIECE ? LB_STREAM_PIECE / (64 * run.words) : 1;
    do {
        const int32_t full = run.full < most ? run.full : most;
        const lb_run piece = {full, run.words, run.full == full ? run.tail : 0};
        const int32_t words = full * run.words + piece.tail;
        for (int s = 0; s < streams; s++) {
            const uint8_t *from = w + s * apart;
            for (int32_t t = 0; t < words; t++) {
                LB_PREFETCH((const void *)((uintptr_t)from + LB_STREAM_AHEAD + (uintptr_t)(64 * t)));
            }
            tile(from, piece, x, 0, 1, acc + s);
        }
        run.full -= full;
        w += 64 * words;
        x += 4 * fields * words;
    } while (run.full);
}

LB_INLINE void lb_int_streams(const lb_matmul_args *args, int32_t row_group, int32_t apart, int streams,
                              const int32_t format, const int32_t offset, lb_streams_tile_fn *tile) {
    const lb_matrix *m = args->w;
    const lb_activations *a = args->x;
    const int32_t fields = 8 / lb_bits[format], block_words = m->block_cols / (4 * fields);
    const lb_run whole = lb_group_run(m, block_words, format);
    const size_t row_bytes = (size_t)m->words * 64;
    const uint8_t *w = m->codes + row_group * row_bytes;
    const int8_t *x = a->q;
    int32_t words_left = m->words;
    float x_sums[1][LB_SUMS_AHEAD];
    f32x16 y[LB_MAX_STREAMS];
    for (int s = 0; s < streams; s++) y[s] = v_set1(0.0f);

    for (int32_t g = 0; g < m->n_groups; g++) {
        lb_run run = whole;
        if (g == m->n_groups - 1) {
            run.full = words_left / block_words;
            run.tail = words_left % block_words;
        }
        const int32_t words = run.full * block_words + run.tail;
        i32x16 acc[LB_MAX_STREAMS];
        for (int s = 0; s < streams; s++) acc[s] = vi_set1(-offset * a->sum[g]);
        tile(w, apart * row_bytes, streams, run, x, acc);
        w += (size_t)words * 64;
        x += format == LB_T5 ? m->group_cols : words * 4 * fields;
        words_left -= words;

        if (args->sums) {
            for (int s = 0; s < streams; s++) {
                const int32_t first = (row_group + s * apart) * LB_ROWS;
                lb_store_sums(args->sums + first, acc[s], m->n_rows - first);
            }
            return;
        }
        if (lb_has_minima(format) && g % LB_SUMS_AHEAD == 0) lb_make_x_sums(a, 0, 1, g, x_sums);
        for (int s = 0; s < streams; s++) {
            const lb_scales scales = lb_load_scales(m, row_group + s * apart, g, format);
            y[s] = lb_add_group(y[s], acc[s], scales, a->scale[g], &x_sums[0][g % LB_SUMS_AHEAD], format);
        }
    }
    for (int s = 0; s < streams; s++) {
        const int32_t first = (row_group + s * apart) * LB_ROWS;
        lb_store_rows(args->y + first, y[s], m->n_rows - first);
    }
}

/* Runs `call` for the units from begin to end; `n` is how many row groups are in one. */
#define LB_FOR_UNITS(call)                                              \
    {                                                                   \
        const int32_t groups = lb_row_groups(args->w->n_rows);          \
        const int32_t apart = lb_units(groups, streams);                \
        for (int32_t row_group = begin; row_group < end; row_group++) { \
            const int32_t n = (groups - row_group + apart - 1) / apart; \
            call;                                                       \
        }                                                               \
    }

#define LB_TURNS(name, fields, tile)                                                                             \
    LB_INLINE void name(const uint8_t *w, size_t apart, int streams, lb_run run, const int8_t *x, i32x16 *acc) { \
        lb_take_turns(w, apart, streams, run, x, acc, fields, tile);                                             \
    }

/*
 * The fifth codes of T5 meet other columns than the rest, so the streams of a scale group take turns after the whole of
 * it.
 */
#define LB_T5_TURNS                                                                                                  \
    LB_INLINE void t5_turns(const uint8_t *w, size_t apart, int streams, lb_run run, const int8_t *x, i32x16 *acc) { \
        for (int s = 0; s < streams; s++) t5_tile(w + s * apart, run, x, 0, 1, acc + s);                             \
    }

/* The streams of a set, for each format by a tile of streams, if they are not `made` already. */
#define LB_STREAMS(made, u2, u4, u8)                                                                    \
    void LB_NAME(lb_streams)(const lb_matmul_args *args, int32_t streams, int32_t begin, int32_t end) { \
        if (made) return;                                                                               \
        switch (args->w->format) {                                                                      \
        case LB_U2:                                                                                     \
            LB_FOR_UNITS(lb_int_streams(args, row_group, apart, n, LB_U2, 1, u2)) break;                \
        case LB_U4:                                                                                     \
            LB_FOR_UNITS(lb_int_streams(args, row_group, apart, n, LB_U4, 8, u4)) break;                \
        case LB_U8:                                                                                     \
            LB_FOR_UNITS(lb_int_streams(args, row_group, apart, n, LB_U8, LB_U8_OFFSET, u8)) break;     \
        case LB_U4M:                                                                                    \
            LB_FOR_UNITS(lb_int_streams(args, row_group, apart, n, LB_U4M, 0, u4)) break;               \
        case LB_U8M:                                                                                    \
            LB_FOR_UNITS(lb_int_streams(args, row_group, apart, n, LB_U8M, LB_U8_OFFSET, u8)) break;    \
        case LB_T5:                                                                                     \
            LB_FOR_UNITS(lb_int_streams(args, row_group, apart, n, LB_T5, 1, t5_turns)) break;          \
        case LB_UP:                                                                                     \
        case LB_UPM:                                                                                    \
        case LB_UT:                                                                                     \
            planes_streams(args, streams, begin, end);                                                  \
        }                                                                                               \
    }

/* The streams of a set whose tiles are u2_tile, u4_tile and u8_tile, by turns, and that has planes_streams. */
#define LB_STREAMS_BY_TURNS(made)  \
    LB_TURNS(u2_turns, 4, u2_tile) \
    LB_TURNS(u4_turns, 2, u4_tile) \
    LB_TURNS(u8_turns, 1, u8_tile) \
    LB_T5_TURNS                    \
    LB_STREAMS(made, u2_turns, u4_turns, u8_turns)

#endif
