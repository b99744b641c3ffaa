#define LB_ISA avxvnni
#define LB_HAS(X) \
    X(matmul_u2)  \
    X(matmul_u4)  \
    X(matmul_u8)  \
    X(matmul_u4m) \
    X(matmul_u8m) X(matmul_t5) X(matmul_up) X(matmul_upm) X(matmul_ut) X(streams) X(dot_peak) X(sparse) X(sparse_finish)
#include "../table.h"
