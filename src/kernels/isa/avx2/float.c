#include "simd.h"

#define LB_NAME(f) f##__avx2
#include "../float_template.h"
