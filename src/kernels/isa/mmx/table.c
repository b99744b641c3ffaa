/* What differs from the portable set: all but the products of float weights. */
#include "../../kernels.h"

lb_matmul_fn lb_matmul_u2__mmx, lb_matmul_u4__mmx, lb_matmul_u8__mmx;
lb_quantize_fn lb_quantize__mmx;
lb_rms_norm_fn lb_rms_norm__mmx;
lb_attention_fn lb_attention__mmx;
lb_kv_store_fn lb_kv_store__mmx;
lb_glu_fn lb_glu__mmx;
lb_add_fn lb_add__mmx;
lb_exp_fn lb_exp__mmx;

LB_DECLARE_ISA(mmx)

void lb_init__mmx(lb_kernels *table) {
    table->matmul[LB_U2] = lb_matmul_u2__mmx;
    table->matmul[LB_U4] = lb_matmul_u4__mmx;
    table->matmul[LB_U8] = lb_matmul_u8__mmx;
    table->quantize = lb_quantize__mmx;
    table->rms_norm = lb_rms_norm__mmx;
    table->attention = lb_attention__mmx;
    table->kv_store = lb_kv_store__mmx;
    table->glu = lb_glu__mmx;
    table->add = lb_add__mmx;
    table->exp = lb_exp__mmx;
}
