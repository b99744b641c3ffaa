/*
 * Plain C, channel-major, with additions and look-ups only. Four channels have 81 possible sums for one output: they
 * are made once for the 256 outputs of a line, and the fields of the channels' bytes, transposed, are the places to
 * look them up. Sums are those of sparse_simd.h for registers of 64 bytes; a part sums to at most 2 * 128 * 2**16.
 */
#include "simd.h"

#define LB_ISA portable
#define LB_WIDTH 64
#include "../inline.h"

/* sums[a + 4 b + 16 c + 64 d] = a q0 + b q1 + c q2 + d q3 for codes of 0..2, by additions */
static void make_table(const int8_t *q, int16_t sums[256]) {
    sums[0] = 0;
    for (int i = 0, made = 1; i < 4; i++, made *= 4) {
        for (int at = 0; at < 2 * made; at++) sums[made + at] = (int16_t)(sums[at] + q[i]);
    }
}

/* Bits 2 f and 2 f + 1 of the four bytes of a word, next to each other: byte f of the result. */
static inline uint32_t transpose(uint32_t w) {
    uint32_t t = (w ^ w >> 6) & 0x000c000cu; /* swaps the fields 1 of even bytes with the fields 0 of odd ones */
    w ^= t ^ t << 6;
    t = (w ^ w >> 6) & 0x00c000c0u; /* and the fields 3 with the fields 2 */
    w ^= t ^ t << 6;
    t = (w ^ w >> 12) & 0x0000f0f0u; /* then the upper halves of bytes 0 and 1 with the lower ones of 2 and 3 */
    return w ^ t ^ t << 12;
}

static void add_eight(const uint8_t *const w[8], const int8_t *q, int32_t at, int32_t *acc, const int first) {
    int16_t sums[2][256] = {{0}};
    make_table(q, sums[0]);
    make_table(q + 4, sums[1]);
    for (int byte = 0; byte < LB_WIDTH; byte++) {
        const int32_t i = at + byte;
        const uint32_t a = transpose(w[0][i] | w[1][i] << 8 | w[2][i] << 16 | (uint32_t)w[3][i] << 24);
        const uint32_t b = transpose(w[4][i] | w[5][i] << 8 | w[6][i] << 16 | (uint32_t)w[7][i] << 24);
        int32_t *to = acc + byte % 16 / 4 * 16 + byte / 16 * 4 + byte % 4;
        for (int f = 0; f < 4; f++, to += LB_WIDTH) {
            *to = (first ? 0 : *to) + sums[0][a >> 8 * f & 255] + sums[1][b >> 8 * f & 255];
        }
    }
}

static inline i32x16 load_sums(const int32_t *acc, int field) {
    (void)field;
    LB_EACH(i32x16, acc[i / 4 * 16 + i % 4]);
}

#include "../sparse_template.h"
#include "../transpose_template.h"
