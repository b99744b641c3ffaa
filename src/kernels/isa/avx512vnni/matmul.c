/*
 * AVX-512 VNNI. vpdpbusd multiplies four unsigned bytes (codes) by four signed bytes (activations) in each 32-bit
 * lane and adds the sum to the lane, in int32 and without saturation. One 64-byte read of U2 codes holds 16 columns
 * of 16 rows; a mask per field separates them:
 *
 *     bits of a byte   7 6 | 5 4 | 3 2 | 1 0
 *     field             3     2     1     0      columns 4*W*field + 4*t + byte
 *
 * For up to four tokens the fields are not shifted down: field f is summed as 4**f times its value in an accumulator of
 * its own, and the sums are shifted once at the end. That halves the work on the vector ports for one token, and with
 * more of them no sum waits for the one before it. The largest sum is
 * 3 * 64 * 128 * n_cols / 4 < 2**31 for n_cols <= 2**18, which packing enforces.
 */
#include "simd.h"

#define LB_ISA avx512vnni
#define LB_TILE 16
#define LB_FLOAT_TILE 8
#define LB_U8_OFFSET 128
#include "../matmul_template.h"
#include "../streams_template.h"

LB_INLINE __m512i load_table(const uint8_t *table) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)table));
}

LB_INLINE void look_up(const uint8_t *w, const uint8_t *table, uint8_t *codes) {
    const __m512i values = load_table(table), low = _mm512_set1_epi8(15);
    for (int i = 0; i < 4 * 64; i += 64) {
        const __m512i v = _mm512_loadu_si512(w + i), high = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
        _mm512_storeu_si512(codes + i, _mm512_shuffle_epi8(values, _mm512_and_si512(v, low)));
        _mm512_storeu_si512(codes + 4 * 64 + i, _mm512_shuffle_epi8(values, high));
    }
}
#define LB_LOOK_UP look_up
#include "../planes_template.h"
#include "ternary.h"

/* One token has a single row of sums, and each waits for the one before it: two of them take turns. */
LB_INLINE void u4_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i turn = _mm512_setzero_si512();
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++) {
        const int32_t words = b < run.full ? run.words : run.tail, field = 4 * words;
        for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
            const __m512i v = _mm512_loadu_si512(w);
            if (tokens > 1) _mm_prefetch((const char *)w + LB_AHEAD, _MM_HINT_T0);
            const __m512i c0 = _mm512_and_si512(v, low), c1 = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
            for (int j = 0; j < tokens; j++) {
                __m512i *second = tokens == 1 ? &turn : &acc[j];
                acc[j] = dot4(acc[j], c0, x + j * stride);
                *second = dot4(*second, c1, x + j * stride + field);
            }
        }
        x += field;
    }
    if (tokens == 1) acc[0] = _mm512_add_epi32(acc[0], turn);
}

LB_INLINE void u8_words(const uint8_t *w, const int32_t words, const int8_t *x, ptrdiff_t stride, const int tokens,
                        i32x16 *acc) {
    __m512i turn = _mm512_setzero_si512();
    LB_UNROLL(8)
    for (int32_t t = 0; t < words; t++, w += 64, x += 4) {
        const __m512i v = _mm512_loadu_si512(w);
        if (tokens > 1) _mm_prefetch((const char *)((uintptr_t)w + LB_AHEAD), _MM_HINT_T0);
        for (int j = 0; j < tokens; j++) {
            __m512i *sum = tokens == 1 && t & 1 ? &turn : &acc[j];
            *sum = dot4(*sum, v, x + j * stride);
        }
    }
    if (tokens == 1) acc[0] = _mm512_add_epi32(acc[0], turn);
}

/* U8 sums stay below 255 * 128 * group_cols < 2**31 for group_cols <= 2**16. */
LB_INLINE void u8_tile(const uint8_t *w, lb_run run, const int8_t *x, ptrdiff_t stride, const int tokens, i32x16 *acc) {
    const int32_t words = run.full * run.words + run.tail;
    if (words == 8) {
        u8_words(w, 8, x, stride, tokens, acc);
    } else {
        u8_words(w, words, x, stride, tokens, acc);
    }
}

/* A mask that is made where it stands: kept in registers, masks would take those of the sums of sixteen tokens. */
LB_INLINE __m512i mask_here(const int byte) {
    uint32_t four = lb_each_byte((uint32_t)byte);
#if defined(__GNUC__)
    __asm__ volatile("" : "+r"(four));
#endif
    return _mm512_set1_epi32((int32_t)four);
}

/* One of the eight registers of bytes that a block of `words` words becomes. */
LB_INLINE __m512i bytes_of(const uint8_t *w, const int words, const int t, __m512i low_mask, __m512i high_mask) {
    if (words == 8) return _mm512_loadu_si512(w + 64 * t);
    const int low = lb_low_bits(words), high = words - low;
    const __m512i v = _mm512_loadu_si512(w + 64 * (t % low));
    const __m512i code = _mm512_and_si512(_mm512_srli_epi16(v, low * (t / low)), low_mask);
    if (!high) return code;
    const int n = high ? high : 1, right = n * (t / n) - low;
    const __m512i u = _mm512_loadu_si512(w + 64 * (low + t % n));
    const __m512i field = right > 0 ? _mm512_srli_epi16(u, right) : _mm512_slli_epi16(u, -right);
    return _mm512_or_si512(code, _mm512_and_si512(field, high_mask));
}

/*
 * The usual scale groups are blocks of 32 columns (Q4_0, Q4_1, Q8_0, K types), or two to a block (K types). The codes
 * of a block fill eight registers, in the order of the columns, and the sums of sixteen tokens sixteen: each token
 * takes its eight products and its scales in one go, and nothing goes to memory in between.
 */
LB_INLINE void block_tile(const lb_matmul_args *args, int32_t row_group, int32_t apart, const int streams,
                          int32_t token, const int tokens, const int32_t format, const int32_t offset, const int words,
                          const int groups) {
    const lb_matrix matrix = *args->w, *m = &matrix; /* a copy, which no store can change */
    const lb_activations *a = args->x;
    const int fetches = tokens > 1 || (streams == 1 && words > 2 && words < 8); /* one token of 2 or 8 bits: slower */
    const int turns = tokens == 1 || groups == 1 || lb_has_minima(format); /* two sums that do not wait: measured */
    const size_t row_bytes = (size_t)m->words * 64;
    const int8_t *x = a->q + (ptrdiff_t)token * a->stride;
    float x_sums[LB_TILE][LB_SUMS_AHEAD];
    f32x16 y[LB_TILE];
    for (int j = 0; j < streams * tokens; j++) y[j] = v_set1(0.0f);
    for (int32_t g = 0; g < m->n_groups; g += groups, x += 32) {
        if (lb_has_minima(format) && g % LB_SUMS_AHEAD == 0) lb_make_x_sums(a, token, tokens, g, x_sums);
        for (int s = 0; s < streams; s++) {
            const uint8_t *w = m->codes + (row_group + s * apart) * row_bytes + (size_t)(g / groups) * words * 64;
            for (int t = 0; t < words; t++) {
                if (fetches) _mm_prefetch((const char *)((uintptr_t)w + 64 * t + LB_AHEAD), _MM_HINT_T0);
                if (streams > 1) _mm_prefetch((const char *)((uintptr_t)w + 64 * t + LB_STREAM_AHEAD), _MM_HINT_T0);
            }
            const int low = lb_low_bits(words), low_top = (1 << low) - 1, high_top = (1 << words) - 1 - low_top;
            const __m512i low_mask = mask_here(low_top), high_mask = mask_here(high_top);
            const lb_scales scales[2] = {lb_load_scales(m, row_group + s * apart, g, format),
                                         lb_load_scales(m, row_group + s * apart, g + groups - 1, format)};
            __m512i codes[8];
            LB_UNROLL(8)
            for (int t = 0; t < 8; t++) {
                codes[t] = bytes_of(w, words, t, low_mask, high_mask);
                if (format == LB_UT) codes[t] = _mm512_shuffle_epi8(load_table(lb_tables[m->table]), codes[t]);
            }
            LB_UNROLL(16)
            for (int j = 0; j < tokens; j++) {
                const int8_t *xj = x + j * a->stride;
                LB_UNROLL(2)
                for (int h = 0; h < groups; h++) {
                    const ptrdiff_t i = (ptrdiff_t)(token + j) * a->n_groups + g + h;
                    __m512i sum = _mm512_setzero_si512(), turn = sum;
                    LB_UNROLL(8)
                    for (int t = 0; t < 8; t++) {
                        if (t * groups / 8 != h) continue;
                        __m512i *one = turns && t & 1 ? &turn : &sum;
                        *one = dot4(*one, codes[t], xj + 4 * t);
                    }
                    if (turns) sum = _mm512_add_epi32(sum, turn);
                    if (offset) sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(vi_set1(a->sum[i]), vi_set1(offset)));
                    y[s + j] = lb_add_group(y[s + j], sum, scales[h], a->scale[i], &x_sums[j][(g + h) % LB_SUMS_AHEAD],
                                            format);
                }
            }
        }
    }
    for (int j = 0; j < streams * tokens; j++) {
        const int32_t first = (streams > 1 ? row_group + j * apart : row_group) * LB_ROWS;
        lb_store_rows(args->y + (streams > 1 ? token : token + j) * args->y_stride + first, y[j], m->n_rows - first);
    }
}

#define LB_BLOCK_TILES(format, offset, words, groups) \
    LB_FOR_TILES(LB_TILE, block_tile(args, row_group, 0, 1, token, n, format, offset, words, groups))

#define LB_BLOCK_MATMUL(name, format, offset, tile)                                             \
    void LB_NAME(name)(const lb_matmul_args *args, int32_t begin, int32_t end) {                \
        if (lb_is_blocks_of_32(args)) {                                                         \
            LB_BLOCK_TILES(format, offset, lb_bits[format], 1)                                  \
        } else {                                                                                \
            LB_FOR_TILES(LB_TILE, lb_int_tile(args, row_group, token, n, format, offset, tile)) \
        }                                                                                       \
    }

/* The kinds of blocks that files have, X(format, offset, bits, groups); 0: none of them. */
#define LB_PLANE_BLOCKS(X) \
    X(LB_UP, 32, 6, 2)     \
    X(LB_UP, 16, 5, 1) X(LB_UP, 4, 3, 2) X(LB_UPM, 0, 5, 1) X(LB_UPM, 0, 2, 2) X(LB_UT, LB_U8_OFFSET, 4, 1)
LB_INLINE int block_kind(const lb_matmul_args *args) {
    const lb_matrix *m = args->w;
    const int32_t groups = m->group_cols == 16 ? 2 : m->group_cols == 32 ? 1 : 0;
    return args->sums || m->n_cols % 32 ? 0 : m->format * 100 + m->bits * 10 + groups;
}

LB_INT_MATMUL(lb_matmul_u2, LB_U2, 1, u2_tile)
LB_BLOCK_MATMUL(lb_matmul_u4, LB_U4, 8, u4_tile)
LB_BLOCK_MATMUL(lb_matmul_u8, LB_U8, LB_U8_OFFSET, u8_tile)
LB_BLOCK_MATMUL(lb_matmul_u4m, LB_U4M, 0, u4_tile)
LB_BLOCK_MATMUL(lb_matmul_u8m, LB_U8M, LB_U8_OFFSET, u8_tile)
LB_T5_MATMUL(LB_TILE, lb_t5_unpack)

LB_PLANES_TILES(0, u8_tile)

static void plane_blocks(const lb_matmul_args *args, int32_t begin, int32_t end) {
    switch (block_kind(args)) {
#define LB_CASE(format, offset, bits, groups)        \
    case format * 100 + bits * 10 + groups:          \
        LB_BLOCK_TILES(format, offset, bits, groups) \
        break;
        LB_PLANE_BLOCKS(LB_CASE)
#undef LB_CASE
    default:
        if (args->w->format == LB_UT) {
            table_matmul(args, begin, end);
        } else {
            planes_matmul(args, begin, end);
        }
    }
}
LB_PLANES_ENTRY(lb_matmul_up, plane_blocks)
LB_PLANES_ENTRY(lb_matmul_upm, plane_blocks)
LB_PLANES_ENTRY(lb_matmul_ut, plane_blocks)

LB_FLOAT_MATMUL(lb_matmul_f32, LB_F32)
LB_FLOAT_MATMUL(lb_matmul_f16, LB_F16)
LB_FLOAT_MATMUL(lb_matmul_bf16, LB_BF16)
LB_DOT_PEAK(u8_tile)

/* Streams word by word: they share the activations, and their sums wait for nothing. */
LB_INLINE void u2_streams(const uint8_t *w, size_t apart, int streams, lb_run run, const int8_t *x, i32x16 *acc) {
    if (streams == 4) {
        u2_few(w, apart, 4, run, x, 0, 1, acc);
    } else if (streams == 2) {
        u2_few(w, apart, 2, run, x, 0, 1, acc);
    } else {
        lb_take_turns(w, apart, streams, run, x, acc, 4, u2_tile);
    }
}

LB_TURNS(u4_turns, 2, u4_tile)
LB_TURNS(u8_turns, 1, u8_tile)
LB_T5_TURNS

LB_INLINE void block_streams(const lb_matmul_args *args, int32_t row_group, int32_t apart, int32_t n,
                             const int32_t format, const int32_t offset, lb_streams_tile_fn *turns) {
    if (n == 4 && lb_is_blocks_of_32(args)) {
        block_tile(args, row_group, apart, 4, 0, 1, format, offset, lb_bits[format], 1);
    } else {
        lb_int_streams(args, row_group, apart, n, format, offset, turns);
    }
}

/* One unit of one token. */
static void plane_streams(const lb_matmul_args *args, int32_t row_group, int32_t apart, int32_t n) {
    switch (n == 4 ? block_kind(args) : 0) {
#define LB_CASE(format, offset, bits, groups)                                      \
    case format * 100 + bits * 10 + groups:                                        \
        block_tile(args, row_group, apart, 4, 0, 1, format, offset, bits, groups); \
        break;
        LB_PLANE_BLOCKS(LB_CASE)
#undef LB_CASE
    default:
        if (args->w->format == LB_UT) {
            lb_planes_tile(args, row_group, apart, n, 0, 1, 1, 0, u8_tile);
        } else {
            lb_planes_tile(args, row_group, apart, n, 0, 1, 0, 0, u8_tile);
        }
    }
}

#define LB_BLOCK_STREAMS(format, offset, turns) \
    case format:                                \
        LB_FOR_UNITS(block_streams(args, row_group, apart, n, format, offset, turns)) break;

void LB_NAME(lb_streams)(const lb_matmul_args *args, int32_t streams, int32_t begin, int32_t end) {
    switch (args->w->format) {
    case LB_U2:
        LB_FOR_UNITS(lb_int_streams(args, row_group, apart, n, LB_U2, 1, u2_streams)) break;
        LB_BLOCK_STREAMS(LB_U4, 8, u4_turns)
        LB_BLOCK_STREAMS(LB_U8, LB_U8_OFFSET, u8_turns)
        LB_BLOCK_STREAMS(LB_U4M, 0, u4_turns)
        LB_BLOCK_STREAMS(LB_U8M, LB_U8_OFFSET, u8_turns)
    case LB_T5:
        LB_FOR_UNITS(lb_int_streams(args, row_group, apart, n, LB_T5, 1, t5_turns)) break;
    case LB_UP:
    case LB_UPM:
    case LB_UT:
        LB_FOR_UNITS(plane_streams(args, row_group, apart, n))
    }
}
