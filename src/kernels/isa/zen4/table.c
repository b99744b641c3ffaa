#define LB_ISA zen4
#define LB_HAS(X) LB_SOME_KERNELS(X)
#include "../table.h"
