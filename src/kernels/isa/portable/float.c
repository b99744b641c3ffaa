#include "simd.h"

#define LB_NAME(f) f##__portable
#include "../float_template.h"
