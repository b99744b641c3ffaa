/* The tables of kernels, one per instruction set in this build, and the one in use. */
#ifndef LB_TABLE_H
#define LB_TABLE_H

#include "kernels.h"

int lb_isa_count(void);
const char *lb_isa_name(int index);
/* NULL, or why the set cannot run in this process. */
const char *lb_isa_lacks(int index);
/* Replaces the contents of lb_table by the kernels of that instruction set. */
void lb_isa_use(int index);
/* The ternary product of the portable set is written in Cython, so it is handed in. */
void lb_set_portable_ternary(lb_matmul_fn *matmul);

extern lb_kernels lb_table;

#endif
