#define LB_ISA armv6
#include "../scalar_template.h"
