/* The ternary product of this instruction set is in ternary.pyx, which registers it. */
#define LB_TERNARY_ELSEWHERE
#define LB_ISA portable
#include "../table.h"
