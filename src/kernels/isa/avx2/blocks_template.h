/*
 * Products with scale groups of 32 columns, or two of 16, in 256-bit registers. The codes of 32 columns of eight rows
 * fill eight registers, in the order of the columns, and meet four tokens at a time, whose sums are scaled and go
 * straight to y.
 *
 * The including file provides LB_BLOCK_KINDS(X), the kinds of blocks that it wants, X(format, table, offset, bits,
 * groups), those of LB_SMALL_BLOCKS and others, and block_sums: the sums of one scale group, `steps` registers of
 * codes, for n <= 4 tokens, (const __m256i *codes, int steps, int format, int bits, const int8_t *x, ptrdiff_t stride,
 * int n, __m256i *sums)
 */
#ifndef LB_BLOCKS_TEMPLATE_H
#define LB_BLOCKS_TEMPLATE_H

enum { BLOCK_TILE = 16 }; /* tokens */

#define LB_SMALL_BLOCKS(X) \
    X(LB_U4, 0, 8, 4, 1)   \
    X(LB_U4M, 0, 0, 4, 1)  \
    X(LB_UP, 0, 32, 6, 2)  \
    X(LB_UP, 0, 16, 5, 1)  \
    X(LB_UP, 0, 4, 3, 2)   \
    X(LB_UPM, 0, 0, 5, 1)  \
    X(LB_UPM, 0, 0, 2, 2)

/* Eight rows of one of the eight words of bytes that a block becomes (planes.h). */
LB_INLINE __m256i code_of(const uint8_t *w, const int words, const int t, const int half) {
    if (words == 8) return load_half(w + 64 * t, half);
    const int low = lb_low_bits(words), high = words - low;
    const __m256i v = load_half(w + 64 * (t % low), half);
    const __m256i code = _mm256_and_si256(_mm256_srli_epi16(v, low * (t / low)), _mm256_set1_epi8((1 << low) - 1));
    if (!high) return code;
    const int n = high ? high : 1, right = n * (t / n) - low;
    const __m256i u = load_half(w + 64 * (low + t % n), half);
    const __m256i field = right > 0 ? _mm256_srli_epi16(u, right) : _mm256_slli_epi16(u, -right);
    return _mm256_or_si256(code, _mm256_and_si256(field, _mm256_set1_epi8((char)((1 << words) - (1 << low)))));
}

/* What codes of a table stand for, and `offset` more. */
LB_INLINE __m256i values_of(const uint8_t *table, const int offset) {
    const __m128i values = _mm_loadu_si128((const __m128i *)(const void *)table);
    return _mm256_broadcastsi128_si256(_mm_sub_epi8(values, _mm_set1_epi8((char)(128 - offset))));
}

/* One or more tokens of a row group, or one token of some streams. */
LB_INLINE void block_tile(const lb_matmul_args *args, int32_t row_group, int32_t apart, const int streams,
                          int32_t token, const int tokens, const int32_t format, const int32_t table,
                          const int32_t offset, const int words, const int groups) {
    const lb_matrix matrix = *args->w, *m = &matrix; /* copies, which no store can change */
    const lb_activations activations = *args->x, *a = &activations;
    const int n = tokens < 4 ? tokens : 4;
    const int fetches = streams * tokens > 1 || (words > 2 && words < 8); /* one token of 2 or 8 bits: slower */
    const size_t row_bytes = (size_t)m->words * 64;
    const int8_t *x = a->q + (ptrdiff_t)token * a->stride;
    float x_sums[BLOCK_TILE][LB_SUMS_AHEAD];
    __m256 y[BLOCK_TILE][2];
    for (int j = 0; j < streams * tokens; j++) y[j][0] = y[j][1] = _mm256_setzero_ps();
    for (int32_t g = 0; g < m->n_groups; g += groups, x += 32) {
        if (lb_has_minima(format) && g % LB_SUMS_AHEAD == 0) lb_make_x_sums(a, token, tokens, g, x_sums);
        for (int s = 0; s < streams; s++) {
            const uint8_t *w = m->codes + (row_group + s * apart) * row_bytes + (size_t)(g / groups) * words * 64;
            for (int t = 0; t < words; t++) {
                const uintptr_t ahead = (uintptr_t)w + 64 * t + (streams > 1 ? LB_STREAM_AHEAD : LB_AHEAD);
                if (fetches) _mm_prefetch((const char *)ahead, _MM_HINT_T0);
            }
            const lb_scales scales[2] = {lb_load_scales(m, row_group + s * apart, g, format),
                                         lb_load_scales(m, row_group + s * apart, g + groups - 1, format)};
            LB_UNROLL(2)
            for (int half = 0; half < 2; half++) {
                __m256i codes[8];
                LB_UNROLL(8)
                for (int t = 0; t < 8; t++) {
                    codes[t] = code_of(w, words, t, half);
                    if (format == LB_UT) codes[t] = _mm256_shuffle_epi8(values_of(lb_tables[table], offset), codes[t]);
                }
                for (int j = 0; j < tokens; j += n) {
                    LB_UNROLL(2)
                    for (int h = 0; h < groups; h++) {
                        const __m256 scale = half ? scales[h].scale.b : scales[h].scale.a,
                                     minimum = half ? scales[h].minimum.b : scales[h].minimum.a;
                        __m256i sums[4];
                        block_sums(codes + h * 4, 8 / groups, format, words, x + j * a->stride + 16 * h, a->stride, n,
                                   sums);
                        LB_UNROLL(4)
                        for (int k = 0; k < n; k++) {
                            const ptrdiff_t i = (ptrdiff_t)(token + j + k) * a->n_groups + g + h;
                            const __m256i sum = _mm256_sub_epi32(
                                sums[k], _mm256_mullo_epi32(_mm256_set1_epi32(a->sum[i]), _mm256_set1_epi32(offset)));
                            __m256 part = _mm256_mul_ps(_mm256_cvtepi32_ps(sum),
                                                        _mm256_mul_ps(scale, _mm256_set1_ps(a->scale[i])));
                            if (lb_has_minima(format)) {
                                const float x_sum = x_sums[j + k][(g + h) % LB_SUMS_AHEAD];
                                part = _mm256_add_ps(part, _mm256_mul_ps(minimum, _mm256_set1_ps(x_sum)));
                            }
                            y[s + j + k][half] = _mm256_add_ps(y[s + j + k][half], part);
                        }
                    }
                }
            }
        }
    }
    for (int j = 0; j < streams * tokens; j++) {
        const int32_t first = (streams > 1 ? row_group + j * apart : row_group) * LB_ROWS;
        lb_store_rows(args->y + (streams > 1 ? token : token + j) * args->y_stride + first, (f32x16){y[j][0], y[j][1]},
                      m->n_rows - first);
    }
}

LB_INLINE int block_kind(const lb_matmul_args *args) {
    const lb_matrix *m = args->w;
    const int32_t groups = m->group_cols == 16 ? 2 : m->group_cols == 32 ? 1 : 0;
    const int32_t bits = lb_has_planes(m->format) ? m->bits : lb_bits[m->format];
    if (args->sums || m->n_cols % 32 || m->block_cols != 32) return 0;
    return m->format * 1000 + m->table * 100 + bits * 10 + groups;
}

/* Whether it is a product with such blocks, which is then made. */
#define LB_BLOCK_CASE(format, table, offset, bits, groups)                                                         \
    case format * 1000 + table * 100 + bits * 10 + groups:                                                         \
        LB_FOR_TILES(BLOCK_TILE, block_tile(args, row_group, 0, 1, token, n, format, table, offset, bits, groups)) \
        return 1;
static int block_matmul(const lb_matmul_args *args, int32_t begin, int32_t end) {
    switch (block_kind(args)) { LB_BLOCK_KINDS(LB_BLOCK_CASE) }
    return 0;
}

LB_INLINE void block_unit(const lb_matmul_args *args, int32_t row_group, int32_t apart, int32_t n, const int32_t format,
                          const int32_t table, const int32_t offset, const int bits, const int groups) {
    if (n == 4) {
        block_tile(args, row_group, apart, 4, 0, 1, format, table, offset, bits, groups);
    } else {
        for (int32_t s = 0; s < n; s++) {
            block_tile(args, row_group + s * apart, 0, 1, 0, 1, format, table, offset, bits, groups);
        }
    }
}
#define LB_BLOCK_UNIT(format, table, offset, bits, groups)                                       \
    case format * 1000 + table * 100 + bits * 10 + groups:                                       \
        LB_FOR_UNITS(block_unit(args, row_group, apart, n, format, table, offset, bits, groups)) \
        return 1;
static int block_streams(const lb_matmul_args *args, int32_t streams, int32_t begin, int32_t end) {
    switch (block_kind(args)) { LB_BLOCK_KINDS(LB_BLOCK_UNIT) }
    return 0;
}

/* A product of a format that has such blocks, and is otherwise made by a function, such as that of a tile. */
#define LB_BLOCK_MATMUL(name, otherwise)                                         \
    void LB_NAME(name)(const lb_matmul_args *args, int32_t begin, int32_t end) { \
        if (!block_matmul(args, begin, end)) otherwise(args, begin, end);        \
    }
#define LB_TILES_OF(name, format, offset, tile)                                             \
    static void name(const lb_matmul_args *args, int32_t begin, int32_t end) {              \
        LB_FOR_TILES(LB_TILE, lb_int_tile(args, row_group, token, n, format, offset, tile)) \
    }

#endif
