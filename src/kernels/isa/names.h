/*
 * The kernels of one instruction set: LB_NAME(f) is the exported name of f, such as f__avx2, where LB_ISA is avx2. Each
 * is declared with the type that the table of kernels has for it, so a definition of another type does not compile.
 */
#ifndef LB_NAMES_H
#define LB_NAMES_H

#include "../kernels.h"

#define LB_PASTE_(a, b) a##__##b
#define LB_PASTE(a, b) LB_PASTE_(a, b)
#define LB_NAME(f) LB_PASTE(f, LB_ISA)

lb_matmul_fn LB_NAME(lb_matmul_u2), LB_NAME(lb_matmul_u4), LB_NAME(lb_matmul_u8), LB_NAME(lb_matmul_f32),
    LB_NAME(lb_matmul_f16), LB_NAME(lb_matmul_bf16);
lb_sparse_fn LB_NAME(lb_sparse), LB_NAME(lb_sparse_finish);
lb_to_row_groups_fn LB_NAME(lb_to_row_groups);
lb_quantize_fn LB_NAME(lb_quantize);
lb_rms_norm_fn LB_NAME(lb_rms_norm);
lb_attention_fn LB_NAME(lb_attention);
lb_kv_store_fn LB_NAME(lb_kv_store);
lb_glu_fn LB_NAME(lb_glu);
lb_add_fn LB_NAME(lb_add);
lb_exp_fn LB_NAME(lb_exp);
lb_count_from_fn LB_NAME(lb_count_from);
lb_read_fn LB_NAME(lb_read);
lb_dot_peak_fn LB_NAME(lb_dot_peak);
void LB_NAME(lb_init)(lb_kernels *table);

#endif
