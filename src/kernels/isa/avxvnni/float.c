#include "../avx2/simd.h"

#define LB_ISA avxvnni
#include "../float_template.h"
