#define LB_ISA avx2
#include "../names.h"
#include "../unpack_template.h"
