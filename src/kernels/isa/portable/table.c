#define LB_ISA portable
#define LB_HAS LB_KERNELS
#include "../table.h"
