#include "simd.h"

#define LB_ISA portable
#include "../float_template.h"
#include "../mixer_template.h"
#include "../sketch_template.h"
