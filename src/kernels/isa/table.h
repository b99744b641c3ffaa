/*
 * Puts the kernels of an instruction set into the table of its base. Include after defining LB_ISA as its name, and
 * where it has not all of them, LB_HAS(X) as X(name) for each that it has.
 */
#include "names.h"

#if !defined(LB_HAS)
#define LB_HAS LB_MOST_KERNELS
#endif

#define LB_ENTER(name, ...) table->name = LB_NAME(lb_##name);
void LB_NAME(lb_init)(lb_kernels *table) { LB_HAS(LB_ENTER) }
