/* Codes of 2 to 6 bits in planes (LB_UP, LB_UPM and LB_UT; kernels.h draws them): 32 columns of one row. */
#ifndef LB_PLANES_H
#define LB_PLANES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { LB_PLANE_COLS = 32 };

/* What four bits stand for, and 128 more: in IQ4_NL and IQ4_XS, and twice those of MXFP4 (llama.cpp ggml-common.h). */
enum { LB_IQ4_TABLE = 0, LB_FP4_TABLE = 1, LB_N_TABLES };
static const uint8_t lb_tables[LB_N_TABLES][16] = {
    {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241},
    {128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116},
};

/* Bits of the low plane; the others are in the high one. */
static inline int lb_low_bits(int bits) { return bits > 3 ? 4 : 2; }

static inline uint32_t lb_each_byte(uint32_t byte) { return byte * 0x01010101u; }

/* Puts codes into the `bits` words of a row, which lie 64 bytes apart. */
static inline void lb_pack_planes(const uint8_t *codes, int bits, uint8_t *words) {
    const int low = lb_low_bits(bits);
    for (int t = 0; t < bits; t++, words += 64) {
        const int high = t >= low, n = high ? bits - low : low, first = high ? t - low : t;
        uint32_t word = 0;
        for (int f = 0; f < 8 / n; f++) {
            uint32_t four;
            memcpy(&four, codes + 4 * (n * f + first), 4);
            word |= (four >> (high ? low : 0) & lb_each_byte((1u << n) - 1)) << n * f;
        }
        memcpy(words, &word, 4);
    }
}

/* The code of a column, 0 to 31. */
static inline int32_t lb_plane_code(const uint8_t *words, int bits, int32_t column) {
    const int low = lb_low_bits(bits), high = bits - low, word = column / 4;
    const uint8_t *w = words + column % 4;
    int32_t code = w[64 * (word % low)] >> word / low * low & ((1 << low) - 1);
    if (high) code |= (w[64 * (low + word % high)] >> word / high * high & ((1 << high) - 1)) << low;
    return code;
}

#endif
