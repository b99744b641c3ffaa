/* What differs from the portable set: all but the products of float weights. */
#define LB_ISA mmx
#include "../names.h"

void LB_NAME(lb_init)(lb_kernels *table) {
    table->matmul[LB_U2] = LB_NAME(lb_matmul_u2);
    table->matmul[LB_U4] = LB_NAME(lb_matmul_u4);
    table->matmul[LB_U8] = LB_NAME(lb_matmul_u8);
    table->quantize = LB_NAME(lb_quantize);
    table->rms_norm = LB_NAME(lb_rms_norm);
    table->attention = LB_NAME(lb_attention);
    table->kv_store = LB_NAME(lb_kv_store);
    table->glu = LB_NAME(lb_glu);
    table->add = LB_NAME(lb_add);
    table->exp = LB_NAME(lb_exp);
}
