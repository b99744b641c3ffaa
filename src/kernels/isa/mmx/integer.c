/*
 * MMX: four- and eight-bit codes. A 64-bit register holds one word of two rows; its 16-bit lanes are pairs of bytes:
 *
 *     int16 lane       3     2   |   1     0
 *     bytes           3 2   1 0  |  3 2   1 0        row 1 | row 0
 *
 * pmaddwd multiplies four int16 by four int16 and adds pairs of neighbours, so that an int32 lane is a row throughout.
 *
 * U8   low byte: masked; high byte: shifted down. Each meets the activation of its column: 8 instructions, 8 weights.
 * UP   becomes bytes, 32 columns at a time, and goes on as U8.
 * U4   a lane holds four codes n0 + 16 n1 + 256 n2 + 4096 n3. n0 is masked; the other three are shifted down but not
 *      masked, and what a shifted lane has too much of the higher codes is taken back by the activations. 16
 *      instructions, 16 weights:
 *
 *          n0 x0 + (n1 + 16 n2 + 256 n3) x1 + (n2 + 16 n3) (x2 - 16 x1) + n3 (x3 - 16 x2)
 *              = n0 x0 + n1 x1 + n2 x2 + n3 x3
 *
 * Bounds: |x - 16 x'| <= 17 * 128 fits int16. Sums may wrap around in int32, and come out right, because the true sum
 * fits: of a scale group, U4 15 * 128 * 2**18 < 2**29, U8 255 * 128 * 2**16 < 2**31. The formats with minima differ in
 * what follows the sums.
 *
 * MMX and the x87 share their registers: all integers of a row group first, then _mm_empty(), then the floats.
 */
#include "../unpack_planes.h"
#include "scale.h"

enum {
    WINDOW = 512, /* words whose activations are spread at a time: 8 KB (U8), half of the first cache */
    GROUPS = 32   /* scale groups between one _mm_empty() and the next */
};

/* Activations of one word, as the lanes of two rows want them: U8 low, high; U4 n0, n1, n2, n3. */
typedef __m64 spread_u8[2];
typedef __m64 spread_u4[4];

LB_INLINE __m64 twice(int32_t x, int32_t y) { return _mm_set_pi16((short)y, (short)x, (short)y, (short)x); }

LB_INLINE void spread8(spread_u8 *out, const int8_t *x) {
    (*out)[0] = twice(x[0], x[2]);
    (*out)[1] = twice(x[1], x[3]);
}

LB_INLINE void spread4(spread_u4 *out, const int8_t *x, int32_t field) {
    const int8_t *y = x + field;
    (*out)[0] = twice(x[0], x[2]);
    (*out)[1] = twice(y[0], y[2]);
    (*out)[2] = twice(x[1] - 16 * y[0], x[3] - 16 * y[2]);
    (*out)[3] = twice(y[1] - 16 * x[1], y[3] - 16 * x[3]);
}

LB_INLINE __m64 dot(__m64 sum, __m64 codes, __m64 x) { return _mm_add_pi32(sum, _mm_madd_pi16(codes, x)); }

LB_INLINE __m64 load(const uint8_t *w) { return *(const __m64 *)(const void *)w; }

/* What the sums of a row group begin with: a value, or what earlier words left. */
LB_INLINE __m64 first_sum(const __m64 *sums, int pair, const __m64 *start) { return start ? *start : sums[pair]; }

LB_INLINE void words8(const uint8_t *w, const spread_u8 *x, __m64 *sums, const __m64 *start, const int words) {
    const __m64 mask = _mm_set1_pi16(0xff);
    for (int pair = 0; pair < LB_ROWS / 2; pair++, w += 8) {
        __m64 sum = first_sum(sums, pair, start);
        LB_ONE_POINTER(w);
        LB_ONE_POINTER(x);
        LB_UNROLL(8)
        for (int t = 0; t < words; t++) {
            const __m64 v = load(w + 64 * t);
            sum = dot(sum, _mm_and_si64(v, mask), x[t][0]);
            sum = dot(sum, _mm_srli_pi16(v, 8), x[t][1]);
        }
        sums[pair] = sum;
        LB_IN_ORDER();
    }
}

LB_INLINE void words4(const uint8_t *w, const spread_u4 *x, __m64 *sums, const __m64 *start, const int words) {
    const __m64 mask = _mm_set1_pi16(0x0f);
    for (int pair = 0; pair < LB_ROWS / 2; pair++, w += 8) {
        __m64 sum = first_sum(sums, pair, start);
        LB_ONE_POINTER(w);
        LB_ONE_POINTER(x);
        LB_UNROLL(4)
        for (int t = 0; t < words; t++) {
            const __m64 v = load(w + 64 * t);
            sum = dot(sum, _mm_and_si64(v, mask), x[t][0]);
            sum = dot(sum, _mm_srli_pi16(v, 4), x[t][1]);
            sum = dot(sum, _mm_srli_pi16(v, 8), x[t][2]);
            sum = dot(sum, _mm_srli_pi16(v, 12), x[t][3]);
        }
        sums[pair] = sum;
        LB_IN_ORDER();
    }
}

/* The activations of a stretch of words of one token, ready for use. */
typedef struct {
    int32_t begin, end;
    union {
        spread_u8 eight[WINDOW];
        spread_u4 four[WINDOW / 2];
    } x;
} window;

/* Words of a row once they are bytes or nibbles. */
LB_INLINE int32_t words_of(const lb_matrix *m) { return lb_has_planes(m->format) ? m->words / m->bits * 8 : m->words; }

/* Spreads the words from `word` on, which begins a block. */
static void fill_window(window *win, const lb_matrix *m, const int8_t *x, int32_t word) {
    const int eight = m->format != LB_U4 && m->format != LB_U4M;
    const int32_t block = m->block_cols / (eight ? 4 : 8), most = (eight ? WINDOW : WINDOW / 2) / block * block;
    const int32_t all = words_of(m);
    win->begin = word;
    win->end = all - word < most ? all : word + most;
    for (int32_t start = word; start < win->end; start += block) {
        const int32_t words = all - start < block ? all - start : block;
        for (int32_t t = 0; t < words; t++) {
            if (eight) {
                spread8(&win->x.eight[start - word + t], x + 4 * (start + t));
            } else {
                spread4(&win->x.four[start - word + t], x + 8 * start + 4 * t, 4 * words);
            }
        }
    }
}

LB_INLINE void some_words(const window *win, const uint8_t *w, int32_t word, __m64 *sums, const __m64 *start,
                          const int words, const int eight) {
    w += 64 * (ptrdiff_t)word;
    if (eight) {
        words8(w, win->x.eight + (word - win->begin), sums, start, words);
    } else {
        words4(w, win->x.four + (word - win->begin), sums, start, words);
    }
}

/* The sums of the words [word, end) of one row group and one token, which begin with `start`. */
LB_INLINE void sum_words(window *win, const lb_matrix *m, const uint8_t *w, const int8_t *x, int32_t word, int32_t end,
                         __m64 *sums, __m64 start, const int eight) {
    const int step = eight ? 8 : 4;
    if (end - word == step && word >= win->begin && end <= win->end) { /* a group of Q8_0 or Q4_0 */
        some_words(win, w, word, sums, &start, step, eight);
        return;
    }
    for (int pair = 0; pair < LB_ROWS / 2; pair++) sums[pair] = start;
    while (word < end) {
        if (word < win->begin || word >= win->end) fill_window(win, m, x, word);
        const int32_t stop = end < win->end ? end : win->end;
        for (; stop - word >= step; word += step) some_words(win, w, word, sums, NULL, step, eight);
        for (; word < stop; word++) some_words(win, w, word, sums, NULL, 1, eight);
    }
}

/* The same of codes in planes; a scale group is half a block or whole ones, and finds its first half in `codes`. */
LB_INLINE void sum_planes(window *win, const lb_matrix *m, const uint8_t *w, const int8_t *x, int32_t word, int32_t end,
                          __m64 *sums, __m64 start, uint8_t *codes) {
    for (int pair = 0; pair < LB_ROWS / 2; pair++) sums[pair] = start;
    for (int32_t stop; word < end; word = stop) {
        const int32_t inside = word % 8, words = end - word < 8 - inside ? end - word : 8 - inside;
        stop = word + words;
        const uint8_t *block = w + 64 * (ptrdiff_t)(word / 8 * m->bits);
        if (!inside && m->format == LB_UT) lb_look_up(block, lb_tables[m->table], codes);
        if (!inside && m->format != LB_UT) lb_unpack_planes(block, m->bits, 0, codes);
        if (word < win->begin || word >= win->end) fill_window(win, m, x, word);
        if (words == 8) {
            words8(codes, win->x.eight + (word - win->begin), sums, NULL, 8);
        } else {
            for (int32_t t = 0; t < words; t++) {
                words8(codes + 64 * (inside + t), win->x.eight + (word - win->begin) + t, sums, NULL, 1);
            }
        }
    }
}

/* A row group's integer sums of one scale group, and its scales. */
typedef struct {
    union {
        __m64 pairs[LB_ROWS / 2];
        int32_t rows[LB_ROWS];
    } sums;
    float small_scales[LB_ROWS];
} group;

LB_INLINE void multiply_row_group(const lb_matmul_args *args, int32_t row_group, int32_t token, window *win, int small,
                                  const int eight, const int minima, const int planes) {
    const lb_matrix *m = args->w;
    const lb_activations *a = args->x;
    _Alignas(8) uint8_t codes[LB_PLANE_COLS * LB_ROWS];
    const uint8_t *w = m->codes + (size_t)row_group * m->words * 64;
    const int8_t *x = a->q + (ptrdiff_t)token * a->stride;
    const int32_t group_words = m->group_cols / (eight ? 4 : 8), all = words_of(m);
    const int32_t offset = planes && m->format != LB_UT ? minima ? 0 : 1 << (m->bits - 1)
                           : eight                      ? 128
                           : minima                     ? 0
                                                        : 8;
    float y[LB_ROWS] = {0}, memory[LB_ROWS], more[LB_ROWS];
    group groups[GROUPS];

    for (int32_t first = 0; first < m->n_groups; first += GROUPS) {
        const int32_t n = m->n_groups - first < GROUPS ? m->n_groups - first : GROUPS;
        for (int32_t i = 0; i < n; i++) {
            const int32_t g = first + i;
            const __m64 start = _mm_set1_pi32(-offset * a->sum[(ptrdiff_t)token * a->n_groups + g]);
            const int32_t word = g * group_words, end = g == m->n_groups - 1 ? all : word + group_words;
            if (planes) {
                sum_planes(win, m, w, x, word, end, groups[i].sums.pairs, start, codes);
            } else {
                sum_words(win, m, w, x, word, end, groups[i].sums.pairs, start, eight);
            }
            if (small) {
                lb_small_scales((const uint16_t *)m->scales + lb_scales_at(m, row_group, g), groups[i].small_scales);
            }
        }
        _mm_empty();
        if (args->sums) {
            lb_store_sums(args, token, row_group, groups[0].sums.rows);
            return;
        }
        for (int32_t i = 0; i < n; i++) {
            const ptrdiff_t of_x = (ptrdiff_t)token * a->n_groups + first + i;
            const size_t at = lb_scales_at(m, row_group, first + i);
            const float x_scale = a->scale[of_x], factor = small ? x_scale * 0x1p112f : x_scale;
            const int super = (minima || planes) && m->scales_super;
            const float *scales = super ? lb_multiplied(m, row_group, first + i, 0, memory)
                                        : lb_scales(m, at, small ? groups[i].small_scales : NULL, memory);
            if (minima) {
                const float *added =
                    super ? lb_multiplied(m, row_group, first + i, 1, more) : lb_scales(m, at + LB_ROWS, NULL, more);
                lb_add_affine(groups[i].sums.rows, scales, factor, added, x_scale * (float)a->sum[of_x], y);
            } else {
                lb_add_scaled(groups[i].sums.rows, scales, factor, y);
            }
        }
    }
    lb_store_rows(args, token, row_group, y);
}

LB_INLINE void multiply(const lb_matmul_args *args, int32_t begin, int32_t end, const int eight, const int minima,
                        const int planes) {
    window win;
    for (int32_t token = 0; token < args->x->n_tokens; token++) {
        const int small = !args->sums && args->w->scales_f16 &&
                          lb_has_room(args->x->scale + (ptrdiff_t)token * args->x->n_groups, args->x->n_groups);
        fill_window(&win, args->w, args->x->q + (ptrdiff_t)token * args->x->stride, 0);
        _mm_empty();
        for (int32_t row_group = begin; row_group < end; row_group++) {
            multiply_row_group(args, row_group, token, &win, small, eight, minima, planes);
        }
    }
}

#define LB_INTEGER_MATMUL(name, eight, minima, planes)                           \
    void LB_NAME(name)(const lb_matmul_args *args, int32_t begin, int32_t end) { \
        multiply(args, begin, end, eight, minima, planes);                       \
    }
LB_INTEGER_MATMUL(lb_matmul_u4, 0, 0, 0)
LB_INTEGER_MATMUL(lb_matmul_u8, 1, 0, 0)
LB_INTEGER_MATMUL(lb_matmul_u4m, 0, 1, 0)
LB_INTEGER_MATMUL(lb_matmul_u8m, 1, 1, 0)
LB_INTEGER_MATMUL(lb_matmul_up, 1, 0, 1)
LB_INTEGER_MATMUL(lb_matmul_upm, 1, 1, 1)
LB_INTEGER_MATMUL(lb_matmul_ut, 1, 0, 1)
