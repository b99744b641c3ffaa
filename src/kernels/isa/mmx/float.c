#define LB_ISA mmx
#include "../scalar_template.h"
