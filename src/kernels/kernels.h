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

/* Number formats of a matrix. Integer codes are unsigned and have an offset: weight = (code - offset) * scale. */
enum {
    LB_U2 = 0, /* ternary: codes 0..2, offset 1 */
    LB_U4 = 1, /* codes 0..15, offset 8 */
    LB_U8 = 2, /* codes 0..255, offset 128 */
    LB_F32 = 3,
    LB_F16 = 4,
    LB_BF16 = 5,
    LB_N_FORMATS = 6
};

/*
 * A matrix of n_rows x n_cols weights, packed.
 *
 * Integer formats. A row is cut into blocks of block_cols columns, a block into 32-bit words; the last block
 * of a row may be shorter. A word holds four bytes b = 0..3, and each byte one code per field f:
 *
 *     U2: four fields of 2 bits, U4: two fields of 4 bits, U8: one field of 8 bits
 *     column of (word t, byte b, field f) of a block with W words:  4*W*f + 4*t + b
 *
 *     one row group:  | word 0: row 0, row 1, ... row 15 | word 1: row 0, ... | ...      (64 bytes per word)
 *
 * With 128 columns to a block this is the order inside TQ2_0 and I2_S, with 32 that inside Q4_0 and Q8_0, so
 * packing these is a transposition of 32-bit words. Codes beyond n_rows or n_cols are the offset (weight 0).
 *
 * A scale belongs to group_cols columns of a row: scales[row group][group][16], float32 or float16.
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
} lb_matrix;

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

/* y = x W^T for all tokens and for the rows of the row groups [begin, end). */
typedef struct {
    const lb_matrix *w;
    const lb_activations *x;
    float *y;      /* (n_tokens, y_stride) */
    int32_t *sums; /* if not NULL: write the unscaled integer sums here instead; needs n_groups == 1 */
    ptrdiff_t y_stride;
} lb_matmul_args;

enum { LB_KV_F32 = 0, LB_KV_F16 = 1, LB_KV_I8 = 2 };

/*
 * One layer's keys and values of one sequence.
 *     keys:   [kv head][position / 16][channel][16 positions]     a lane is a position
 *     values: [kv head][position][channel, padded to 16]          a lane is a channel
 *     scales: [kv head][position], float32, of int8 keys and values: one per head and position
 */
typedef struct {
    void *keys, *values;
    float *key_scales, *value_scales;
    ptrdiff_t key_stride, value_stride, scale_stride; /* elements from one kv head to the next */
} lb_kv;

typedef struct {
    const float *q;           /* (n_rows, q_stride): n_heads x head_dim, already scaled by head_dim**-0.5 */
    float *out;               /* (n_rows, n_heads, head_dim) */
    const lb_kv *kv;          /* (n_rows,) */
    const int32_t *positions; /* (n_rows,): attends to 0..position */
    ptrdiff_t q_stride;
    int32_t n_heads, n_kv_heads, head_dim, kv_type;
} lb_attention_args;

#define LB_MAX_HEAD_DIM 512

typedef void lb_matmul_fn(const lb_matmul_args *args, int32_t begin, int32_t end);
/*
 * s = 127 / max(max|x|, 1e-5), q = round half even(x s), scale = 1 / s: one s for all n columns if per_token, else one
 * for each group of group_cols columns. sum is per group in both cases, and scale is written once per group.
 */
typedef void lb_quantize_fn(const float *x, int32_t n, int32_t group_cols, int32_t per_token, int32_t padded, int8_t *q,
                            float *scale, int32_t *sum);
typedef void lb_rms_norm_fn(const float *x, const float *weight, int32_t n, float eps, float *out);
/* Some rows, one kv head: all query heads that share it. A row's result is the same whichever rows come with it. */
typedef void lb_attention_fn(const lb_attention_args *args, int32_t row, int32_t rows, int32_t kv_head);
typedef void lb_kv_store_fn(const float *k, const float *v, const lb_kv *kv, const lb_attention_args *shape,
                            int32_t position);
/* gate = activation(gate) * up */
typedef void lb_glu_fn(float *gate, const float *up, int32_t n, int32_t relu2);
typedef void lb_add_fn(float *x, const float *y, int32_t n);
typedef void lb_exp_fn(const float *x, float shift, float factor, int32_t n,
                       float *out); /* exp((x - shift) * factor) */

/* Reads n words as fast as the core can; returns something that depends on all of them. */
typedef uint64_t lb_read_fn(const uint64_t *memory, size_t n);
/* Runs the int8 dot product of the instruction set `rounds` times in registers; returns the multiply-adds done. */
typedef int64_t lb_dot_peak_fn(int32_t rounds);

typedef struct {
    lb_matmul_fn *matmul[LB_N_FORMATS];
    lb_quantize_fn *quantize;
    lb_rms_norm_fn *rms_norm;
    lb_attention_fn *attention;
    lb_kv_store_fn *kv_store;
    lb_glu_fn *glu;
    lb_add_fn *add;
    lb_exp_fn *exp;
    lb_read_fn *read;
    lb_dot_peak_fn *dot_peak;
} lb_kernels;

/* Declares the function that puts the kernels of one instruction set into a table. */
#define LB_DECLARE_ISA(isa) void lb_init__##isa(lb_kernels *table);

static inline int32_t lb_row_groups(int32_t rows) { return (rows + LB_ROWS - 1) / LB_ROWS; }

#endif
