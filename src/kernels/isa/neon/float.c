#include "simd.h"

#define LB_NAME(f) f##__neon
#include "../float_template.h"
