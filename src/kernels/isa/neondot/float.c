#include "../neon/simd.h"

#define LB_NAME(f) f##__neondot
#include "../float_template.h"
