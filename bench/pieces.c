/*
 * The least time in which one core gets some pieces of a matrix out of memory: they are read, in order, and nothing
 * is computed. Built and called by sparse.py, as the limit of a product that skips the other pieces.
 *
 * Each piece is prefetched into the second cache `ahead` pieces before it is read; 0: the hardware is left alone.
 */
#include <stddef.h>
#include <stdint.h>

uint64_t read_pieces(const uint8_t *memory, size_t piece, const int32_t *chosen, int32_t n, int32_t ahead) {
    uint64_t sum = 0;
    for (int32_t i = 0; i < n; i++) {
        const uint64_t *p = (const uint64_t *)(memory + piece * (size_t)chosen[i]);
        const uint8_t *next = memory + piece * (size_t)chosen[i + ahead < n ? i + ahead : n - 1];
        for (size_t j = 0; j < piece / 64; j++) {
            if (ahead) __builtin_prefetch(next + 64 * j, 0, 2);
            sum ^= p[8 * j]; /* one word brings the line */
        }
    }
    return sum;
}
