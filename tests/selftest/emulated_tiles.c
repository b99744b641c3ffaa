/* What the Intel SDM, volume 2, writes under LDTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILESTORED and TDPBSUD. */
#include "emulated_tiles.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TILES = 8, MOST_ROWS = 16, ROW_BYTES = 64 };

typedef struct {
    uint8_t palette, first_row, zeros[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} configuration;

/* Each thread has its own. */
static _Thread_local configuration config; /* palette 0: none */
static _Thread_local uint8_t tiles[TILES][MOST_ROWS][ROW_BYTES];

static void must(int holds, const char *instruction, const char *what) {
    if (holds) return;
    fprintf(stderr, "%s would fault: %s\n", instruction, what);
    abort();
}

/* Rows and bytes of a tile that may be used. */
static int rows_of(int tile, const char *instruction) {
    must(config.palette == 1, instruction, "no configuration");
    must(tile >= 0 && tile < TILES && config.rows[tile] && config.row_bytes[tile], instruction, "no such tile");
    return config.rows[tile];
}

void emulated_loadconfig(const void *memory) {
    static const configuration nothing;
    memcpy(&config, memory, sizeof config);
    must(config.palette == 1, "ldtilecfg", "a palette that is not 1");
    must(!memcmp(config.zeros, nothing.zeros, sizeof config.zeros), "ldtilecfg", "reserved bytes");
    for (int i = 0; i < 16; i++) {
        must(i < TILES || (!config.rows[i] && !config.row_bytes[i]), "ldtilecfg", "more than eight tiles");
        must(config.rows[i] <= MOST_ROWS && config.row_bytes[i] <= ROW_BYTES, "ldtilecfg", "a tile that is too large");
        must(!config.rows[i] == !config.row_bytes[i], "ldtilecfg", "rows without bytes, or bytes without rows");
    }
    memset(tiles, 0, sizeof tiles);
}

void emulated_release(void) { memset(&config, 0, sizeof config); }

int emulated_in_use(void) { return config.palette != 0; }

void emulated_zero(int tile) {
    rows_of(tile, "tilezero");
    memset(tiles[tile], 0, sizeof tiles[tile]);
}

void emulated_loadd(int tile, const void *memory, ptrdiff_t stride) {
    const int rows = rows_of(tile, "tileloadd");
    memset(tiles[tile], 0, sizeof tiles[tile]);
    for (int row = 0; row < rows; row++) {
        memcpy(tiles[tile][row], (const uint8_t *)memory + row * stride, config.row_bytes[tile]);
    }
}

void emulated_stored(int tile, void *memory, ptrdiff_t stride) {
    const int rows = rows_of(tile, "tilestored");
    for (int row = 0; row < rows; row++) {
        memcpy((uint8_t *)memory + row * stride, tiles[tile][row], config.row_bytes[tile]);
    }
}

void emulated_dpbsud(int sums, int is_signed, int is_unsigned) {
    const int rows = rows_of(sums, "tdpbsud"), lanes = config.row_bytes[sums] / 4;
    const int fours = rows_of(is_unsigned, "tdpbsud");
    must(sums != is_signed && sums != is_unsigned && is_signed != is_unsigned, "tdpbsud", "a tile that is named twice");
    must(rows == rows_of(is_signed, "tdpbsud"), "tdpbsud", "other rows of sums than of signed bytes");
    must(config.row_bytes[sums] == config.row_bytes[is_unsigned], "tdpbsud", "other lanes of sums than of codes");
    must(config.row_bytes[is_signed] == 4 * fours, "tdpbsud", "other columns of signed than of unsigned bytes");
    must(lanes * 4 == config.row_bytes[sums], "tdpbsud", "a part of a lane");
    for (int row = 0; row < rows; row++) {
        uint32_t sum[MOST_ROWS]; /* unsigned: wraps around, as the instruction's do */
        memcpy(sum, tiles[sums][row], sizeof sum);
        for (int i = 0; i < fours; i++) {
            const int8_t *x = (const int8_t *)&tiles[is_signed][row][4 * i];
            const uint8_t *w = tiles[is_unsigned][i];
            for (int lane = 0; lane < lanes; lane++, w += 4) {
                sum[lane] += (uint32_t)(x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3]);
            }
        }
        memcpy(tiles[sums][row], sum, 4 * (size_t)lanes);
    }
}
