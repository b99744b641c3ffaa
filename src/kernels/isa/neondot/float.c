#include "../neon/simd.h"

#define LB_ISA neondot
#include "../float_template.h"
