#define LB_ISA neon
#include "../table.h"
