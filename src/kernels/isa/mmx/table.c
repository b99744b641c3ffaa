#define LB_ISA mmx
#define LB_HAS(X) \
    X(matmul_u2)  \
    X(matmul_u4)  \
    X(matmul_u8)  \
    X(matmul_u4m) \
    X(matmul_u8m) \
    X(matmul_up)  \
    X(matmul_upm) \
    X(matmul_ut)  \
    X(quantize) X(rms_norm) X(attention) X(attention_sum) X(kv_store) X(glu) X(add) X(exp) X(delta) X(sketch) X(row_u8)
#include "../table.h"
