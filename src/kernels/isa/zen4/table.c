#define LB_ISA zen4
#define LB_HAS(X) X(matmul_u2)
#include "../table.h"
