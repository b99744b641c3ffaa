#define LB_ISA amx
#define LB_HAS(X) X(matmul_u2) X(matmul_t5) X(matmul_u4) X(matmul_u8) X(matmul_u4m) X(matmul_u8m) X(dot_peak)
#include "../table.h"
