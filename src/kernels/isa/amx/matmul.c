/*
 * AMX: products of 16 tokens and more, in tiles; fewer go to AVX-512 VNNI. A tile is 16 rows of 64 bytes. TDPBSUD takes
 * one of activations (signed, 16 tokens x 64 columns) and one of codes (unsigned), and adds to a third, in int32:
 *
 *     activations, as they lie       codes                           sums
 *     token 0:  columns 0 .. 63      word 0:  rows 0 .. 15           token 0:  rows 0 .. 15
 *     token 1:  columns 0 .. 63      word 1:  rows 0 .. 15           token 1:  rows 0 .. 15
 *     ...                            ...                             ...
 *
 * A tile of codes is thus 16 words of a row group, one code to a byte: what the packed words become when their fields
 * are taken apart and put into the order of the columns. That is done once for all tokens, for PANEL words of two row
 * groups, which then stay in the first cache. Two tiles of tokens meet two of codes, so that each load serves two
 * products; the sums of a panel go to memory and are taken up again by the next one of the same scale group. Where
 * there are no more than two tiles of tokens their sums stay, and strips of a panel take turns in two places of it:
 * what takes one apart need not wait for the products of the one before.
 *
 * Nothing is ever read beyond the activations. Where the tokens are no multiple of 16, the last tile begins earlier and
 * meets some tokens again; where the words of a panel are none, the last tile of codes begins with words of zeros, and
 * its activations with columns that were there before.
 *
 * Words of T5 become words of U2 first. Their fifth codes are a strip of their own, as its columns lie elsewhere.
 *
 * The sums have the bounds of AVX-512 VNNI: below 2**31 with every code of U8 at 255.
 */
#include "../avx512vnni/simd.h"

#define LB_ISA amx
#define LB_TILE 16
#include "../matmul_template.h"
#include "../avx512vbmi/t5.h"

enum {
    TILE = 16,   /* rows of a tile: tokens, or words */
    PANEL = 256, /* words of a row group that are unpacked at a time */
    STRIP = 64,  /* the same for two tiles of tokens, if a block has no more */
    T5_PANEL = 48, /* words of T5 that fit in a panel, and in a part of it for two tiles of tokens */
    T5_STRIP = 16,
    TOKENS = 256 /* most tokens that a panel serves before it is unpacked again */
};

typedef struct {
    _Alignas(64) uint8_t codes[2][PANEL * 64]; /* [row group][word][row][byte] */
    _Alignas(64) int32_t sums[TOKENS][2][LB_ROWS];
} panel;

/* Eight full tiles. Intel SDM, LDTILECFG: palette, first row, 14 bytes of zeros, bytes per row, rows. */
static const struct {
    uint8_t palette, first_row, zeros[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} full_tiles = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

/* GCC does not know that loading a tile reads memory, and might store what belongs there afterwards. */
#define MEMORY_IS_WRITTEN() __asm__ volatile("" : : : "memory")

LB_INLINE int32_t whole_tiles(int32_t words) { return (words + TILE - 1) / TILE * TILE; }

/* Takes the fields of a run of blocks apart; returns how many words there are now. `following` is read soon. */
LB_INLINE int32_t unpack(const uint8_t *w, lb_run run, uint8_t *codes, const int bits, uintptr_t following) {
    const int fields = 8 / bits;
    const __m512i low = _mm512_set1_epi8((char)((1 << bits) - 1));
    const int32_t packed = run.full * run.words + run.tail, n = fields * packed, rest = n % TILE;
    uint8_t *out = codes;
    for (int32_t b = 0; b < run.full + (run.tail != 0); b++, out += 64 * fields * run.words) {
        const int32_t words = b < run.full ? run.words : run.tail;
        for (int32_t t = 0; t < words; t++, w += 64, following += 64) {
            LB_PREFETCH((const char *)following);
            const __m512i v = _mm512_loadu_si512(w);
            for (int f = 0; f < fields; f++) {
                _mm512_store_si512(out + 64 * (f * words + t), _mm512_and_si512(_mm512_srli_epi16(v, bits * f), low));
            }
        }
    }
    if (rest) {
        uint8_t *last = codes + 64 * (n - rest);
        memmove(last + 64 * (TILE - rest), last, 64 * (size_t)rest);
        memset(last, 0, 64 * (size_t)(TILE - rest));
    }
    return n;
}

/* The same for words of T5; their fifth codes come behind them, from a whole tile on. */
LB_INLINE void unpack_t5(const uint8_t *w, int32_t words, uint8_t *codes) {
    uint8_t fours[64 * T5_PANEL], fifths[16 * T5_PANEL];
    const int32_t n = (words + 3) / 4;
    t5_unpack(w, words, fours, fifths);
    unpack(fours, (lb_run){words / 8, 8, words % 8}, codes, 2, (uintptr_t)w + 64 * words);
    unpack(fifths, (lb_run){1, n, 0}, codes + 64 * whole_tiles(4 * words), 2, (uintptr_t)w + 64 * words);
}

/* The next 64 columns of one or two tiles of tokens, and of one or two row groups. */
LB_INLINE void step(const uint8_t *codes, const int8_t *x, const int8_t *x2, ptrdiff_t stride, const int halves,
                    const int groups) {
    _tile_loadd(6, codes, 64);
    _tile_loadd(4, x, stride);
    _tile_dpbsud(0, 4, 6);
    if (groups > 1) {
        _tile_loadd(7, codes + PANEL * 64, 64);
        _tile_dpbsud(1, 4, 7);
    }
    if (halves > 1) {
        _tile_loadd(5, x2, stride);
        _tile_dpbsud(2, 5, 6);
        if (groups > 1) _tile_dpbsud(3, 5, 7);
    }
}

/* The sums of 16 or 32 tokens, from zero (`first`: of a scale group) or from memory, and to memory. */
LB_INLINE void load_sums(int32_t (*sums)[2][LB_ROWS], int first, const int halves, const int groups) {
    const ptrdiff_t row = sizeof *sums;
    if (first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums[0][0], row);
        if (groups > 1) _tile_loadd(1, sums[0][1], row);
        if (halves > 1) _tile_loadd(2, sums[TILE][0], row);
        if (halves > 1 && groups > 1) _tile_loadd(3, sums[TILE][1], row);
    }
}

LB_INLINE void store_sums(int32_t (*sums)[2][LB_ROWS], const int halves, const int groups) {
    const ptrdiff_t row = sizeof *sums;
    _tile_stored(0, sums[0][0], row);
    if (groups > 1) _tile_stored(1, sums[0][1], row);
    if (halves > 1) _tile_stored(2, sums[TILE][0], row);
    if (halves > 1 && groups > 1) _tile_stored(3, sums[TILE][1], row);
}

/* Adds the products of `words` words with 16 or 32 tokens. */
LB_INLINE void add_products(const uint8_t *codes, int32_t words, const int8_t *x, const int8_t *x2, ptrdiff_t stride,
                            const int halves, const int groups) {
    int32_t k = 0;
    for (; k + TILE <= words; k += TILE) step(codes + 64 * k, x + 4 * k, x2 + 4 * k, stride, halves, groups);
    if (k < words) {
        const int32_t column = 4 * (words - TILE);
        step(codes + 64 * k, x + column, x2 + column, stride, halves, groups);
    }
}

/* The first token of a tile of them. */
LB_INLINE int32_t first_token(const lb_activations *a, int32_t tile) {
    return TILE * tile < a->n_tokens - TILE ? TILE * tile : a->n_tokens - TILE;
}

/* All products of `words` words; x is their first column of the first token. */
LB_INLINE void multiply(panel *p, const uint8_t *codes, int32_t words, const lb_activations *a, const int8_t *x,
                        int32_t tile, int32_t end, int first, int last, const int groups) {
    const ptrdiff_t stride = a->stride;
    const int stay = end - tile <= 2; /* the sums, in their tiles, from the first words of a scale group to the last */
    int32_t (*sums)[2][LB_ROWS] = p->sums;
    MEMORY_IS_WRITTEN();
    for (; tile < end; tile += 2, sums += 2 * TILE) {
        const int8_t *one = x + first_token(a, tile) * stride;
        if (tile + 1 < end) {
            if (first || !stay) load_sums(sums, first, 2, groups);
            add_products(codes, words, one, x + first_token(a, tile + 1) * stride, stride, 2, groups);
            if (last || !stay) store_sums(sums, 2, groups);
        } else {
            if (first || !stay) load_sums(sums, first, 1, groups);
            add_products(codes, words, one, one, stride, 1, groups);
            if (last || !stay) store_sums(sums, 1, groups);
        }
    }
}

/* Adds what a scale group is worth to the outputs of a row group, for the tokens of some tiles. */
LB_INLINE void add_scaled(const lb_matmul_args *args, int32_t row_group, int32_t group, int32_t tile, int32_t end,
                          const int32_t (*sums)[LB_ROWS], const int32_t format, const int32_t offset) {
    const lb_activations *a = args->x;
    const int32_t rows = args->w->n_rows - row_group * LB_ROWS;
    const __mmask16 inside = (__mmask16)(rows < LB_ROWS ? (1 << rows) - 1 : 0xffff);
    const lb_scales scales = lb_load_scales(args->w, row_group, group, format);
    for (; tile < end; tile++, sums += 2 * TILE) {
        const int32_t start = first_token(a, tile);
        for (int32_t token = TILE * tile; token < start + TILE; token++) {
            const ptrdiff_t at = (ptrdiff_t)token * a->n_groups + group,
                            out = token * args->y_stride + row_group * LB_ROWS;
            const __m512i sum = _mm512_sub_epi32(vi_load(sums[2 * (token - start)]), vi_set1(offset * a->sum[at]));
            if (args->sums) {
                _mm512_mask_storeu_epi32(args->sums + out, inside, sum);
                continue;
            }
            const float x_sum = a->scale[at] * (float)a->sum[at];
            const f32x16 before = group ? _mm512_maskz_loadu_ps(inside, args->y + out) : v_set1(0.0f);
            _mm512_mask_storeu_ps(args->y + out, inside,
                                  lb_add_group(before, sum, scales, a->scale[at], &x_sum, format));
        }
    }
}

/* One or two row groups, and the tokens of some tiles. */
LB_INLINE void row_groups(const lb_matmul_args *args, panel *p, int32_t row_group, int32_t tile, int32_t end,
                          const int groups, const int32_t format, const int32_t offset) {
    const lb_matrix *m = args->w;
    const int bits = lb_bits[format], fields = 8 / bits;
    const int32_t block_words = m->block_cols / (4 * fields);
    const int few = end - tile <= 2;
    const int32_t blocks = (few ? STRIP : PANEL) / fields / block_words,
                  most = format != LB_T5 ? block_words * (blocks ? blocks : 1)
                         : few           ? T5_STRIP
                                         : T5_PANEL,
                  unpacked = (format == LB_T5 ? 5 : fields) * most;
    const int32_t half = unpacked > PANEL / 2 ? 0 : 64 * PANEL / 2; /* strips take turns in the panel */
    const uint8_t *w = m->codes + (size_t)row_group * m->words * 64;
    const int8_t *x = args->x->q;
    int32_t words_left = m->words;
    for (int32_t g = 0; g < m->n_groups; g++) {
        const lb_run whole = lb_group_run(m, block_words, format);
        int32_t left = g == m->n_groups - 1 ? words_left : whole.full * block_words + whole.tail, turn = 0;
        const int8_t *next_x = x + m->group_cols, *fifth_x = x + 16 * left;
        words_left -= left;
        for (int first = 1; left > 0; first = 0) {
            const int32_t packed = left < most ? left : most;
            uint8_t *codes = p->codes[0] + turn;
            left -= packed;
            if (format == LB_T5) {
                for (int i = 0; i < groups; i++) {
                    unpack_t5(w + (size_t)i * m->words * 64, packed, codes + (size_t)i * PANEL * 64);
                }
                multiply(p, codes, 4 * packed, args->x, x, tile, end, first, 0, groups);
                multiply(p, codes + 64 * whole_tiles(4 * packed), (packed + 3) / 4 * 4, args->x, fifth_x, tile, end, 0,
                         !left, groups);
                x += 16 * packed;
                fifth_x += 4 * packed;
            } else {
                const lb_run run = {packed / block_words, block_words, packed % block_words};
                int32_t words = 0;
                for (int i = 0; i < groups; i++) {
                    const uint8_t *wi = w + (size_t)i * m->words * 64;
                    words = unpack(wi, run, codes + (size_t)i * PANEL * 64, bits, (uintptr_t)wi + 64 * packed);
                }
                multiply(p, codes, words, args->x, x, tile, end, first, !left, groups);
                x += 4 * words;
            }
            w += 64 * (size_t)packed;
            turn = half - turn;
        }
        if (format == LB_T5) x = next_x;
        for (int i = 0; i < groups; i++) {
            add_scaled(args, row_group + i, g, tile, end, (const int32_t (*)[LB_ROWS]) & p->sums[0][i], format, offset);
        }
    }
}

/* Scale groups of less than a tile's columns would spend more on their scales than tiles save. */
LB_INLINE void matmul(const lb_matmul_args *args, int32_t begin, int32_t end, lb_matmul_fn *few, const int32_t format,
                      const int32_t offset) {
    const int32_t tiles = (args->x->n_tokens + TILE - 1) / TILE;
    panel p;
    if (args->x->n_tokens < TILE || args->w->group_cols < 4 * TILE) {
        few(args, begin, end);
        return;
    }
    _tile_loadconfig(&full_tiles);
    for (int32_t row_group = begin; row_group < end; row_group += 2) {
        for (int32_t tile = 0; tile < tiles; tile += TOKENS / TILE) {
            const int32_t last = tiles - tile < TOKENS / TILE ? tiles : tile + TOKENS / TILE;
            if (row_group + 1 < end) {
                row_groups(args, &p, row_group, tile, last, 2, format, offset);
            } else {
                row_groups(args, &p, row_group, tile, last, 1, format, offset);
            }
        }
    }
    _tile_release();
}

#define AMX_MATMUL(name, few, format, offset)                                    \
    lb_matmul_fn few;                                                            \
    void LB_NAME(name)(const lb_matmul_args *args, int32_t begin, int32_t end) { \
        matmul(args, begin, end, few, format, offset);                           \
    }

AMX_MATMUL(lb_matmul_u2, lb_matmul_u2__avx512vnni, LB_U2, 1)
AMX_MATMUL(lb_matmul_t5, lb_matmul_t5__avx512vbmi, LB_T5, 1)
AMX_MATMUL(lb_matmul_u4, lb_matmul_u4__avx512vnni, LB_U4, 8)
AMX_MATMUL(lb_matmul_u8, lb_matmul_u8__avx512vnni, LB_U8, 128)
AMX_MATMUL(lb_matmul_u4m, lb_matmul_u4m__avx512vnni, LB_U4M, 0)
AMX_MATMUL(lb_matmul_u8m, lb_matmul_u8m__avx512vnni, LB_U8M, 128)

/* Four products that do not wait for one another. An instruction's three tiles must differ. */
int64_t LB_NAME(lb_dot_peak)(int32_t rounds) {
    int32_t ones[TILE][TILE], sums[TILE][TILE];
    memset(ones, 1, sizeof ones);
    MEMORY_IS_WRITTEN();
    _tile_loadconfig(&full_tiles);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, ones, 64);
    _tile_loadd(5, ones, 64);
    for (int32_t i = 0; i < rounds; i++) {
        _tile_dpbsud(0, 4, 5);
        _tile_dpbsud(1, 4, 5);
        _tile_dpbsud(2, 4, 5);
        _tile_dpbsud(3, 4, 5);
    }
    _tile_stored(0, sums, 64);
    _tile_release();
    return sums[0][0] ? (int64_t)rounds * 4 * TILE * TILE * 64 : 0;
}
