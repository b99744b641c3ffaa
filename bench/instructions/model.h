/*
 * A random Llama for counting instructions: the same numbers for lowbit's kernels and for plain float code.
 *
 * Linear weights are ternary with one scale per row; embedding and head are one table of int8 with a scale for each 32
 * channels. All scales are exact in float16 and all norm weights are 1. The cache is filled with the same small
 * integers times a scale, as if `position` tokens had come before.
 */
#ifndef LB_BENCH_MODEL_H
#define LB_BENCH_MODEL_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *name;
    int dim, layers, heads, kv_heads, vocab, hidden;
} shape;

static const shape shapes[] = {
    {"260K", 64, 5, 8, 4, 512, 172},
    {"15M", 288, 6, 6, 6, 32000, 768},
    {"110M", 768, 12, 12, 12, 32000, 2048},
};

enum { TOKEN = 7, HEAD_GROUP = 32 };
#define EPSILON 1e-5f
#define ROPE_THETA 10000.0
#define KEY_SCALE 0.015625f /* of the int8 keys and values that fill the cache */

static inline const shape *shape_named(const char *name) {
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        if (strcmp(shapes[i].name, name) == 0) return shapes + i;
    }
    fprintf(stderr, "no shape %s\n", name);
    exit(2);
}

static inline void *take(size_t n, size_t size) {
    void *memory = aligned_alloc(64, (n * size + 63) / 64 * 64);
    if (!memory) {
        fprintf(stderr, "no memory for %zu bytes\n", n * size);
        exit(2);
    }
    return memset(memory, 0, n * size);
}

/* 32 random bits that depend on nothing but their place (a finaliser of MurmurHash3). */
static inline uint32_t bits_at(uint32_t tensor, uint32_t row, uint32_t column) {
    uint32_t h = tensor * 0x9e3779b9u ^ row * 0x85ebca6bu ^ column * 0xc2b2ae35u;
    h ^= h >> 16, h *= 0x85ebca6bu, h ^= h >> 13, h *= 0xc2b2ae35u;
    return h ^ h >> 16;
}

enum { Q, K, V, O, GATE, UP, DOWN, TENSORS_PER_LAYER, TABLE = 1000, KEYS, VALUES };

static inline int ternary_at(int layer, int role, int row, int column) {
    return (int)(bits_at((uint32_t)(layer * TENSORS_PER_LAYER + role), (uint32_t)row, (uint32_t)column) % 3) - 1;
}

/* A power of two near 1 / sqrt(columns), so that activations keep their size. */
static inline float ternary_scale(int columns) {
    float scale = 1.0f;
    while (scale * scale * (float)columns > 1.0f) scale /= 2;
    return scale;
}

static inline int table_at(int row, int column) {
    return (int)(bits_at(TABLE, (uint32_t)row, (uint32_t)column) % 255) - 127;
}

static inline float table_scale(int row, int column) {
    return (float)(1 + bits_at(TABLE + 3, (uint32_t)row, (uint32_t)(column / HEAD_GROUP)) % 4) / 256;
}

static inline int cache_at(int which, int layer, int position, int channel) {
    const uint32_t place = (uint32_t)layer << 16 | (uint32_t)position;
    return channel == 0 ? 127 : (int)(bits_at((uint32_t)which, place, (uint32_t)channel) % 255) - 127;
}

/* Writes the logits for comparison, and prints the token that was chosen, which must be that of the largest. */
static inline int finish(const float *logits, int token, const shape *s, const char *path) {
    for (int i = 0; i < s->vocab; i++) {
        if (logits[i] > logits[token]) return 3;
    }
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(logits, sizeof *logits, (size_t)s->vocab, file) != (size_t)s->vocab || fclose(file) != 0) {
        fprintf(stderr, "cannot write %s\n", path);
        return 2;
    }
    printf("%d\n", token);
    return 0;
}

#endif
