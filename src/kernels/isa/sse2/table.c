#define LB_ISA sse2
#include "../table.h"
