#define LB_ISA neondot
#include "../table.h"
