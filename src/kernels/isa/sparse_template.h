/*
 * The product of a channel-major matrix (kernels.h) with the active channels of one token: the loops that all
 * instruction sets share.
 *
 * The including file provides, for its registers:
 *     LB_ISA                its name, such as avx2
 *     simd.h                sixteen lanes of float and of int32
 *     LB_WIDTH              bytes of a register that holds codes: 16, 32 or 64
 *     add_eight             (const uint8_t *const w[8], const int8_t *q, int32_t at, int32_t *acc, int first)
 *                           adds code * q of LB_WIDTH bytes of eight channels, from byte `at` on, to the 4 * LB_WIDTH
 *                           sums of these bytes, or begins the sums if `first` (a constant)
 *     load_sums             (const int32_t *acc, int field) -> i32x16
 *                           the sums of sixteen bytes and one field, from where the first of them lies
 *
 * SIMD sets take both from sparse_simd.h, which says how the sums lie.
 *
 * Nothing but the lines of active channels is read, and the hardware's prefetchers cannot know which these are. So the
 * lines of the channels that come LB_CHANNELS * LB_GROUPS_AHEAD later are prefetched, as many as are used meanwhile (in
 * bursts they would fill the queue to memory, and wait), in the order of their addresses, and into the second cache:
 * on Zen 4 that gives 22 GB/s where the first line of each channel, then the second, into the first cache gives 8.
 */
#ifndef LB_SPARSE_TEMPLATE_H
#define LB_SPARSE_TEMPLATE_H

#include <string.h>

#include "inline.h"
#include "names.h"

#define LB_GROUPS_AHEAD 2

/* Eight channels, all lines of a tile. */
LB_INLINE void lb_eight_channels(const uint8_t *const w[LB_CHANNELS], const uint8_t *const ahead[LB_CHANNELS],
                                 const int8_t *q, int32_t bytes, int32_t *acc, const int first) {
    enum { STEP = 64 / LB_WIDTH, EACH = LB_CHANNELS / STEP }; /* registers per line, prefetches per register */
    const uint8_t *next = ahead[0], *end = next + bytes;
    int32_t channel = 0;
    for (int32_t line = 0; line < bytes; line += 64) {
        for (int step = 0; step < STEP; step++) {
            for (int i = 0; i < EACH; i++) {
                LB_PREFETCH(next);
                next += 64;
                if (next == end) {
                    next = ahead[++channel % LB_CHANNELS];
                    end = next + bytes;
                }
            }
            add_eight(w, q, line + LB_WIDTH * step, acc + 4 * (line + LB_WIDTH * step), first);
        }
    }
}

/* The parts [begin, end) of one tile; `next` is the tile that comes after it on this thread, or this one. */
LB_INLINE void lb_tile_parts(const lb_sparse_args *args, int32_t tile, int32_t begin, int32_t end, int32_t next) {
    const lb_matrix *m = args->w;
    const int32_t rows = lb_lines(m->n_rows) * LB_LINE_ROWS;
    const int32_t line = lb_tile_line(m, tile), lines = lb_tile_line(m, tile + 1) - line;
    const int32_t next_line = lb_tile_line(m, next), next_lines = lb_tile_line(m, next + 1) - next_line;
    const int32_t last = args->ends[end], stop = args->ends[args->n_parts];
    for (int32_t part = begin; part < end; part++) {
        int32_t *acc = args->partial + (size_t)part * rows + (size_t)line * LB_LINE_ROWS;
        if (args->ends[part] == args->ends[part + 1]) memset(acc, 0, (size_t)lines * LB_LINE_ROWS * sizeof *acc);
        for (int32_t at = args->ends[part]; at < args->ends[part + 1]; at += LB_CHANNELS) {
            const uint8_t *w[LB_CHANNELS], *ahead[LB_CHANNELS];
            const int32_t later = at + LB_CHANNELS * LB_GROUPS_AHEAD;
            for (int i = 0; i < LB_CHANNELS; i++) {
                w[i] = lb_channel_codes(m, line, lines, args->channels[at + i]);
                ahead[i] = w[i];
            }
            if (later < last) {
                for (int i = 0; i < LB_CHANNELS; i++) {
                    ahead[i] = lb_channel_codes(m, line, lines, args->channels[later + i]);
                }
            } else if (next != tile && later - last < stop) {
                for (int i = 0; i < LB_CHANNELS; i++) {
                    ahead[i] = lb_channel_codes(m, next_line, next_lines, args->channels[later - last + i]);
                }
            }
            if (at == args->ends[part]) {
                lb_eight_channels(w, ahead, args->q + at, lines * 64, acc, 1);
            } else {
                lb_eight_channels(w, ahead, args->q + at, lines * 64, acc, 0);
            }
        }
    }
}

void LB_NAME(lb_sparse)(const lb_sparse_args *args, int32_t begin, int32_t end) {
    while (begin < end) {
        const int32_t tile = begin / args->n_parts, left = end - tile * args->n_parts;
        const int32_t part = begin % args->n_parts, stop = left < args->n_parts ? left : args->n_parts;
        lb_tile_parts(args, tile, part, stop, left > args->n_parts ? tile + 1 : tile);
        begin = tile * args->n_parts + stop;
    }
}

/* Sixteen outputs, from the sums of one field of sixteen bytes. */
LB_INLINE void lb_finish_sixteen(const lb_sparse_args *args, int32_t row, const int32_t *acc, const int field) {
    const lb_matrix *m = args->w;
    const size_t rows = (size_t)lb_lines(m->n_rows) * LB_LINE_ROWS;
    const int32_t left = m->n_rows - row, count = left < LB_ROWS ? left : LB_ROWS;
    f32x16 y = v_set1(0.0f);
    int32_t part = 0;
    for (int32_t g = 0; g < m->n_groups; g++) {
        i32x16 sum = vi_set1(-args->sum[g]);
        const int32_t stop = m->n_groups == 1 ? args->n_parts : g + 1;
        for (; part < stop; part++) sum = vi_add(sum, load_sums(acc + part * rows, field));
        if (args->sums) {
            int32_t all[LB_ROWS];
            vi_store(all, sum);
            memcpy(args->sums + row, all, (size_t)count * sizeof *all);
            return;
        }
        const size_t at = g * rows + (size_t)row;
        const f32x16 w_scale =
            m->scales_f16 ? v_load_f16((const uint16_t *)m->scales + at) : v_load((const float *)m->scales + at);
        y = v_add(y, v_mul(v_from_i32(sum), v_mul(w_scale, v_set1(args->scale[g]))));
    }
    if (count == LB_ROWS) {
        v_store(args->y + row, y);
    } else {
        float all[LB_ROWS];
        v_store(all, y);
        memcpy(args->y + row, all, (size_t)count * sizeof *all);
    }
}

void LB_NAME(lb_sparse_finish)(const lb_sparse_args *args, int32_t begin, int32_t end) {
    for (int32_t row = begin * LB_LINE_ROWS; row < end * LB_LINE_ROWS && row < args->w->n_rows; row += 4 * LB_ROWS) {
        /* the sums of a register's bytes lie together, and inside them those of each field: */
        const int32_t byte = row / 4, inside = byte % LB_WIDTH;
        const int32_t *acc = args->partial + 4 * (byte - inside) + inside / 4;
        lb_finish_sixteen(args, row, acc, 0);
        if (row + LB_ROWS < args->w->n_rows) lb_finish_sixteen(args, row + LB_ROWS, acc + LB_WIDTH, 1);
        if (row + 2 * LB_ROWS < args->w->n_rows) lb_finish_sixteen(args, row + 2 * LB_ROWS, acc + 2 * LB_WIDTH, 2);
        if (row + 3 * LB_ROWS < args->w->n_rows) lb_finish_sixteen(args, row + 3 * LB_ROWS, acc + 3 * LB_WIDTH, 3);
    }
}

#endif
