#define LB_ISA neoni8mm
#define LB_HAS(X) X(matmul_u2) X(matmul_u4) X(matmul_u8) X(matmul_u4m) X(matmul_u8m) X(dot_peak)
#include "../table.h"
