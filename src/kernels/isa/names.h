/*
 * The kernels of one instruction set: LB_NAME(f) is the exported name of f, such as f__avx2, where LB_ISA is avx2. Each
 * is declared with the type that the table of kernels has for it, so a definition of another type does not compile.
 */
#ifndef LB_NAMES_H
#define LB_NAMES_H

#include "kernels.h"

#define LB_PASTE_(a, b) a##__##b
#define LB_PASTE(a, b) LB_PASTE_(a, b)
#define LB_NAME(f) LB_PASTE(f, LB_ISA)

#define LB_DECLARE(name, type) type LB_NAME(lb_##name);
LB_KERNELS(LB_DECLARE)
#undef LB_DECLARE
void LB_NAME(lb_init)(lb_kernels *table);

#endif
