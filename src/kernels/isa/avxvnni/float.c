#include "../avx2/simd.h"

#define LB_NAME(f) f##__avxvnni
#include "../float_template.h"
