/* MMX has no floats: only the integer products differ from the portable set. */
#include "../../kernels.h"

lb_matmul_fn lb_matmul_u2__mmx, lb_matmul_u4__mmx, lb_matmul_u8__mmx;

LB_DECLARE_ISA(mmx)

void lb_init__mmx(lb_kernels *table) {
    table->matmul[LB_U2] = lb_matmul_u2__mmx;
    table->matmul[LB_U4] = lb_matmul_u4__mmx;
    table->matmul[LB_U8] = lb_matmul_u8__mmx;
}
