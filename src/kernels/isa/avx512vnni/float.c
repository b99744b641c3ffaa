#include "simd.h"

#define LB_NAME(f) f##__avx512vnni
#include "../float_template.h"
