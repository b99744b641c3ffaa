#define LB_ISA portable
#include "../table.h"
