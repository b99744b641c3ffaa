/* Fills the table with every kernel of one instruction set: include after defining LB_ISA as its name. */
#include "../kernels.h"

#define LB_PASTE_(a, b) a##__##b
#define LB_PASTE(a, b) LB_PASTE_(a, b)
#define LB_OWN(f) LB_PASTE(f, LB_ISA)

#ifndef LB_TERNARY_ELSEWHERE
lb_matmul_fn LB_OWN(lb_matmul_u2);
#endif
lb_matmul_fn LB_OWN(lb_matmul_u4), LB_OWN(lb_matmul_u8), LB_OWN(lb_matmul_f32), LB_OWN(lb_matmul_f16),
    LB_OWN(lb_matmul_bf16);
lb_sparse_fn LB_OWN(lb_sparse), LB_OWN(lb_sparse_finish);
lb_to_row_groups_fn LB_OWN(lb_to_row_groups);
lb_quantize_fn LB_OWN(lb_quantize);
lb_rms_norm_fn LB_OWN(lb_rms_norm);
lb_attention_fn LB_OWN(lb_attention);
lb_kv_store_fn LB_OWN(lb_kv_store);
lb_glu_fn LB_OWN(lb_glu);
lb_add_fn LB_OWN(lb_add);
lb_exp_fn LB_OWN(lb_exp);
lb_read_fn LB_OWN(lb_read);
lb_dot_peak_fn LB_OWN(lb_dot_peak);

void LB_OWN(lb_init)(lb_kernels *table);
void LB_OWN(lb_init)(lb_kernels *table) {
#ifndef LB_TERNARY_ELSEWHERE
    table->matmul[LB_U2] = LB_OWN(lb_matmul_u2);
#endif
    table->matmul[LB_U4] = LB_OWN(lb_matmul_u4);
    table->matmul[LB_U8] = LB_OWN(lb_matmul_u8);
    table->matmul[LB_F32] = LB_OWN(lb_matmul_f32);
    table->matmul[LB_F16] = LB_OWN(lb_matmul_f16);
    table->matmul[LB_BF16] = LB_OWN(lb_matmul_bf16);
    table->sparse = LB_OWN(lb_sparse);
    table->sparse_finish = LB_OWN(lb_sparse_finish);
    table->to_row_groups = LB_OWN(lb_to_row_groups);
    table->quantize = LB_OWN(lb_quantize);
    table->rms_norm = LB_OWN(lb_rms_norm);
    table->attention = LB_OWN(lb_attention);
    table->kv_store = LB_OWN(lb_kv_store);
    table->glu = LB_OWN(lb_glu);
    table->add = LB_OWN(lb_add);
    table->exp = LB_OWN(lb_exp);
    table->read = LB_OWN(lb_read);
    table->dot_peak = LB_OWN(lb_dot_peak);
}
