#define LB_ISA avxvnni
#include "../table.h"
