#include "simd.h"

#define LB_NAME(f) f##__sse2
#include "../float_template.h"
