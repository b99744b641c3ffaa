/*
 * The types that the micro-kernels read, and the table through which they are called.
 *
 * One idea runs through all of them: a lane is an output. Sixteen output rows form a row group, and the
 * weights of a row group lie interleaved, so that one 64-byte read brings the same few columns of all
 * sixteen rows. Activations are broadcast. There are no horizontal sums, each thread reads one sequential
 * stream, and a result never depends on how wide the registers are, on the number of threads, or on what
 * else is in the batch.
 */
#ifndef LB_KERNELS_H
#define LB_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define LB_ROWS 16 /* output rows in a row group */

/*
 * Number formats of a matrix. Integer codes are unsigned and have an offset: weight = (code - offset) * scale, and
 * where scales come with minima, weight = (code - offset) * scale + minimum. Those of 3, 5 or 6 bits (of 2 or 5, with
 * minima) lie in planes.
 */
enum {
    LB_U2 = 0,  /* ternary: codes 0..2, offset 1 */
    LB_U4 = 1,  /* codes 0..15, offset 8 */
    LB_U8 = 2,  /* codes 0..255, offset 128 */
    LB_U4M = 3, /* codes 0..15, offset 0, with minima */
    LB_U8M = 4, /* codes 0..255, offset 128, with minima */
    LB_T5 = 5,  /* ternary, five to a byte: codes 0..2, offset 1 */
    LB_UP = 6,  /* codes of `bits` bits, offset 2**(bits - 1), in planes */
    LB_UPM = 7, /* the same, offset 0, with minima */
    LB_UT = 8,  /* codes 0..15 in a plane, which stand for bytes of a table, offset 128 */
    LB_F32 = 9,
    LB_F16 = 10,
    LB_BF16 = 11,
    LB_N_FORMATS = 12
};

/*
 * A matrix of n_rows x n_cols weights, packed.
 *
 * Integer formats. A row is cut into blocks of block_cols columns, a block into 32-bit words; the last block
 * of a row may be shorter. A word holds four bytes b = 0..3, and each byte one code per field f:
 *
 *     U2: four fields of 2 bits, U4 and U4M: two fields of 4 bits, U8 and U8M: one field of 8 bits
 *     column of (word t, byte b, field f) of a block with W words:  4*W*f + 4*t + b
 *
 *     one row group:  | word 0: row 0, row 1, ... row 15 | word 1: row 0, ... | ...      (64 bytes per word)
 *
 * With 128 columns to a block this is the order inside TQ2_0 and I2_S, with 32 that inside Q4_0, Q4_1 and Q8_0, so
 * packing these is a transposition of 32-bit words. Codes beyond n_rows or n_cols are the offset, and what lies beyond
 * n_cols meets activations of 0.
 *
 * T5 needs four fifths of U2's bytes. A scale group of n columns takes W = ceil(n / 20) words, and a byte of them is
 * c0 + 3 c1 + 9 c2 + 27 c3 + 84 c4: c0 to c3 are what the four fields of U2 would be in a row of 16 W columns, cut into
 * blocks of 128, and c4 of byte b of word t of the group is column 16 W + 4 t + b. Codes of columns beyond the group
 * are 0, and meet activations of any value. The 84 rather than 81 is for table look-ups: b / 4 tells c4.
 *
 * UP, UPM and UT have blocks of 32 columns. A code is taken apart into its lowest 4 bits (2, where it has no more than
 * 3) and the rest of 1 or 2. Each part has a plane: as many words as it has bits, the low plane first. Part p of column
 * (field f, word t, byte b) of a plane of p bits is column 4 * (p * f + t) + b: for 4 bits that is the order of Q4_0.
 *
 * A scale belongs to group_cols columns of a row: scales[row group][group][16], float32 or float16. With minima it is
 * scales[row group][group][2][16], the scales first. U4M, UP, UPM and UT may also have those of the K types, which are
 * products, in little memory (scales_super). For each 256 columns there are 16 float32 d, where there are minima 16
 * of -dmin, and then for each group, of 16 or 32 columns, 16 signed bytes, and 16 more for the minima. scale = d * the
 * first byte, minimum = -dmin * the second.
 *
 * Float formats: values[row group][column][16], no blocks, no scales.
 */
typedef struct {
    const uint8_t *codes; /* 64-byte aligned */
    const void *scales;
    int32_t format;
    int32_t n_rows, n_cols;
    int32_t block_cols;
    int32_t group_cols; /* a multiple of block_cols, or n_cols */
    int32_t n_groups;
    int32_t words;      /* words per row, all blocks together */
    int32_t scales_f16; /* scales are float16 rather than float32 */
    int32_t scales_super; /* scales are small integers times floats */
    int32_t tiles;        /* 0, or the tiles of the channel-major order */
    int32_t bits;         /* of a code, where they lie in planes */
    int32_t table;        /* what codes of UT stand for: a row of lb_tables (planes.h) */
} lb_matrix;

/*
 * The other order of a U2 matrix, for inputs that are mostly zeros: channel-major. A line is 64 bytes with the codes
 * of 256 outputs for one channel (input column). The lines of all outputs are cut into tiles of 640 to 864 bytes where
 * there are enough of them, and a tile holds its lines channel by channel, so that a channel that is zero is skipped
 * in a piece that is long enough for memory to skip it too:
 *
 *     tile:   | channel 0: line 0, 1, ... | channel 1: line 0, 1, ... | ...
 *     output of byte b and field f of a line:  64 * (b / 16) + 16 * f + b % 16       (16 outputs: a row group)
 *
 * Scales lie as scales[group][output], with n_rows rounded up to whole lines. `words` and `block_cols` are those of
 * the row groups that lb_kernels.to_row_groups makes of it.
 */
#define LB_LINE_ROWS 256
#define LB_CHANNELS 8 /* active channels that are taken together */

/* int8 activations of n_tokens rows, each padded with zeros to `stride` columns; x is about q * scale. */
typedef struct {
    const int8_t *q;      /* (n_tokens, stride) */
    const float *scale;   /* (n_tokens, n_groups) */
    const int32_t *sum;   /* (n_tokens, n_groups): sum of q over the group */
    const float *x;       /* (n_tokens, stride) instead of all of the above, for float formats */
    int32_t stride;
    int32_t n_groups; /* that of the matrix */
    int32_t n_tokens;
} lb_activations;

/*
 * Types that lie in files in blocks whose bytes are not those of a matrix, and are unpacked: K types as they are, to
 * U4M, UP or UPM with scales_super; IQ4_XS likewise and MXFP4 with float32 scales, to UT; the others to U8, with
 * float32 scales.
 */
#define LB_STORED_TYPES(X) \
    X(LB_IQ1_S)            \
    X(LB_IQ1_M)            \
    X(LB_IQ2_XXS)          \
    X(LB_IQ2_XS)           \
    X(LB_IQ2_S)            \
    X(LB_IQ3_XXS)          \
    X(LB_IQ3_S)            \
    X(LB_IQ4_XS)           \
    X(LB_MXFP4) X(LB_Q2_K) X(LB_Q3_K) X(LB_Q4_K) X(LB_Q5_K) X(LB_Q6_K)
#define LB_LISTED(type) type,
enum { LB_STORED_TYPES(LB_LISTED) LB_N_STORED_TYPES };
#undef LB_LISTED

typedef struct {
    int32_t type;
    int32_t block_cols, block_bytes;
    const uint64_t *table; /* what indices and signs stand for; NULL where there are none */
} lb_stored;

/* y = x W^T for all tokens and for the rows of the row groups [begin, end). */
typedef struct {
    const lb_matrix *w;
    const lb_activations *x;
    float *y;      /* (n_tokens, y_stride) */
    int32_t *sums; /* if not NULL: write the unscaled integer sums here instead; needs n_groups == 1 */
    ptrdiff_t y_stride;
} lb_matmul_args;

/*
 * One token's product with a channel-major matrix, in two steps. First `sparse` for the units tile * n_parts + part:
 * part p takes the active channels ends[p] to ends[p + 1], and writes sums of code * q, in an order of its own. Then
 * `sparse_finish` for the lines: it subtracts the offset, scales and adds the parts, as the row-group kernels would.
 * The parts are the scale groups if there are several; otherwise they are cut as it suits the threads.
 */
typedef struct {
    const lb_matrix *w;
    const int32_t *channels; /* each part is filled up to a multiple of LB_CHANNELS, with channels of q = 0 */
    const int8_t *q;         /* at most 2**16 of them to a part */
    const int32_t *ends;     /* (n_parts + 1,) */
    int32_t n_parts;
    int32_t *partial;   /* (n_parts, n_rows rounded up to lines) */
    const float *scale; /* (n_groups,) */
    const int32_t *sum; /* (n_groups,): sum of q */
    float *y;           /* (n_rows,) */
    int32_t *sums;      /* if not NULL: write the unscaled sums here instead; needs n_groups == 1 */
} lb_sparse_args;

/*
 * What the rows of a matrix are about, to find its largest products without making all of them (ops/shortlist.h): codes
 * of -15 to 15, and a scale for each row. An int16 lane holds the codes of two rows, low + 2048 * high:
 *
 *     codes[row group][8 columns: span][quad q][pair j][lanes]:   row of lane l: low 4 q + l / 2, high 4 q + 2 + l / 2
 *                                                               column of lane l: 2 j + l % 2
 *
 * Inputs are int16 z[span][pair j][lanes], columns 2 j, 2 j + 1 and again 2 j, 2 j + 1. Magnitudes of a span sum to at
 * most 68, so that the two products stay apart: 15 * 68 < 1024. All spans: 1020 * 2049 * 1024 < 2**31.
 */
#define LB_SPAN_COLS 8
#define LB_SPAN_LANES (LB_ROWS * LB_SPAN_COLS / 2)
typedef struct {
    const int16_t *codes;
    const float *scales; /* (row groups, 16) */
    int32_t n_rows, n_cols, spans;
} lb_sketch;

enum { LB_KV_F32 = 0, LB_KV_F16 = 1, LB_KV_I8 = 2 };

/*
 * Keys and values lie in blocks: one of LB_KV_SPAN positions of one sequence, for all layers. This is where one layer's
 * part begins in every block, and how it lies there.
 *     keys:   [kv head][position / 16][channel][16 positions]     a lane is a position
 *     values: [kv head][position][channel, padded to 16]          a lane is a channel
 *     scales: [kv head][position], float32, of int8 keys and values: one per head and position
 * Where values begin at the same place as keys, they are the first channels of these (latents), and have their scales.
 */
#define LB_KV_SPAN 64
#define LB_PIECE 1024 /* positions */
typedef struct {
    size_t keys, values, key_scales, value_scales; /* bytes from the beginning of a block */
    ptrdiff_t key_stride, value_stride;            /* elements from one kv head to the next; 0: they are all one */
} lb_kv;

typedef struct {
    const float *q;             /* (n_rows, q_stride): n_heads x head_dim, already scaled */
    float *out;                 /* (n_rows, n_heads, value_dim) */
    char *const *const *blocks; /* (n_rows,): those of each row's sequence, in the order of their positions */
    const int32_t *positions;   /* (n_rows,): attends to 0..position, if window is 0 */
    lb_kv kv;
    ptrdiff_t q_stride;
    int32_t n_heads, n_kv_heads, head_dim, kv_type;
    int32_t value_dim;  /* channels of a value; head_dim are those of a key */
    int32_t window;     /* else only to the positions that are less than this far back */
    const float *sinks; /* (n_heads,): one more score of each head, which has no value; or NULL */
    float *parts;       /* NULL, or for one row the sums of pieces: (n_heads, n_parts, lb_part_floats(value_dim)) */
    int32_t n_parts;
} lb_attention_args;

#define LB_MAX_HEAD_DIM 512 /* of a value, and of a key that is no latent one */

/* Of a gate: SiLU, squared ReLU, GELU by its approximation with tanh, or gpt-oss's: g / (1 + exp(-1.702 g)), and what
 * it multiplies has 1 added to it first. */
enum { LB_SILU = 0, LB_RELU2 = 1, LB_GELU = 2, LB_SWIGLU_OAI = 3 };

typedef void lb_matmul_fn(const lb_matmul_args *args, int32_t begin, int32_t end);
/*
 * The same for one token and integer weights, with up to `streams` row groups read at once: for the units [begin, end)
 * of lb_units. Unit g is the row groups g, g + units, g + 2 * units, ..., as many as there are.
 */
typedef void lb_streams_fn(const lb_matmul_args *args, int32_t streams, int32_t begin, int32_t end);
/*
 * Products of many tokens, for a set that first makes something of the activations that serves all rows.
 * `prepared_bytes` is the memory that this takes for n_tokens, at most LB_PREPARED_TOKENS; 0: such products are not
 * prepared. `prepare` fills it, for the tiles [begin, end) of LB_PREPARED_TILE tokens, and `matmul_prepared` is the
 * product with it, fastest where it begins and ends between LB_PREPARED_STEP row groups.
 */
#define LB_PREPARED_TOKENS 32
#define LB_PREPARED_TILE 4
#define LB_PREPARED_STEP 4
typedef size_t lb_prepared_bytes_fn(const lb_matrix *m, int32_t n_tokens);
typedef void lb_prepare_fn(const lb_matmul_args *args, void *prepared, int32_t begin, int32_t end);
typedef void lb_matmul_prepared_fn(const lb_matmul_args *args, const void *prepared, int32_t begin, int32_t end);
typedef void lb_sparse_fn(const lb_sparse_args *args, int32_t begin, int32_t end);
/* Writes four row groups (64 outputs, a quarter of a line) of a channel-major matrix as words: 4 * words * 64 bytes. */
typedef void lb_to_row_groups_fn(const lb_matrix *m, int32_t quarter, uint8_t *codes);
/*
 * s = 127 / max(max|x|, 1e-5), q = round half even(x s), scale = 1 / s: one s for all n columns if per_token, else one
 * for each group of group_cols columns. sum is per group in both cases, and scale is written once per group. What is no
 * number counts as 0, and infinity as the largest float, with its sign: q is from -127 to 127, on every set.
 */
typedef void lb_quantize_fn(const float *x, int32_t n, int32_t group_cols, int32_t per_token, int32_t padded, int8_t *q,
                            float *scale, int32_t *sum);
typedef void lb_rms_norm_fn(const float *x, const float *weight, int32_t n, float eps, float *out);
/*
 * Some rows, and the query heads that share some kv heads. A result is the same whichever others come with it: each
 * piece of LB_PIECE positions has sums of its own, and these are added in order. With args->parts only the sums of one
 * piece are made and left there, so that several threads can share a row; attention_sum then makes the output of a
 * head.
 */
typedef void lb_attention_fn(const lb_attention_args *args, int32_t row, int32_t rows, int32_t kv_head,
                             int32_t kv_heads, int32_t piece);
typedef void lb_attention_sum_fn(const lb_attention_args *args, int32_t head);
typedef void lb_kv_store_fn(const float *k, const float *v, char *block, const lb_attention_args *shape,
                            int32_t position);
/* gate = activation(gate) * up */
typedef void lb_glu_fn(float *gate, const float *up, int32_t n, int32_t activation);
typedef void lb_add_fn(float *x, const float *y, int32_t n);
typedef void lb_exp_fn(const float *x, float shift, float factor, int32_t n,
                       float *out); /* exp((x - shift) * factor) */
/*
 * One token of one head of the gated delta rule: M = decay * M; M = M + beta (v - M k) k^T; out = M q. The matrix lies
 * [key][value, padded to 16 with zeros], and is read at `from_` and written at `to`, which may be the same; `out` may
 * be v.
 */
typedef void lb_delta_fn(const float *from_, float *to, const float *q, const float *k, const float *v, float decay,
                         float beta, int32_t size, float *out);
/*
 * The Hadamard transform of each run of `block` values, a power of two that divides n, without the factor
 * 1 / sqrt(block): for the strides 1, 2, 4, ... up to block / 2, in this order, values that far apart become their sum
 * and their difference.
 */
typedef void lb_hadamard_fn(float *x, int32_t n, int32_t block);
/* For the row groups [begin, end): y = sum of code * z, times the scale, for each row, and of each row group the
 * largest. */
typedef void lb_sketch_fn(const lb_sketch *s, const int16_t *z, int32_t begin, int32_t end, float *y, float *best);
/* One row of a U8 matrix, as matmul_u8 would make it, for one token; x are its activations again. */
typedef float lb_row_u8_fn(const lb_matmul_args *args, const int16_t *x, int32_t row);
/*
 * Unpacks stored rows, from `source` on those of row group 0, to the row groups [begin, end) of a matrix; 0 if a scale
 * is not finite.
 */
typedef int lb_unpack_fn(const lb_stored *stored, const uint8_t *source, const lb_matrix *m, int32_t begin,
                         int32_t end);
/* How many magnitudes, as the 31 bits of a float without its sign, are at least `limit`. NaN is above infinity. */
typedef int32_t lb_count_from_fn(const float *x, int32_t n, int32_t limit);

/*
 * Reads n words as fast as the core can, in 1, 2, 4, 8 or 16 streams that begin n / streams words apart; returns their
 * sum. n is a multiple of 8 * streams.
 */
typedef uint64_t lb_read_fn(const uint64_t *memory, size_t n, int32_t streams);
/* Runs the int8 dot product of the instruction set `rounds` times in registers; returns the multiply-adds done. */
typedef int64_t lb_dot_peak_fn(int32_t rounds);

/*
 * All kernels: X(name, type). The field of the table is `name`, the function of a set lb_<name>__<set>; from this list
 * come the table, the declarations (isa/names.h) and what fills the table (isa/table.h). Products come first, in the
 * order of the formats. dispatch.pxd repeats it for Cython, and a test compares the two. LB_SOME_KERNELS are those that
 * only the portable set must have, and sets that have something of their own to do.
 */
#define LB_KERNELS(X) LB_MOST_KERNELS(X) LB_SOME_KERNELS(X)
#define LB_SOME_KERNELS(X)                  \
    X(prepared_bytes, lb_prepared_bytes_fn) \
    X(prepare, lb_prepare_fn)               \
    X(matmul_prepared, lb_matmul_prepared_fn)
#define LB_MOST_KERNELS(X)                \
    X(matmul_u2, lb_matmul_fn)            \
    X(matmul_u4, lb_matmul_fn)            \
    X(matmul_u8, lb_matmul_fn)            \
    X(matmul_u4m, lb_matmul_fn)           \
    X(matmul_u8m, lb_matmul_fn)           \
    X(matmul_t5, lb_matmul_fn)            \
    X(matmul_up, lb_matmul_fn)            \
    X(matmul_upm, lb_matmul_fn)           \
    X(matmul_ut, lb_matmul_fn)            \
    X(matmul_f32, lb_matmul_fn)           \
    X(matmul_f16, lb_matmul_fn)           \
    X(matmul_bf16, lb_matmul_fn)          \
    X(streams, lb_streams_fn)             \
    X(sparse, lb_sparse_fn)               \
    X(sparse_finish, lb_sparse_fn)        \
    X(to_row_groups, lb_to_row_groups_fn) \
    X(quantize, lb_quantize_fn)           \
    X(rms_norm, lb_rms_norm_fn)           \
    X(attention, lb_attention_fn)         \
    X(attention_sum, lb_attention_sum_fn) \
    X(kv_store, lb_kv_store_fn)           \
    X(glu, lb_glu_fn)                     \
    X(add, lb_add_fn)                     \
    X(exp, lb_exp_fn)                     \
    X(delta, lb_delta_fn)                 \
    X(hadamard, lb_hadamard_fn)           \
    X(unpack, lb_unpack_fn)               \
    X(count_from, lb_count_from_fn)       \
    X(sketch, lb_sketch_fn)               \
    X(row_u8, lb_row_u8_fn)               \
    X(read, lb_read_fn)                   \
    X(dot_peak, lb_dot_peak_fn)

#define LB_FIELD(name, type) type *name;
typedef union {
    lb_matmul_fn *matmul[LB_N_FORMATS]; /* the first of the others, by format */
    struct {
        LB_KERNELS(LB_FIELD)
    };
} lb_kernels;
#undef LB_FIELD

/* Declares the function that puts the kernels of one instruction set into a table. */
#define LB_DECLARE_ISA(isa) void lb_init__##isa(lb_kernels *table);

/* The weighted sum of the values, padded; the highest score; the sum of the weights. */
static inline int32_t lb_part_floats(int32_t value_dim) { return (value_dim + 15) / 16 * 16 + 16; }

static inline int32_t lb_row_groups(int32_t rows) { return (rows + LB_ROWS - 1) / LB_ROWS; }

#define LB_MAX_STREAMS 8
static inline int32_t lb_units(int32_t row_groups, int32_t streams) { return (row_groups + streams - 1) / streams; }

/* Whether a format's scales come with minima. */
static inline int lb_has_minima(int32_t format) { return format == LB_U4M || format == LB_U8M || format == LB_UPM; }
static inline int lb_has_planes(int32_t format) { return format == LB_UP || format == LB_UPM || format == LB_UT; }

/* Where the scales of a row group and scale group begin; their minima are the next LB_ROWS. */
static inline size_t lb_scales_at(const lb_matrix *m, int32_t row_group, int32_t group) {
    return ((size_t)row_group * m->n_groups + group) * LB_ROWS * (lb_has_minima(m->format) ? 2 : 1);
}

/* Where scales are multiples of floats: the groups that share one are 1 << this, the columns 256. */
static inline int32_t lb_super_shift(const lb_matrix *m) { return m->group_cols == 16 ? 4 : 3; }
/* Bytes of 256 columns of a row group. */
static inline size_t lb_super_bytes(const lb_matrix *m) {
    return (size_t)(4 + (1 << lb_super_shift(m))) * LB_ROWS * (lb_has_minima(m->format) ? 2 : 1);
}

/* The floats of a group; its bytes, which begin with those of the scales. */
static inline const float *lb_super(const lb_matrix *m, int32_t row_group, int32_t group) {
    const int32_t shift = lb_super_shift(m);
    const size_t at = (size_t)row_group * (size_t)(m->n_groups >> shift) + (size_t)(group >> shift);
    return (const float *)(const void *)((const uint8_t *)m->scales + at * lb_super_bytes(m));
}
static inline const int8_t *lb_multiples(const lb_matrix *m, const float *super, int32_t group) {
    const int32_t rows = lb_has_minima(m->format) ? 2 * LB_ROWS : LB_ROWS;
    return (const int8_t *)(super + rows) + (group & ((1 << lb_super_shift(m)) - 1)) * rows;
}

static inline int32_t lb_lines(int32_t rows) { return (rows + LB_LINE_ROWS - 1) / LB_LINE_ROWS; }

/* The first line of a tile. */
static inline int32_t lb_tile_line(const lb_matrix *m, int32_t tile) {
    return (int32_t)((int64_t)lb_lines(m->n_rows) * tile / m->tiles);
}

/* Where a channel's lines of a tile begin. */
static inline const uint8_t *lb_channel_codes(const lb_matrix *m, int32_t first_line, int32_t lines, int32_t channel) {
    return m->codes + ((size_t)first_line * m->n_cols + (size_t)lines * channel) * 64;
}

#endif
