/*
 * Stored blocks whose bytes hold grid indices, nibbles of a table or two levels of scales become rows of U8: a byte for
 * each weight, and a scale for each 16 or 32 of them; those of Q4_K become U4M. Included by every instruction set; all
 * of it is integers, and floats in the order of the decoders in formats/, so bits are the same everywhere.
 *
 * Layout facts: llama.cpp ggml/src/ggml-common.h, ggml/src/ggml-quants.c; formats/iquants.py and formats/kquants.py
 * say what lies where in a block, and formats/unpacked.py what the tables hold.
 */
#include <string.h>

#include "half.h"
#include "inline.h"

/* Where the words and the scales of a row of a row group go: 64 bytes, and 16 scales, from one to the next. */
typedef struct {
    uint8_t *words;
    void *scales;
    int32_t lane; /* of the row group; for scales that do not lie one behind the other */
} lb_row;

LB_INLINE uint32_t u16_at(const uint8_t *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }
LB_INLINE uint32_t u32_at(const uint8_t *p) { return u16_at(p) | u16_at(p + 2) << 16; }
LB_INLINE uint32_t pair_at(const uint8_t *p, int32_t i) { return p[i / 2] >> i % 2 * 4 & 15u; }

LB_INLINE void put_word(lb_row row, int32_t word, uint32_t codes) { memcpy(row.words + 64 * word, &codes, 4); }

LB_INLINE void put_eight(lb_row row, int32_t eight, uint64_t codes) {
    put_word(row, 2 * eight, (uint32_t)codes);
    put_word(row, 2 * eight + 1, (uint32_t)(codes >> 32));
}

LB_INLINE void put_scale(lb_row row, int32_t group, float scale) { ((float *)row.scales)[16 * group] = scale; }

LB_INLINE float odd(uint32_t small) { return (float)(int32_t)(2 * small + 1); }

/* Each byte of a grid's row becomes 128 + it, or 128 - it where the byte of signs is 255: no byte carries over. */
LB_INLINE uint64_t with_signs(uint64_t grid, uint64_t signs) {
    return (grid ^ (signs ^ 0x8080808080808080u)) + (signs & 0x0101010101010101u);
}

/* 32 nibbles, the low ones first, by a table of bytes: the low nibble's code, and the high one's four bytes on. */
LB_INLINE void put_nibbles(lb_row row, int32_t word, const uint8_t *nibbles, const uint64_t *table) {
    for (int32_t t = 0; t < 4; t++, nibbles += 4) {
        const uint64_t both =
            table[nibbles[0]] | table[nibbles[1]] << 8 | table[nibbles[2]] << 16 | table[nibbles[3]] << 24;
        put_word(row, word + t, (uint32_t)both);
        put_word(row, word + t + 4, (uint32_t)(both >> 32));
    }
}

LB_INLINE void unpack_iq1_s(const uint8_t *b, float d, const uint64_t *table, lb_row row) {
    for (int32_t g = 0; g < 8; g++) {
        const uint32_t high = u16_at(b + 34 + 2 * g);
        const uint64_t up = high & 0x8000u ? 0 : 0x0202020202020202u;
        put_scale(row, g, d * odd(high >> 12 & 7) / 8);
        for (int32_t i = 0; i < 4; i++) {
            put_eight(row, 4 * g + i, table[b[2 + 4 * g + i] | (high >> 3 * i & 7) << 8] + up);
        }
    }
}

LB_INLINE void unpack_iq1_m(const uint8_t *b, float d, const uint64_t *table, lb_row row) {
    for (int32_t g = 0; g < 16; g++) {
        const uint32_t high = b[32 + g];
        const uint64_t up = 0x0202020202020202u;
        put_scale(row, g, d * odd(u16_at(b + 48 + g / 4 * 2) >> g % 4 * 3 & 7) / 8);
        put_eight(row, 2 * g, table[b[2 * g] | (high & 7) << 8] + (high & 8 ? 0 : up));
        put_eight(row, 2 * g + 1, table[b[2 * g + 1] | (high >> 4 & 7) << 8] + (high & 128 ? 0 : up));
    }
}

LB_INLINE void unpack_iq2_xxs(const uint8_t *b, float d, const uint64_t *table, lb_row row) {
    for (int32_t g = 0; g < 8; g++) {
        const uint8_t *at = b + 2 + 8 * g;
        const uint32_t packed = u32_at(at + 4);
        put_scale(row, g, d * odd(packed >> 28) / 8);
        for (int32_t i = 0; i < 4; i++) {
            put_eight(row, 4 * g + i, with_signs(table[at[i]], table[256 + (packed >> 7 * i & 127)]));
        }
    }
}

LB_INLINE void unpack_iq2_xs(const uint8_t *b, float d, const uint64_t *table, lb_row row) {
    for (int32_t g = 0; g < 16; g++) put_scale(row, g, d * odd(pair_at(b + 66, g)) / 8);
    for (int32_t i = 0; i < 32; i++) {
        const uint32_t packed = u16_at(b + 2 + 2 * i);
        put_eight(row, i, with_signs(table[packed & 511], table[512 + (packed >> 9)]));
    }
}

LB_INLINE void unpack_iq2_s(const uint8_t *b, float d, const uint64_t *table, lb_row row) {
    for (int32_t g = 0; g < 16; g++) put_scale(row, g, d * odd(pair_at(b + 74, g)) / 8);
    for (int32_t i = 0; i < 32; i++) {
        const uint32_t index = b[2 + i] | (b[66 + i / 4] >> i % 4 * 2 & 3u) << 8;
        put_eight(row, i, with_signs(table[index], table[1024 + b[34 + i]]));
    }
}

LB_INLINE void unpack_iq3_xxs(const uint8_t *b, float d, const uint64_t *table, lb_row row) {
    for (int32_t g = 0; g < 8; g++) {
        const uint8_t *at = b + 2 + 8 * g;
        const uint32_t packed = u32_at(b + 66 + 4 * g);
        put_scale(row, g, d * odd(packed >> 28) / 4);
        for (int32_t i = 0; i < 4; i++) {
            const uint64_t eight = table[at[2 * i]] | table[at[2 * i + 1]] << 32;
            put_eight(row, 4 * g + i, with_signs(eight, table[256 + (packed >> 7 * i & 127)]));
        }
    }
}

LB_INLINE void unpack_iq3_s(const uint8_t *b, float d, const uint64_t *table, lb_row row) {
    for (int32_t g = 0; g < 8; g++) put_scale(row, g, d * odd(pair_at(b + 106, g)));
    for (int32_t i = 0; i < 32; i++) {
        const uint32_t high = b[66 + i / 4] >> i % 4 * 2;
        const uint64_t eight = table[b[2 + 2 * i] | (high & 1) << 8] | table[b[3 + 2 * i] | (high & 2) << 7] << 32;
        put_eight(row, i, with_signs(eight, table[512 + b[74 + i]]));
    }
}

LB_INLINE void unpack_iq4_nl(const uint8_t *b, float d, const uint64_t *table, lb_row row) {
    put_scale(row, 0, d);
    put_nibbles(row, 0, b + 2, table);
}

LB_INLINE void unpack_iq4_xs(const uint8_t *b, float d, const uint64_t *table, lb_row row) {
    for (int32_t g = 0; g < 8; g++) {
        const int32_t small = (int32_t)(pair_at(b + 4, g) | (u16_at(b + 2) >> 2 * g & 3) << 4);
        put_scale(row, g, d * (float)(small - 32));
        put_nibbles(row, 8 * g, b + 8 + 16 * g, table);
    }
}

LB_INLINE void unpack_mxfp4(const uint8_t *b, float d, const uint64_t *table, lb_row row) {
    put_scale(row, 0, d);
    put_nibbles(row, 0, b + 1, table);
}

/*
 * 256 weights that are rounded to 8 bits as lb_round_weights does (rounding.h), 32 to a scale; 0 if a scale is none of
 * float16. Step by step for all of them, so that what takes long is done for eight scales at a time: twice as fast.
 */
LB_INLINE int put_rounded(lb_row row, const float *w) {
    float scale[8], inverse[8];
    uint8_t codes[256];
    int good = 1;
    for (int32_t g = 0; g < 8; g++) { /* weights are finite, and magnitudes of floats lie in the order of their bits */
        uint32_t largest = 0;
        for (int32_t i = 0; i < 32; i++) {
            uint32_t bits;
            memcpy(&bits, w + 32 * g + i, 4);
            bits &= 0x7fffffffu;
            largest = bits > largest ? bits : largest;
        }
        scale[g] = lb_bits_to_float(largest);
    }
    for (int32_t g = 0; g < 8; g++) {
        const float s = scale[g] / 127;
        scale[g] = s;
        inverse[g] = s > 1e-37f ? 1 / s : 0;
    }
    for (int32_t g = 0; g < 8; g++) {
        good &= scale[g] <= 65504;
        ((uint16_t *)row.scales)[16 * g] = lb_float_to_half(scale[g]);
    }
    for (int32_t g = 0; g < 8; g++) {
        for (int32_t i = 32 * g; i < 32 * g + 32; i++) {
            const float v = w[i] * inverse[g];
            const int32_t whole = (int32_t)v;
            const float rest = v - (float)whole;
            codes[i] = (uint8_t)(whole + (rest >= 0.5f) - (rest <= -0.5f) + 128);
        }
    }
    for (int32_t t = 0; t < 64; t++) memcpy(row.words + 64 * t, codes + 4 * t, 4);
    return good;
}

LB_INLINE int unpack_q2_k(const uint8_t *b, float d, float dmin, lb_row row) {
    float w[256];
    for (int32_t g = 0; g < 8; g++) {
        const uint8_t *q = b + 16 + g / 4 * 32;
        const int32_t shift = g % 4 * 2;
        for (int32_t half = 0; half < 2; half++) {
            const float scale = d * (float)(b[2 * g + half] & 15), minimum = dmin * (float)(b[2 * g + half] >> 4);
            for (int32_t i = 16 * half; i < 16 * half + 16; i++)
                w[32 * g + i] = scale * (float)(q[i] >> shift & 3) - minimum;
        }
    }
    return put_rounded(row, w);
}

LB_INLINE int unpack_q3_k(const uint8_t *b, float d, lb_row row) {
    float w[256];
    for (int32_t g = 0; g < 8; g++) {
        const uint8_t *q = b + 32 + g / 4 * 32;
        const int32_t shift = g % 4 * 2;
        for (int32_t half = 0; half < 2; half++) {
            const int32_t at = 2 * g + half;
            const int32_t low = b[96 + at % 8] >> at / 8 * 4 & 15, high = b[104 + at % 4] >> at / 4 * 2 & 3;
            const float scale = d * (float)((low | high << 4) - 32);
            for (int32_t i = 16 * half; i < 16 * half + 16; i++) {
                w[32 * g + i] = scale * (float)((q[i] >> shift & 3) - 4 + 4 * (b[i] >> g & 1));
            }
        }
    }
    return put_rounded(row, w);
}

/* Scale and minimum of a group of Q4_K and Q5_K, six bits each. */
LB_INLINE int32_t scale_of(const uint8_t *b, int32_t g) {
    return g < 4 ? b[4 + g] & 63 : (b[8 + g] & 15) | b[g] >> 6 << 4;
}
LB_INLINE int32_t minimum_of(const uint8_t *b, int32_t g) {
    return g < 4 ? b[8 + g] & 63 : b[8 + g] >> 4 | b[4 + g] >> 6 << 4;
}

/* The only one that becomes U4M: a byte has columns i and i + 16 of a group, which here lie in nibbles of two bytes. */
LB_INLINE void unpack_q4_k(const uint8_t *b, float d, float dmin, lb_row row) {
    float *super = row.scales;
    uint8_t *multiples = (uint8_t *)(super + 2 * LB_ROWS) + row.lane;
    super[row.lane] = d;
    super[LB_ROWS + row.lane] = -dmin;
    for (int32_t g = 0; g < LB_SUPER_GROUPS; g++, multiples += 2 * LB_ROWS) {
        const uint8_t *q = b + 16 + g / 2 * 32;
        const int32_t shift = g % 2 * 4;
        uint8_t codes[16];
        multiples[0] = (uint8_t)scale_of(b, g);
        multiples[LB_ROWS] = (uint8_t)minimum_of(b, g);
        for (int32_t i = 0; i < 16; i++) codes[i] = (uint8_t)((q[i] >> shift & 15) | (q[i + 16] >> shift & 15) << 4);
        for (int32_t t = 0; t < 4; t++) memcpy(row.words + 64 * (4 * g + t), codes + 4 * t, 4);
    }
}

LB_INLINE int unpack_q5_k(const uint8_t *b, float d, float dmin, lb_row row) {
    float w[256];
    for (int32_t g = 0; g < 8; g++) {
        const uint8_t *q = b + 48 + g / 2 * 32;
        const float scale = d * (float)scale_of(b, g), minimum = dmin * (float)minimum_of(b, g);
        const int32_t shift = g % 2 * 4;
        for (int32_t i = 0; i < 32; i++) {
            w[32 * g + i] = scale * (float)((q[i] >> shift & 15) | (b[16 + i] >> g & 1) << 4) - minimum;
        }
    }
    return put_rounded(row, w);
}

LB_INLINE int unpack_q6_k(const uint8_t *b, float d, lb_row row) {
    float w[256];
    for (int32_t g = 0; g < 8; g++) {
        const uint8_t *low = b + g / 4 * 64 + g % 2 * 32, *high = b + 128 + g / 4 * 32;
        const int32_t low_shift = g % 4 / 2 * 4, high_shift = g % 4 * 2;
        for (int32_t half = 0; half < 2; half++) {
            const float scale = d * (float)(int8_t)b[192 + 2 * g + half];
            for (int32_t i = 16 * half; i < 16 * half + 16; i++) {
                w[32 * g + i] = scale * (float)(((low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4) - 32);
            }
        }
    }
    return put_rounded(row, w);
}

/* One block of a row; 0 if a scale is not finite, or a weight too large. */
LB_INLINE int unpack_block(const int32_t type, const uint8_t *b, const uint64_t *table, lb_row row) {
    uint32_t half, minimum = 0;
    float d, dmin;
    switch (type) {
    case LB_IQ1_M:
        half = u16_at(b + 48) >> 12 | (u16_at(b + 50) >> 12) << 4 | (u16_at(b + 52) >> 12) << 8 |
               (u16_at(b + 54) >> 12) << 12;
        break;
    case LB_MXFP4:
        if (b[0] > 252) return 0;
        half = 0;
        break;
    case LB_Q2_K:
        half = u16_at(b + 80), minimum = u16_at(b + 82);
        break;
    case LB_Q3_K:
        half = u16_at(b + 108);
        break;
    case LB_Q6_K:
        half = u16_at(b + 208);
        break;
    default:
        half = u16_at(b);
    }
    if (type == LB_Q4_K || type == LB_Q5_K) minimum = u16_at(b + 2);
    if ((half & 0x7c00u) == 0x7c00u || (minimum & 0x7c00u) == 0x7c00u) return 0;
    d = lb_half_to_float((uint16_t)half);
    dmin = lb_half_to_float((uint16_t)minimum);
    switch (type) {
    case LB_IQ1_S:
        unpack_iq1_s(b, d, table, row);
        return 1;
    case LB_IQ1_M:
        unpack_iq1_m(b, d, table, row);
        return 1;
    case LB_IQ2_XXS:
        unpack_iq2_xxs(b, d, table, row);
        return 1;
    case LB_IQ2_XS:
        unpack_iq2_xs(b, d, table, row);
        return 1;
    case LB_IQ2_S:
        unpack_iq2_s(b, d, table, row);
        return 1;
    case LB_IQ3_XXS:
        unpack_iq3_xxs(b, d, table, row);
        return 1;
    case LB_IQ3_S:
        unpack_iq3_s(b, d, table, row);
        return 1;
    case LB_IQ4_NL:
        unpack_iq4_nl(b, d, table, row);
        return 1;
    case LB_IQ4_XS:
        unpack_iq4_xs(b, d, table, row);
        return 1;
    case LB_MXFP4: /* half of 2**(exponent - 127): its own bits where it is subnormal */
        d = lb_bits_to_float(b[0] < 2 ? 0x00200000u << b[0] : (b[0] - 1u) << 23);
        unpack_mxfp4(b, d, table, row);
        return 1;
    case LB_Q2_K:
        return unpack_q2_k(b, d, dmin, row);
    case LB_Q3_K:
        return unpack_q3_k(b, d, row);
    case LB_Q4_K:
        unpack_q4_k(b, d, dmin, row);
        return 1;
    case LB_Q5_K:
        return unpack_q5_k(b, d, dmin, row);
    default:
        return unpack_q6_k(b, d, row);
    }
}

/* The row groups begin to end, in a loop of its own for each type. */
LB_INLINE int unpack_groups(const int32_t type, const lb_stored *s, const uint8_t *source, const lb_matrix *m,
                            int32_t begin, int32_t end) {
    const int32_t blocks = m->n_cols / s->block_cols;
    const size_t row_bytes = (size_t)blocks * s->block_bytes, scale_bytes = m->scales_f16 ? 2 : 4;
    const size_t block_words = (size_t)(m->words / blocks) * 64;
    const size_t block_scales =
        m->scales_super ? LB_SUPER_BYTES : lb_scales_at(m, 0, s->block_cols / m->group_cols) * scale_bytes;
    int good = 1;
    for (int32_t group = begin; group < end; group++) {
        const int32_t rows = m->n_rows - LB_ROWS * group < LB_ROWS ? m->n_rows - LB_ROWS * group : LB_ROWS;
        for (int32_t lane = 0; lane < rows; lane++) {
            const uint8_t *b = source + ((size_t)group * LB_ROWS + lane) * row_bytes;
            lb_row row = {(uint8_t *)m->codes + (size_t)group * m->words * 64 + 4 * lane,
                          m->scales_super ? (uint8_t *)m->scales + (size_t)group * (size_t)blocks * LB_SUPER_BYTES
                                          : (uint8_t *)m->scales + (lb_scales_at(m, group, 0) + lane) * scale_bytes,
                          lane};
            for (int32_t i = 0; i < blocks; i++) {
                good &= unpack_block(type, b, s->table, row);
                b += s->block_bytes;
                row.words += block_words;
                row.scales = (uint8_t *)row.scales + block_scales;
            }
        }
    }
    return good;
}

int LB_NAME(lb_unpack)(const lb_stored *s, const uint8_t *source, const lb_matrix *m, int32_t begin, int32_t end) {
    switch (s->type) {
#define LB_CASE(type) \
    case type:        \
        return unpack_groups(type, s, source, m, begin, end);
        LB_STORED_TYPES(LB_CASE)
#undef LB_CASE
    default:
        return 0;
    }
}
