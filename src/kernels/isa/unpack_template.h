/*
 * Stored blocks whose bytes hold grid indices, nibbles of a table or two levels of scales become rows of U8: a byte for
 * each weight, and a scale for each 16 or 32 of them; those of K types become U4M, UP or UPM, those of IQ4_XS and MXFP4
 * UT. Included by every instruction set; all of it is integers, and floats in the order of the decoders in formats/, so
 * bits are the same everywhere.
 *
 * Layout facts: llama.cpp ggml/src/ggml-common.h, ggml/src/ggml-quants.c; formats/iquants.py and formats/kquants.py
 * say what lies where in a block, and formats/unpacked.py what the tables hold.
 */
#include <string.h>

#include "half.h"
#include "inline.h"
#include "planes.h"

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

/* 16 bytes with 32 nibbles, which have the order of a plane of four bits. */
LB_INLINE void put_nibbles(lb_row row, int32_t word, const uint8_t *nibbles) {
    for (int32_t t = 0; t < 4; t++) memcpy(row.words + 64 * (word + t), nibbles + 4 * t, 4);
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

/*
 * Scales that are multiples of d, their minima of -dmin; of K types 256 codes in the order of their columns, which go
 * to planes 32 at a time.
 */
LB_INLINE void put_planes(lb_row row, const uint8_t *codes, const int bits) {
    for (int32_t block = 0; block < 8; block++) {
        lb_pack_planes(codes + LB_PLANE_COLS * block, bits, row.words + (ptrdiff_t)(64 * bits) * block);
    }
}

/* Where the first group's multiples go. */
LB_INLINE int8_t *put_super(lb_row row, float d) {
    float *super = row.scales;
    super[row.lane] = d;
    return (int8_t *)(super + LB_ROWS) + row.lane;
}
LB_INLINE int8_t *put_super_with_minima(lb_row row, float d, float dmin) {
    float *super = row.scales;
    super[LB_ROWS + row.lane] = -dmin;
    return put_super(row, d) + sizeof(float) * LB_ROWS;
}

LB_INLINE void unpack_iq4_xs(const uint8_t *b, float d, lb_row row) {
    int8_t *multiples = put_super(row, d);
    for (int32_t g = 0; g < 8; g++) {
        multiples[LB_ROWS * g] = (int8_t)((pair_at(b + 4, g) | (u16_at(b + 2) >> 2 * g & 3) << 4) - 32);
        put_nibbles(row, 4 * g, b + 8 + 16 * g);
    }
}

LB_INLINE void unpack_q2_k(const uint8_t *b, float d, float dmin, lb_row row) {
    int8_t *multiples = put_super_with_minima(row, d, dmin);
    uint8_t codes[256];
    for (int32_t g = 0; g < 16; g++) {
        multiples[2 * LB_ROWS * g] = b[g] & 15;
        multiples[2 * LB_ROWS * g + LB_ROWS] = b[g] >> 4;
    }
    for (int32_t i = 0; i < 256; i += 32) {
        const uint8_t *q = b + 16 + i / 128 * 32;
        for (int32_t j = 0; j < 32; j++) codes[i + j] = q[j] >> i % 128 / 16 & 3;
    }
    put_planes(row, codes, 2);
}

LB_INLINE void unpack_q3_k(const uint8_t *b, float d, lb_row row) {
    int8_t *multiples = put_super(row, d);
    uint8_t codes[256];
    for (int32_t g = 0; g < 16; g++) {
        const int32_t low = b[96 + g % 8] >> g / 8 * 4 & 15, high = b[104 + g % 4] >> g / 4 * 2 & 3;
        multiples[LB_ROWS * g] = (int8_t)((low | high << 4) - 32);
    }
    for (int32_t i = 0; i < 256; i += 32) {
        const uint8_t *q = b + 32 + i / 128 * 32;
        for (int32_t j = 0; j < 32; j++) {
            codes[i + j] = (uint8_t)((q[j] >> i % 128 / 16 & 3) | (b[j] >> i / 32 & 1) << 2);
        }
    }
    put_planes(row, codes, 3);
}

/* Multiples of Q4_K and Q5_K: a scale and a minimum of six bits for each group. */
LB_INLINE void put_six_bits(const uint8_t *b, int8_t *multiples) {
    for (int32_t g = 0; g < 8; g++, multiples += 2 * LB_ROWS) {
        multiples[0] = (int8_t)(g < 4 ? b[4 + g] & 63 : (b[8 + g] & 15) | b[g] >> 6 << 4);
        multiples[LB_ROWS] = (int8_t)(g < 4 ? b[8 + g] & 63 : b[8 + g] >> 4 | b[4 + g] >> 6 << 4);
    }
}

/* To U4M, whose words have the order of a plane of four bits. */
LB_INLINE void unpack_q4_k(const uint8_t *b, float d, float dmin, lb_row row) {
    put_six_bits(b, put_super_with_minima(row, d, dmin));
    for (int32_t g = 0; g < 8; g++) {
        const uint8_t *q = b + 16 + g / 2 * 32;
        const int32_t shift = g % 2 * 4;
        uint8_t codes[16];
        for (int32_t i = 0; i < 16; i++) codes[i] = (uint8_t)((q[i] >> shift & 15) | (q[i + 16] >> shift & 15) << 4);
        put_nibbles(row, 4 * g, codes);
    }
}

LB_INLINE void unpack_q5_k(const uint8_t *b, float d, float dmin, lb_row row) {
    uint8_t codes[256];
    put_six_bits(b, put_super_with_minima(row, d, dmin));
    for (int32_t i = 0; i < 256; i += 32) {
        const uint8_t *q = b + 48 + i / 64 * 32;
        for (int32_t j = 0; j < 32; j++) {
            codes[i + j] = (uint8_t)((q[j] >> i % 64 / 8 & 15) | (b[16 + j] >> i / 32 & 1) << 4);
        }
    }
    put_planes(row, codes, 5);
}

LB_INLINE void unpack_q6_k(const uint8_t *b, float d, lb_row row) {
    int8_t *multiples = put_super(row, d);
    uint8_t codes[256];
    for (int32_t g = 0; g < 16; g++) multiples[LB_ROWS * g] = (int8_t)b[192 + g];
    for (int32_t i = 0; i < 256; i += 32) {
        const uint8_t *low = b + i / 128 * 64 + i % 64, *high = b + 128 + i / 128 * 32;
        for (int32_t j = 0; j < 32; j++) {
            codes[i + j] = (uint8_t)((low[j] >> i % 128 / 64 * 4 & 15) | (high[j] >> i % 128 / 16 & 3) << 4);
        }
    }
    put_planes(row, codes, 6);
}

/* One block of a row; 0 if a scale is not finite. */
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
    case LB_IQ4_XS:
        unpack_iq4_xs(b, d, row);
        return 1;
    case LB_MXFP4: /* half of 2**(exponent - 127): its own bits where it is subnormal */
        d = lb_bits_to_float(b[0] < 2 ? 0x00200000u << b[0] : (b[0] - 1u) << 23);
        put_scale(row, 0, d);
        put_nibbles(row, 0, b + 1);
        return 1;
    case LB_Q2_K:
        unpack_q2_k(b, d, dmin, row);
        return 1;
    case LB_Q3_K:
        unpack_q3_k(b, d, row);
        return 1;
    case LB_Q4_K:
        unpack_q4_k(b, d, dmin, row);
        return 1;
    case LB_Q5_K:
        unpack_q5_k(b, d, dmin, row);
        return 1;
    default:
        unpack_q6_k(b, d, row);
        return 1;
    }
}

/* The row groups begin to end, in a loop of its own for each type. */
LB_INLINE int unpack_groups(const int32_t type, const lb_stored *s, const uint8_t *source, const lb_matrix *m,
                            int32_t begin, int32_t end) {
    const int32_t blocks = m->n_cols / s->block_cols;
    const size_t row_bytes = (size_t)blocks * s->block_bytes;
    const size_t block_words = (size_t)(m->words / blocks) * 64;
    const size_t block_scales =
        m->scales_super ? lb_super_bytes(m) : lb_scales_at(m, 0, s->block_cols / m->group_cols) * sizeof(float);
    int good = 1;
    for (int32_t group = begin; group < end; group++) {
        const int32_t rows = m->n_rows - LB_ROWS * group < LB_ROWS ? m->n_rows - LB_ROWS * group : LB_ROWS;
        for (int32_t lane = 0; lane < rows; lane++) {
            const uint8_t *b = source + ((size_t)group * LB_ROWS + lane) * row_bytes;
            lb_row row = {(uint8_t *)m->codes + (size_t)group * m->words * 64 + 4 * lane,
                          m->scales_super ? (uint8_t *)m->scales + (size_t)group * (size_t)blocks * block_scales
                                          : (uint8_t *)((float *)m->scales + lb_scales_at(m, group, 0) + lane),
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
