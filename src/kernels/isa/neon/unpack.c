#define LB_ISA neon
#include "../names.h"
#include "../unpack_template.h"
