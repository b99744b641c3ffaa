#define LB_ISA portable
#include "../names.h"
#include "../unpack_template.h"
