#define LB_ISA avx512vbmi
#define LB_HAS(X) X(matmul_t5) X(streams)
#include "../table.h"
