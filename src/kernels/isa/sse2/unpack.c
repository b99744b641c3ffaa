#define LB_ISA sse2
#include "../names.h"
#include "../unpack_template.h"
