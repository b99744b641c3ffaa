#define LB_ISA avx512vnni
#include "../table.h"
