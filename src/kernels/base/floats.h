/*
 * The mode in which a thread computes floats. It belongs to the thread and is whatever the host program left there:
 * another rounding, or subnormal numbers taken for zeros (PyTorch's set_flush_denormal), would change results. So
 * all that computes floats begins with the mode of C programs (to nearest, subnormals as they are, nothing trapped),
 * and ends with the host's. Where that is the mode already, which is nearly always, nothing is written: looking takes
 * a nanosecond.
 *
 * An x87 is one thing more. It computes with mantissas of 64 bits and rounds to the 24 of a float only when a value is
 * stored, at places that the compiler chooses. With its precision set to 24 bits, every addition, multiplication,
 * division and square root rounds as float arithmetic does: the bits are those of every other CPU, but where a result
 * is subnormal. Doubles would suffer from it, so there are two beginnings.
 */
#ifndef LB_FLOATS_H
#define LB_FLOATS_H

#include <stdint.h>

#if defined(_M_IX86) || defined(_M_X64)
#include <intrin.h>
#define LB_SSE_MODE
static inline uint32_t lb_get_sse_mode(void) { return _mm_getcsr(); }
static inline void lb_set_sse_mode(uint32_t mode) { _mm_setcsr(mode); }
#elif defined(__x86_64__) || defined(__i386__)
#define LB_SSE_MODE
static inline uint32_t lb_get_sse_mode(void) {
    uint32_t mode;
    __asm__ volatile("stmxcsr %0" : "=m"(mode) : : "memory");
    return mode;
}
static inline void lb_set_sse_mode(uint32_t mode) { __asm__ volatile("ldmxcsr %0" : : "m"(mode) : "memory"); }
#elif defined(__aarch64__)
#define LB_ARM_MODE 0xffffffffu
static inline uint32_t lb_get_arm_mode(void) {
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode) : : "memory");
    return (uint32_t)mode;
}
static inline void lb_set_arm_mode(uint32_t mode) {
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)mode) : "memory");
}
#elif defined(_M_ARM64) /* Visual C++ alone: the headers of MinGW say so too */
#include <intrin.h>
#define LB_ARM_MODE 0xffffffffu
static inline uint32_t lb_get_arm_mode(void) { return (uint32_t)_ReadStatusReg(ARM64_FPCR); }
static inline void lb_set_arm_mode(uint32_t mode) { _WriteStatusReg(ARM64_FPCR, mode); }
#elif defined(__arm__) && defined(__ARM_FP)
#define LB_ARM_MODE 0x07ff9f00u /* the rest of the register are flags */
static inline uint32_t lb_get_arm_mode(void) {
    uint32_t mode;
    __asm__ volatile("vmrs %0, fpscr" : "=r"(mode) : : "memory");
    return mode;
}
static inline void lb_set_arm_mode(uint32_t mode) { __asm__ volatile("vmsr fpscr, %0" : : "r"(mode) : "memory"); }
#else
#include <fenv.h>
#endif

#if defined(__i386__) && defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0
#define LB_X87_MODE
enum { LB_X87_FLOATS = 0x007f, LB_X87_DOUBLES = 0x037f, LB_X87_USED = 0x0f3f, LB_X87_MASKED = 0x003f };
static inline uint16_t lb_get_x87_mode(void) {
    uint16_t mode;
    __asm__ volatile("fnstcw %0" : "=m"(mode) : : "memory");
    return mode;
}
static inline void lb_set_x87_mode(uint16_t mode) {
    /* what an x87 found, and a host wants to be told of, would trap at the host's next instruction */
    if ((mode & LB_X87_MASKED) != LB_X87_MASKED) __asm__ volatile("fnclex");
    __asm__ volatile("fldcw %0" : : "m"(mode) : "memory");
}
#endif

#ifdef LB_SSE_MODE
enum { LB_SSE_DEFAULT = 0x1f80, LB_SSE_FLAGS = 0x003f };
#if defined(__i386__) && !defined(__SSE__)
/* A Pentium II has no such register. */
#include "cpu.h"
static inline int lb_has_sse_mode(void) {
    static volatile int known; /* whoever comes first, and all who come at once, find the same */
    if (!known) known = lb_cpu_features() & LB_CPU_SSE2 ? 1 : -1;
    return known > 0;
}
#else
static inline int lb_has_sse_mode(void) { return 1; }
#endif
#endif

/* What lb_end_floats takes back. */
typedef struct {
    uint32_t vectors; /* of SSE or Arm */
    uint16_t x87;
} lb_float_mode;

static inline lb_float_mode lb_begin_mode(uint16_t x87) {
    lb_float_mode before = {0, 0};
#if defined(LB_SSE_MODE)
    if (lb_has_sse_mode()) {
        before.vectors = lb_get_sse_mode();
        if ((before.vectors & ~(uint32_t)LB_SSE_FLAGS) != LB_SSE_DEFAULT) lb_set_sse_mode(LB_SSE_DEFAULT);
    }
#elif defined(LB_ARM_MODE)
    before.vectors = lb_get_arm_mode();
    if (before.vectors & LB_ARM_MODE) lb_set_arm_mode(before.vectors & ~LB_ARM_MODE);
#else
    before.vectors = (uint32_t)fegetround();
    if (before.vectors != FE_TONEAREST) fesetround(FE_TONEAREST);
#endif
#ifdef LB_X87_MODE
    before.x87 = lb_get_x87_mode();
    if ((before.x87 ^ x87) & LB_X87_USED) lb_set_x87_mode(x87);
#else
    (void)x87;
#endif
    return before;
}

static inline void lb_end_floats(lb_float_mode before) {
#if defined(LB_SSE_MODE)
    if (lb_has_sse_mode() && (before.vectors & ~(uint32_t)LB_SSE_FLAGS) != LB_SSE_DEFAULT) {
        lb_set_sse_mode(before.vectors);
    }
#elif defined(LB_ARM_MODE)
    if (before.vectors & LB_ARM_MODE) lb_set_arm_mode(before.vectors);
#else
    if (before.vectors != FE_TONEAREST) fesetround((int)before.vectors);
#endif
#ifdef LB_X87_MODE
    if ((lb_get_x87_mode() ^ before.x87) & LB_X87_USED) lb_set_x87_mode(before.x87);
#endif
}

#ifdef LB_X87_MODE
static inline lb_float_mode lb_begin_floats(void) { return lb_begin_mode(LB_X87_FLOATS); }
static inline lb_float_mode lb_begin_doubles(void) { return lb_begin_mode(LB_X87_DOUBLES); }
#else
static inline lb_float_mode lb_begin_floats(void) { return lb_begin_mode(0); }
static inline lb_float_mode lb_begin_doubles(void) { return lb_begin_mode(0); }
#endif

#endif
