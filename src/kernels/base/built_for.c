/* What the compiler may use everywhere in this build. Data only: it can be read on a CPU that has less. */
#include "cpu.h"

const uint32_t lb_built_for = 0
#if defined(__i386__)
#if defined(__i686__) || defined(__SSE__)
                              | LB_CPU_CMOV
#endif
#if defined(__MMX__)
                              | LB_CPU_MMX
#endif
#if defined(__SSE2__)
                              | LB_CPU_SSE2
#endif
#elif defined(__ARM_FEATURE_SIMD32) && !defined(__aarch64__)
                              | LB_CPU_ARMV6
#endif
    ;
