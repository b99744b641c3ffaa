/*
 * Floats on a CPU without SSE. The x87 computes with mantissas of 64 bits and rounds to the 24 of a float only when a
 * value is stored, at places that the compiler chooses. With its precision control set to 24 bits, every addition,
 * multiplication, division and square root rounds as float arithmetic does: the bits are those of every other CPU, but
 * where a result is subnormal. The setting belongs to a thread, and doubles would suffer from it, so it holds only
 * while a kernel runs.
 */
#ifndef LB_X87_H
#define LB_X87_H

#include <stdint.h>

#if defined(__i386__) && defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0
/* Returns what lb_end_floats takes. */
static inline int32_t lb_begin_floats(void) {
    uint16_t before, single;
    __asm__ volatile("fnstcw %0" : "=m"(before));
    single = before & ~0x0300;
    __asm__ volatile("fldcw %0" : : "m"(single));
    return before;
}
static inline void lb_end_floats(int32_t before) {
    const uint16_t word = (uint16_t)before;
    __asm__ volatile("fldcw %0" : : "m"(word));
}
#else
static inline int32_t lb_begin_floats(void) { return 0; }
static inline void lb_end_floats(int32_t before) { (void)before; }
#endif

#endif
