#define LB_ISA avx2
#include "../table.h"
