#include "../sse2/simd.h"

#define LB_NAME(f) f##__ssse3
#include "../float_template.h"
