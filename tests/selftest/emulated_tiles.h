/*
 * The tile instructions of AMX as functions, for CPUs without it: included before the code of isa/amx (run.py), whose
 * intrinsics become calls of emulated_tiles.c. What an instruction would fault on ends the program.
 */
#ifndef LB_EMULATED_TILES_H
#define LB_EMULATED_TILES_H

#include <stddef.h>

void emulated_loadconfig(const void *config);
void emulated_release(void);
void emulated_zero(int tile);
void emulated_loadd(int tile, const void *memory, ptrdiff_t stride);
void emulated_stored(int tile, void *memory, ptrdiff_t stride);
void emulated_dpbsud(int sums, int is_signed, int is_unsigned);

/* Whether tiles are configured, and thus saved with this thread's registers. */
int emulated_in_use(void);

#if defined(__AVX512F__)
#include <immintrin.h>
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbsud
#define _tile_loadconfig emulated_loadconfig
#define _tile_release emulated_release
#define _tile_zero emulated_zero
#define _tile_loadd emulated_loadd
#define _tile_stored emulated_stored
#define _tile_dpbsud emulated_dpbsud
#endif

#endif
