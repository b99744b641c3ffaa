/* Codes in planes (kernels.h) become bytes, for sixteen rows: 32 columns, in their order. */
#ifndef LB_UNPACK_PLANES_H
#define LB_UNPACK_PLANES_H

#include "inline.h"
#include "planes.h"

/* One of the words of bytes that a block becomes: its bits of the two planes, and `first`. */
LB_INLINE void lb_unpack_word(const uint8_t *w, const int word, const int low, const int high, const uint32_t first,
                              uint8_t *codes) {
    const uint8_t *from = w + 64 * (word % low), *more = high ? w + 64 * (low + word % high) : w;
    LB_UNROLL(1) /* a loop that compilers make vectors of, and not sixteen copies */
    for (int i = 0; i < 16; i++) {
        uint32_t v, u, code;
        memcpy(&v, from + 4 * i, 4);
        memcpy(&u, more + 4 * i, 4);
        code = first | (v >> (word / low * low) & lb_each_byte((1u << low) - 1));
        if (high) code |= (u >> word / (high ? high : 1) * high & lb_each_byte((1u << high) - 1)) << low;
        memcpy(codes + 64 * word + 4 * i, &code, 4);
    }
}

LB_INLINE void lb_unpack_block(const uint8_t *w, const int low, const int high, const uint32_t first, uint8_t *codes) {
    lb_unpack_word(w, 0, low, high, first, codes);
    lb_unpack_word(w, 1, low, high, first, codes);
    lb_unpack_word(w, 2, low, high, first, codes);
    lb_unpack_word(w, 3, low, high, first, codes);
    lb_unpack_word(w, 4, low, high, first, codes);
    lb_unpack_word(w, 5, low, high, first, codes);
    lb_unpack_word(w, 6, low, high, first, codes);
    lb_unpack_word(w, 7, low, high, first, codes);
}

/* `first` is a bit of each byte that no code has, or 0. */
LB_INLINE void lb_unpack_planes(const uint8_t *w, int bits, const uint8_t first, uint8_t *codes) {
    const uint32_t start = lb_each_byte(first);
    switch (bits) {
    case 2:
        lb_unpack_block(w, 2, 0, start, codes);
        break;
    case 3:
        lb_unpack_block(w, 2, 1, start, codes);
        break;
    case 5:
        lb_unpack_block(w, 4, 1, start, codes);
        break;
    default:
        lb_unpack_block(w, 4, 2, start, codes);
    }
}

/* Codes of four bits become what they stand for; four of them are put together before they are stored. */
LB_INLINE void lb_look_up(const uint8_t *w, const uint8_t *table, uint8_t *codes) {
    for (int i = 0; i < 4 * 64; i += 4, w += 4, codes += 4) {
        uint32_t low = 0, high = 0;
        for (int b = 0; b < 4; b++) {
            low |= (uint32_t)table[w[b] & 15] << 8 * b;
            high |= (uint32_t)table[w[b] >> 4] << 8 * b;
        }
#if defined(__GNUC__)
        __asm__("" : "+r"(low), "+r"(high)); /* or GCC would make vectors of it, byte by byte */
#endif
        memcpy(codes, &low, 4);
        memcpy(codes + 4 * 64, &high, 4);
    }
}

#endif
