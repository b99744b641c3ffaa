#include "simd.h"

#define LB_ISA avx512vnni
#include "../float_template.h"
#include "../mixer_template.h"
#include "../sketch_template.h"
