#define LB_ISA avx512vnni
#include "../names.h"
#include "../unpack_template.h"
