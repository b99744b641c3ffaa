#include "../sse2/simd.h"

#define LB_ISA ssse3
#include "../float_template.h"
