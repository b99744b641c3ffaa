/* What the CPU, and the operating system that saves its registers, can do. */
#ifndef LB_CPU_H
#define LB_CPU_H

#include <stdint.h>

enum {
    LB_CPU_MMX = 1 << 0,
    LB_CPU_SSE2 = 1 << 1,
    LB_CPU_SSSE3 = 1 << 2,
    LB_CPU_AVX2 = 1 << 3, /* with F16C */
    LB_CPU_AVXVNNI = 1 << 4,
    LB_CPU_AVX512VNNI = 1 << 5, /* with F, BW, DQ, VL */
    LB_CPU_NEON = 1 << 6,
    LB_CPU_NEONDOT = 1 << 7,
    LB_CPU_CMOV = 1 << 8,
    LB_CPU_AMX = 1 << 9,     /* tiles and their int8 products, with AVX512VBMI */
    LB_CPU_NEONI8MM = 1 << 10, /* with NEONDOT */
    LB_CPU_AVX512VBMI = 1 << 11, /* with AVX512VNNI */
    LB_CPU_ARMV6 = 1 << 12,    /* 32-bit Arm with the media instructions of ARMv6 and VFP */
    LB_CPU_SSE42 = 1 << 13,    /* with POPCNT, which numpy asks for; lowbit does not */
    LB_CPU_ZEN4 = 1 << 14      /* no instructions of its own, but other speeds; with AVX512VBMI */
};

/* A set of the flags above. */
uint32_t lb_cpu_features(void);

/*
 * Row groups that a thread should read at a time for one token. Processors of AMD read one sequential stream at nearly
 * the speed of memory. Intel's with AVX-512 VNNI read four, each prefetched, 2.5 times as fast as one (measured on an
 * Emerald Rapids). Of others nothing is known, so they read one.
 */
int32_t lb_cpu_streams(void);

/* Asks the system, once, for those of these features that it gives a process on request only; returns NULL, or why it
 * does not. */
const char *lb_cpu_refusal(uint32_t features);

/* Those of 32-bit x86 and Arm that the compiler may use in every file of this build. */
extern const uint32_t lb_built_for;

#endif
