/* Fills the table with every kernel of one instruction set: include after defining LB_ISA as its name. */
#include "names.h"

void LB_NAME(lb_init)(lb_kernels *table) {
#ifndef LB_TERNARY_ELSEWHERE
    table->matmul[LB_U2] = LB_NAME(lb_matmul_u2);
#endif
    table->matmul[LB_U4] = LB_NAME(lb_matmul_u4);
    table->matmul[LB_U8] = LB_NAME(lb_matmul_u8);
    table->matmul[LB_F32] = LB_NAME(lb_matmul_f32);
    table->matmul[LB_F16] = LB_NAME(lb_matmul_f16);
    table->matmul[LB_BF16] = LB_NAME(lb_matmul_bf16);
    table->sparse = LB_NAME(lb_sparse);
    table->sparse_finish = LB_NAME(lb_sparse_finish);
    table->to_row_groups = LB_NAME(lb_to_row_groups);
    table->quantize = LB_NAME(lb_quantize);
    table->rms_norm = LB_NAME(lb_rms_norm);
    table->attention = LB_NAME(lb_attention);
    table->kv_store = LB_NAME(lb_kv_store);
    table->glu = LB_NAME(lb_glu);
    table->add = LB_NAME(lb_add);
    table->exp = LB_NAME(lb_exp);
    table->count_from = LB_NAME(lb_count_from);
    table->read = LB_NAME(lb_read);
    table->dot_peak = LB_NAME(lb_dot_peak);
}
