/*
 * AMD's Zen 4: ternary products of many tokens. It has four 256-bit pipes, and vpdpbusd runs on two of them only. The
 * other two take what vpdpbusd leaves: three activations have 27 sums with codes of 0, 1 and 2, which are a table of
 * int16 that fits one register; vpermw looks up in it for 32 rows at once, and an addition takes what it found to their
 * sums. Two such operations stand for 96 products, one vpdpbusd for 64.
 *
 * A pair of row groups is 32 rows. Of four words of a block, 64 columns, 40 go to vpdpbusd and 24 to tables:
 *
 *     word    field 0   1   2   3
 *      0            Q   Q   A   A      Q: a quad, the code of four bytes
 *      1            Q   Q   B   B      A, B: triples, three codes of the same byte
 *      2            Q   Q   Q   A
 *      3            Q   Q   Q   B
 *
 * A table is made once for all rows, indices and quads once for all tokens of a panel. The codes of a triple are first
 * brought into the lowest six bits of their byte; a look-up of bytes makes c0 + 3 c1 + 9 c2 of c0 + 4 c1 + 16 c2. Rows
 * r of the two row groups then share a 32-bit lane, and as vpermw looks at the lowest five bits of a 16-bit lane only,
 * a shift by 8 has the indices of the next byte.
 *
 * The sums of tables stay within 2 * 128 * 24 * PARTS < 2**15 in a panel; those of panels are int32, with the bounds of
 * AVX-512 VNNI.
 *
 * T5 codes become words of U2 on the way, and the fifth codes of 32 words another block, or the end of a shorter one.
 */
#include "../avx512vnni/simd.h"

#define LB_ISA zen4
#define LB_TILE LB_PREPARED_TILE
#include "../matmul_template.h"
#include "../avx512vbmi/t5.h"
#include "panels.h"

lb_matmul_fn lb_matmul_u2__avx512vnni, lb_matmul_t5__avx512vbmi;

enum {
    TRIPLES = 8, /* of a part */
    QUADS = 10,
    FEW = 11,                     /* tokens; fewer are left to AVX-512 VNNI */
    PAIRS = LB_PREPARED_STEP / 2, /* of row groups, taken together */
    LANES = 32
};

/* What is prepared of a tile of tokens and a panel: tables[parts * TRIPLES], and x[parts * QUADS] behind them. */
typedef int16_t table[LB_TILE][LANES];
typedef int32_t quad[LB_TILE];
enum { PART_BYTES = TRIPLES * sizeof(table) + (QUADS + 2) * sizeof(quad) }; /* two for the alignment */

/* What becomes of the weights of a panel. */
typedef struct {
    _Alignas(64) int16_t indices[PARTS * TRIPLES][PAIRS][LANES];
    _Alignas(64) uint8_t quads[PARTS * QUADS][PAIRS][2][64];
} taken;

static int32_t tiles_of(int32_t n_tokens) { return (n_tokens + LB_TILE - 1) / LB_TILE; }

/* The tables of token j of a tile and the parts of a block, from COLUMNS activations. */
LB_INLINE void make_tables(const int8_t *x, table *out, int32_t parts, int32_t j) {
#define THREE(i, j) 4 * (i) + (j), 32 + 4 * (i) + (j), 32 + 4 * ((i) + 2) + (j), 0
#define FOUR_THREES(i) THREE(i, 0), THREE(i, 1), THREE(i, 2), THREE(i, 3)
    static const uint8_t threes_of[64] = {FOUR_THREES(0), FOUR_THREES(1), FOUR_THREES(4), FOUR_THREES(5)};
    /* The codes of 27 sums, in the order in which vpackssdw puts them. */
#define SUM(i) (i) % 3, (i) / 3 % 3, (i) < 27 ? (i) / 9 : 0, 0
#define FOUR_SUMS(i) SUM(i), SUM((i) + 1), SUM((i) + 2), SUM((i) + 3)
    static const uint8_t low_sums[64] = {FOUR_SUMS(0), FOUR_SUMS(8), FOUR_SUMS(16), FOUR_SUMS(24)},
                         high_sums[64] = {FOUR_SUMS(4), FOUR_SUMS(12), FOUR_SUMS(20), FOUR_SUMS(28)};
    const __m512i low = _mm512_loadu_si512(low_sums), high = _mm512_loadu_si512(high_sums);
    const __m512i zero = _mm512_setzero_si512();
    int32_t threes[2 * TRIPLES];
    _mm512_storeu_si512(threes, _mm512_permutexvar_epi8(_mm512_loadu_si512(threes_of), _mm512_loadu_si512(x + 64)));
    LB_UNROLL(8)
    for (int i = 0; i < parts * TRIPLES; i++) {
        const __m512i three = _mm512_set1_epi32(threes[i]);
        const __m512i sums =
            _mm512_packs_epi32(_mm512_dpbusd_epi32(zero, low, three), _mm512_dpbusd_epi32(zero, high, three));
        _mm512_storeu_si512(out[i][j], sums);
    }
}

/* The quads of a part and a tile of tokens, beside one another. */
LB_INLINE void take_quads(const int8_t *const x[LB_TILE], quad *quads) {
    const __m512i across = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    LB_UNROLL(3)
    for (int f = 0; f < 3; f++) {
        __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)(x[0] + 32 * f)));
        v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(const void *)(x[1] + 32 * f)), 1);
        v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(const void *)(x[2] + 32 * f)), 2);
        v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(const void *)(x[3] + 32 * f)), 3);
        v = _mm512_permutexvar_epi32(across, v);
        if (f < 2) {
            _mm512_storeu_si512(quads[4 * f], v);
        } else {
            _mm256_storeu_si256((__m256i *)(void *)quads[8], _mm512_extracti64x4_epi64(v, 1));
        }
    }
}

LB_INLINE void prepare_block(const lb_activations *a, int32_t first, block b, table *tables, quad *quads) {
    int8_t longer[LB_TILE][COLUMNS];
    const int8_t *x[LB_TILE];
    for (int32_t j = 0; j < LB_TILE; j++) {
        const int32_t token = first + j < a->n_tokens ? first + j : a->n_tokens - 1;
        const int8_t *of_token = a->q + (ptrdiff_t)token * a->stride;
        x[j] = of_token + b.x;
        if (b.words < WORDS) { /* filled up with zeros */
            memset(longer[j], 0, COLUMNS);
            for (int32_t f = 0; f < 4; f++) {
                int8_t *field = longer[j] + 4 * WORDS * f;
                memcpy(field, x[j] + 4 * b.words * f, 4 * (size_t)b.words);
                field += 4 * b.words;
                memcpy(field, of_token + b.fifth_x + 4 * b.fifth_words * f, 4 * (size_t)b.fifth_words);
            }
            x[j] = longer[j];
        }
        make_tables(x[j], tables, parts_of(b), j);
    }
    for (int32_t p = 0; p < parts_of(b); p++) {
        take_quads(x, quads + p * QUADS);
        for (int32_t j = 0; j < LB_TILE; j++) x[j] += 16;
    }
}

size_t LB_NAME(lb_prepared_bytes)(const lb_matrix *m, int32_t n_tokens) {
    const int ternary = m->format == LB_U2 || m->format == LB_T5;
    if (!ternary || m->tiles || m->block_cols != COLUMNS || n_tokens < FEW || m->n_rows < LB_PREPARED_STEP * LB_ROWS) {
        return 0;
    }
    size_t parts;
    const size_t list = list_bytes(m, &parts);
    return parts ? list + parts * (size_t)tiles_of(n_tokens) * PART_BYTES : 0;
}

void LB_NAME(lb_prepare)(const lb_matmul_args *args, void *prepared, int32_t begin, int32_t end) {
    const lb_matrix *m = args->w;
    const int32_t tiles = tiles_of(args->x->n_tokens);
    size_t parts, first_byte = list_bytes(m, &parts);
    panel *list = begin == 0 ? prepared : NULL, at; /* written by one caller */
    cursor c = first_panel(m);
    do {
        at = next_panel(m, &c);
        at.first_byte = first_byte;
        if (list) *list++ = at;
        const size_t tile_bytes = (size_t)at.parts * PART_BYTES;
        for (int32_t i = begin; i < end; i++) {
            table *tables = (table *)(void *)((uint8_t *)prepared + first_byte + i * tile_bytes);
            quad *quads = (quad *)(void *)(tables + at.parts * TRIPLES);
            for (int32_t b = 0; b < at.n_blocks; b++) {
                prepare_block(args->x, i * LB_TILE, at.blocks[b], tables, quads);
                tables += parts_of(at.blocks[b]) * TRIPLES, quads += parts_of(at.blocks[b]) * QUADS;
            }
        }
        first_byte += (size_t)tiles * tile_bytes;
    } while (at.parts);
}

/* Four indices for a pair of row groups, from those that lie in their bytes. */
LB_INLINE void spread(__m512i a, __m512i b, int16_t (*indices)[PAIRS][LANES], int32_t pair) {
#define ROW(c1, c2) (c1) * 3 + (c2) * 9, (c1) * 3 + (c2) * 9 + 1, (c1) * 3 + (c2) * 9 + 2, 0
#define ROWS_OF(c2) ROW(0, c2), ROW(1, c2), ROW(2, c2), 0, 0, 0, 0
    static const uint8_t index_of[64] = {ROWS_OF(0), ROWS_OF(1), ROWS_OF(2)};
    const __m512i of = _mm512_loadu_si512(index_of); /* which looks at six bits */
    const __mmask32 odd = 0xaaaaaaaa;
    a = _mm512_permutexvar_epi8(a, of);
    b = _mm512_permutexvar_epi8(b, of);
    const __m512i low = _mm512_mask_blend_epi16(odd, a, _mm512_slli_epi32(b, 16)),
                  high = _mm512_mask_blend_epi16(odd, _mm512_srli_epi32(a, 16), b);
    _mm512_storeu_si512(indices[0][pair], low);
    _mm512_storeu_si512(indices[1][pair], _mm512_srli_epi16(low, 8));
    _mm512_storeu_si512(indices[2][pair], high);
    _mm512_storeu_si512(indices[3][pair], _mm512_srli_epi16(high, 8));
}

/* Fields 2 and 3 of a word and field 3 of another as the lowest six bits of bytes. */
LB_INLINE __m512i six_bits(__m512i v, __m512i u) {
    enum { SELECT = 0xca }; /* a ? b : c */
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(15), _mm512_srli_epi16(v, 4), _mm512_srli_epi16(u, 2), SELECT);
}

/* Four words of a block and a row group, as U2. */
LB_INLINE void take_words(const uint8_t *w, block b, int32_t first, const int32_t format, __m512i v[4]) {
    const uint8_t *codes = w + 64 * (size_t)(b.word + first);
    if (first + 4 <= b.words) {
        LB_UNROLL(4)
        for (int t = 0; t < 4; t++) {
            v[t] = _mm512_loadu_si512(codes + 64 * t);
            if (format == LB_T5) v[t] = t5_four(v[t]);
        }
        return;
    }
    for (int t = 0; t < 4; t++) {
        const int32_t fifth = first + t - b.words;
        v[t] = _mm512_setzero_si512();
        if (fifth < 0) {
            v[t] = _mm512_loadu_si512(codes + 64 * t);
            if (format == LB_T5) v[t] = t5_four(v[t]);
        } else if (format == LB_T5 && fifth < b.fifth_words) {
            v[t] = t5_fifths(w + 64 * (size_t)(b.fifth_word + fifth), b.fifths - fifth, b.fifth_words);
        }
    }
}

/* A part of a block, for a pair of row groups. */
LB_INLINE void take_part(const uint8_t *w, size_t row_bytes, block b, int32_t p, const int32_t format,
                         int16_t (*indices)[PAIRS][LANES], uint8_t (*quads)[PAIRS][2][64], int32_t pair) {
    const __m512i low = _mm512_set1_epi8(3);
    __m512i sixes[2][2];
    LB_UNROLL(2)
    for (int i = 0; i < 2; i++, w += row_bytes) {
        __m512i v[4];
        take_words(w, b, 4 * p, format, v);
        LB_UNROLL(4)
        for (int t = 0; t < 4; t++) {
            _mm512_storeu_si512(quads[t][pair][i], _mm512_and_si512(v[t], low));
            _mm512_storeu_si512(quads[4 + t][pair][i], _mm512_and_si512(_mm512_srli_epi16(v[t], 2), low));
            if (t >= 2) _mm512_storeu_si512(quads[6 + t][pair][i], _mm512_and_si512(_mm512_srli_epi16(v[t], 4), low));
        }
        sixes[i][0] = six_bits(v[0], v[2]);
        sixes[i][1] = six_bits(v[1], v[3]);
    }
    spread(sixes[0][0], sixes[1][0], indices, pair);
    spread(sixes[0][1], sixes[1][1], indices + 4, pair);
}

/* A panel of LB_PREPARED_STEP row groups. */
LB_INLINE void take_panel(const uint8_t *w, size_t row_bytes, const panel *at, const int32_t format, taken *out) {
    for (int32_t pair = 0; pair < PAIRS; pair++, w += 2 * row_bytes) {
        for (int32_t b = 0, n = 0; b < at->n_blocks; b++) {
            for (int32_t p = 0; p < parts_of(at->blocks[b]); p++, n++) {
                take_part(w, row_bytes, at->blocks[b], p, format, out->indices + n * TRIPLES, out->quads + n * QUADS,
                          pair);
            }
        }
    }
}

/* Sums in registers that are not to be copied, as GCC does otherwise. */
#if defined(__GNUC__)
#define LOOK_UP(sum, index, table)                                                                            \
    {                                                                                                         \
        __m512i found;                                                                                        \
        __asm__("vpermw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+v"(sum), "=&v"(found) : "v"(index), "v"(table)); \
    }
#define MULTIPLY(sum, codes, x) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(x))
#else
#define LOOK_UP(sum, index, table) sum = _mm512_add_epi16(sum, _mm512_permutexvar_epi16(index, table));
#define MULTIPLY(sum, codes, x) sum = _mm512_dpbusd_epi32(sum, codes, x)
#endif

/* Adds a panel's sums of a token to what is there of their scale group, in place of the outputs. */
LB_INLINE void add_sums(const lb_matmul_args *args, int32_t row_group, int32_t token, int32_t group, int begins,
                        int ends, const __m512i sums[2 * PAIRS], const lb_scales scales[2 * PAIRS]) {
    const ptrdiff_t out = token * args->y_stride + row_group * LB_ROWS,
                    i = (ptrdiff_t)token * args->x->n_groups + group;
    const __m512i offset = vi_set1(-args->x->sum[i]);
    if (args->sums || !ends) {
        int32_t *y = args->sums ? args->sums + out : (int32_t *)(void *)(args->y + out);
        for (int r = 0; r < 2 * PAIRS; r++, y += LB_ROWS) {
            _mm512_storeu_si512(y, _mm512_add_epi32(sums[r], begins ? offset : _mm512_loadu_si512(y)));
        }
        return;
    }
    float *y = args->y + out;
    const float x_scale = args->x->scale[i], no_minimum = 0.0f;
    for (int r = 0; r < 2 * PAIRS; r++, y += LB_ROWS) {
        const __m512i sum = _mm512_add_epi32(sums[r], begins ? offset : _mm512_loadu_si512(y));
        v_store(y, lb_add_group(group ? v_load(y) : v_set1(0.0f), sum, scales[r], x_scale, &no_minimum, LB_U2));
    }
}

/* The products of a panel, for two pairs of row groups and a tile of tokens. */
LB_INLINE void add_tile(const lb_matmul_args *args, const taken *w, const table *tables, int32_t row_group,
                        int32_t token, const panel *at, const uint8_t *following) {
    __m512i looked_up[PAIRS][LB_TILE], multiplied[2 * PAIRS][LB_TILE];
    LB_UNROLL(4)
    for (int j = 0; j < LB_TILE; j++) {
        LB_UNROLL(2)
        for (int i = 0; i < PAIRS; i++) looked_up[i][j] = _mm512_setzero_si512();
        LB_UNROLL(4)
        for (int i = 0; i < 2 * PAIRS; i++) multiplied[i][j] = _mm512_setzero_si512();
    }
    const size_t row_bytes = (size_t)args->w->words * 64;
    uintptr_t next = (uintptr_t)following + 64 * (size_t)token; /* a quarter of what follows, for each of four tiles */
    const int32_t halves = 2 * at->parts;
    const int16_t (*indices)[PAIRS][LANES] = w->indices;
    const uint8_t (*quads)[PAIRS][2][64] = w->quads;
    const quad *x = (const quad *)(const void *)(tables + at->parts * TRIPLES);
    for (int32_t n = 0; n < halves; n++) {
        if (token < 4 * LB_TILE) {
            LB_PREFETCH((const char *)next);
            LB_PREFETCH((const char *)next + 64);
            next += n % 2 ? row_bytes - 128 : 128;
        }
        LB_UNROLL(5)
        for (int k = 0; k < QUADS / 2; k++) {
            if (k < TRIPLES / 2) {
                __m512i index[PAIRS];
                LB_UNROLL(2)
                for (int i = 0; i < PAIRS; i++) index[i] = _mm512_loadu_si512(indices[k][i]);
                LB_UNROLL(4)
                for (int j = 0; j < LB_TILE; j++) {
                    const __m512i table = _mm512_loadu_si512(tables[k][j]);
                    LB_UNROLL(2)
                    for (int i = 0; i < PAIRS; i++) LOOK_UP(looked_up[i][j], index[i], table)
                }
            }
            __m512i codes[2 * PAIRS];
            LB_UNROLL(4)
            for (int i = 0; i < 2 * PAIRS; i++) codes[i] = _mm512_loadu_si512(quads[k][i / 2][i % 2]);
            LB_UNROLL(4)
            for (int j = 0; j < LB_TILE; j++) {
                const __m512i four = _mm512_set1_epi32(x[k][j]);
                LB_UNROLL(4)
                for (int i = 0; i < 2 * PAIRS; i++) MULTIPLY(multiplied[i][j], codes[i], four);
            }
        }
        indices += TRIPLES / 2, tables += TRIPLES / 2, quads += QUADS / 2, x += QUADS / 2;
    }
    const int32_t group = at->group;
    const int begins = at->begins, ends = at->ends;
    const __m512i first_words = _mm512_set1_epi32(1), second_words = _mm512_set1_epi32(1 << 16);
    lb_scales scales[2 * PAIRS];
    for (int i = 0; i < 2 * PAIRS; i++) {
        scales[i].scale = v_set1(0.0f);
        if (!args->sums && ends) scales[i] = lb_load_scales(args->w, row_group + i, group, LB_U2);
    }
    LB_UNROLL(4)
    for (int j = 0; j < LB_TILE; j++) {
        if (token + j == args->x->n_tokens) break;
        __m512i sums[2 * PAIRS];
        LB_UNROLL(4)
        for (int i = 0; i < 2 * PAIRS; i++) {
            sums[i] = _mm512_dpwssd_epi32(multiplied[i][j], looked_up[i / 2][j], i % 2 ? second_words : first_words);
        }
        add_sums(args, row_group, token + j, group, begins, ends, sums, scales);
    }
}

LB_INLINE void multiply(const lb_matmul_args *args, const void *prepared, int32_t row_group, const int32_t format) {
    const int32_t tiles = tiles_of(args->x->n_tokens);
    const size_t row_bytes = (size_t)args->w->words * 64;
    const uint8_t *w = args->w->codes + row_group * row_bytes;
    for (const panel *at = prepared; at->parts; at++) {
        const uint8_t *tile = (const uint8_t *)prepared + at->first_byte;
        const uint8_t *following = w + (at[1].parts ? 64 * (size_t)at[1].blocks[0].word : LB_PREPARED_STEP * row_bytes);
        taken here;
        take_panel(w, row_bytes, at, format, &here);
        for (int32_t i = 0; i < tiles; i++, tile += at->parts * PART_BYTES) {
            add_tile(args, &here, (const table *)(const void *)tile, row_group, i * LB_TILE, at, following);
        }
    }
}

void LB_NAME(lb_matmul_prepared)(const lb_matmul_args *args, const void *prepared, int32_t begin, int32_t end) {
    const lb_matrix *m = args->w;
    const int32_t whole = m->n_rows / LB_ROWS;
    for (; begin + LB_PREPARED_STEP <= (end < whole ? end : whole); begin += LB_PREPARED_STEP) {
        if (m->format == LB_T5) {
            multiply(args, prepared, begin, LB_T5);
        } else {
            multiply(args, prepared, begin, LB_U2);
        }
    }
    if (begin < end) (m->format == LB_T5 ? lb_matmul_t5__avx512vbmi : lb_matmul_u2__avx512vnni)(args, begin, end);
}
