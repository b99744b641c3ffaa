#define LB_ISA ssse3
#include "../table.h"
