/* How a row is cut into panels, of which matmul.c takes one after the other; for U2 and T5. */
#ifndef LB_ZEN4_PANELS_H
#define LB_ZEN4_PANELS_H

enum {
    WORDS = 8, /* of a row and a block */
    COLUMNS = 16 * WORDS,
    PARTS = 5, /* most of a panel: of four words each */
    BLOCKS = 3,
    T5_PIECE = 32 /* words whose fifth codes are a block */
};

/* A scale group: its words [begin, end) of a row, its first column, and columns of fifth codes, in fours. */
typedef struct {
    int32_t n, begin, end, x, fifths;
} group;

/* Up to WORDS words: some from a word of a row on, and the fifth codes of some of T5; and their first columns. */
typedef struct {
    int32_t word, words, x;
    int32_t fifth_word, fifth_words, fifth_x, fifths; /* the latter in words of T5, from fifth_word on */
} block;

/*
 * Some blocks of a scale group. What is prepared begins with a list of the panels; behind the last one is one of no
 * parts. In it, first_byte is where the tiles of a panel begin.
 */
typedef struct {
    block blocks[BLOCKS];
    int32_t n_blocks, parts, group;
    int begins, ends; /* the group */
    size_t first_byte;
} panel;

LB_INLINE int32_t parts_of(block b) { return (b.words + b.fifth_words + 3) / 4; }

LB_INLINE group group_at(const lb_matrix *m, int32_t n) {
    const lb_run run = lb_group_run(m, WORDS, m->format);
    const int32_t usual = run.full * WORDS + run.tail, last = n + 1 == m->n_groups;
    group g = {n, n * usual, last ? m->words : (n + 1) * usual, n * m->group_cols, 0};
    if (m->format == LB_T5) g.fifths = ((last ? m->n_cols - g.x : m->group_cols) - 16 * (g.end - g.begin) + 3) / 4;
    return g;
}

/* A block, and behind it the fifth codes of the piece that it ends; without them where they do not fit. */
LB_INLINE block with_fifths(group g, block b) {
    const int32_t end = b.word + b.words - g.begin, first = (end - 1) / T5_PIECE * T5_PIECE, left = g.fifths - first,
                  fifths = left < end - first ? left : end - first, words = (fifths + 3) / 4;
    if (fifths <= 0 || b.words + words > WORDS) return b;
    b.fifth_word = g.begin + first, b.fifth_words = words, b.fifths = fifths;
    b.fifth_x = g.x + 16 * (g.end - g.begin) + 4 * first;
    return b;
}

LB_INLINE int ends_piece(group g, int32_t word) { return word == g.end || (word - g.begin) % T5_PIECE == 0; }

/* The block from a word on; of no words at the end of the scale group. */
LB_INLINE block block_at(const lb_matrix *m, group g, int32_t word) {
    const int32_t left = g.end - word;
    const block b = {.word = word, .words = left < WORDS ? left : WORDS, .x = g.x + 16 * (word - g.begin)};
    return m->format == LB_T5 && left && ends_piece(g, word + b.words) ? with_fifths(g, b) : b;
}

LB_INLINE block block_after(const lb_matrix *m, group g, block b) {
    const int32_t next = b.word + b.words;
    if (m->format == LB_T5 && !b.fifth_words && ends_piece(g, next)) {
        const block fifths = with_fifths(g, (block){.word = next});
        if (fifths.fifth_words) return fifths;
    }
    return block_at(m, g, next);
}

/* Where the next panel begins. */
typedef struct {
    group group;
    block block;
} cursor;

static cursor first_panel(const lb_matrix *m) {
    const group g = group_at(m, 0);
    return (cursor){g, block_at(m, g, 0)};
}

/* The panel of up to PARTS parts at a cursor, which goes on; of no parts after the last one. */
static panel next_panel(const lb_matrix *m, cursor *c) {
    const group g = c->group;
    block b = c->block;
    panel at = {.group = g.n, .begins = b.word == g.begin};
    for (; parts_of(b) && at.n_blocks < BLOCKS && at.parts + parts_of(b) <= PARTS; b = block_after(m, g, b)) {
        at.blocks[at.n_blocks++] = b;
        at.parts += parts_of(b);
    }
    at.ends = !parts_of(b);
    c->block = b;
    if (at.ends && g.n + 1 < m->n_groups) {
        c->group = group_at(m, g.n + 1);
        c->block = block_at(m, c->group, c->group.begin);
    }
    return at;
}

/* Bytes of the list of panels; and how many parts they have, or 0 where a scale group would have several panels. */
static size_t list_bytes(const lb_matrix *m, size_t *parts) {
    cursor c = first_panel(m);
    size_t n = 1;
    *parts = 0;
    for (panel at; (at = next_panel(m, &c)).parts; n++) {
        *parts += (size_t)at.parts;
        if (m->n_groups > 1 && !(at.begins && at.ends)) return *parts = 0;
    }
    return (n * sizeof(panel) + 63) / 64 * 64;
}

#endif
