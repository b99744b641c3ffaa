/* CPUID and XGETBV bits: Intel SDM volume 2A, CPUID, and volume 1, chapter 13. Arm: AT_HWCAP, Linux elf_hwcaps. */
#if defined(__linux__) && defined(__x86_64__)
#define _GNU_SOURCE /* syscall */
#include <errno.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "cpu.h"

#include <stddef.h>
#include <string.h>

#if defined(__i386__) || defined(__x86_64__) || defined(_M_IX86) || defined(_M_X64)

#if defined(_MSC_VER)
#include <intrin.h>
static void cpuid(uint32_t leaf, uint32_t sub, uint32_t r[4]) { __cpuidex((int *)r, (int)leaf, (int)sub); }
static uint32_t saved_registers(void) { return (uint32_t)_xgetbv(0); }
#else
#include <cpuid.h>
static void cpuid(uint32_t leaf, uint32_t sub, uint32_t r[4]) {
    if (!__get_cpuid_count(leaf, sub, &r[0], &r[1], &r[2], &r[3])) r[0] = r[1] = r[2] = r[3] = 0;
}
static uint32_t saved_registers(void) {
    uint32_t low, high;
    __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(low), "=d"(high) : "c"(0)); /* xgetbv */
    return low;
}
#endif

static int has(uint32_t word, int bit) { return word >> bit & 1; }

/* Whether that is who made the processor: what EBX, EDX and ECX say. */
static int is_made_by(const char name[12]) {
    uint32_t r[4], ordered[3];
    cpuid(0, 0, r);
    ordered[0] = r[1], ordered[1] = r[3], ordered[2] = r[2];
    return memcmp(ordered, name, sizeof ordered) == 0;
}

uint32_t lb_cpu_features(void) {
    enum { A, B, C, D };
    uint32_t one[4], seven[4], seven1[4], found = 0;
    cpuid(1, 0, one);
    cpuid(7, 0, seven);
    cpuid(7, 1, seven1);
    if (has(one[D], 15)) found |= LB_CPU_CMOV;
    if (has(one[D], 23)) found |= LB_CPU_MMX;
    if (has(one[D], 26)) found |= LB_CPU_SSE2;
    if (has(one[C], 9)) found |= LB_CPU_SSSE3;
    if (has(one[C], 20) && has(one[C], 23)) found |= LB_CPU_SSE42;
    const uint32_t saved = has(one[C], 27) ? saved_registers() : 0;
    const int ymm = (saved & 0x06) == 0x06, zmm = (saved & 0xe6) == 0xe6;
    if (ymm && has(seven[B], 5) && has(one[C], 29)) found |= LB_CPU_AVX2;
    if ((found & LB_CPU_AVX2) && has(seven1[A], 4)) found |= LB_CPU_AVXVNNI;
    if (zmm && has(seven[B], 16) && has(seven[B], 17) && has(seven[B], 30) && has(seven[B], 31) && has(seven[C], 11)) {
        found |= LB_CPU_AVX512VNNI;
    }
    if ((found & LB_CPU_AVX512VNNI) && has(seven[C], 1)) found |= LB_CPU_AVX512VBMI;
    const uint32_t family = (one[A] >> 8 & 15) + (one[A] >> 20 & 255); /* 25 is Zen 3, without AVX-512, and Zen 4 */
    if ((found & LB_CPU_AVX512VBMI) && family == 25 && is_made_by("AuthenticAMD")) found |= LB_CPU_ZEN4;
    const int tiles = (saved & 0x60000) == 0x60000;
    if (tiles && (found & LB_CPU_AVX512VBMI) && has(seven[D], 24) && has(seven[D], 25)) found |= LB_CPU_AMX;
    return found;
}

int32_t lb_cpu_streams(void) {
    if (!is_made_by("GenuineIntel")) return 1;
    return lb_cpu_features() & LB_CPU_AVX512VNNI ? 4 : 1;
}

#elif defined(__aarch64__) || defined(_M_ARM64)

#if defined(__linux__)
#include <sys/auxv.h>
uint32_t lb_cpu_features(void) {
    const unsigned long asimddp = 1ul << 20, i8mm = 1ul << 13; /* HWCAP_ASIMDDP, HWCAP2_I8MM */
    if (!(getauxval(AT_HWCAP) & asimddp)) return LB_CPU_NEON;
    return LB_CPU_NEON | LB_CPU_NEONDOT | (getauxval(AT_HWCAP2) & i8mm ? LB_CPU_NEONI8MM : 0);
}
#elif defined(__APPLE__)
#include <sys/sysctl.h>
static int has(const char *feature) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(feature, &value, &size, NULL, 0) == 0 && value;
}

uint32_t lb_cpu_features(void) {
    if (!has("hw.optional.arm.FEAT_DotProd")) return LB_CPU_NEON;
    return LB_CPU_NEON | LB_CPU_NEONDOT | (has("hw.optional.arm.FEAT_I8MM") ? LB_CPU_NEONI8MM : 0);
}
#else
uint32_t lb_cpu_features(void) { return LB_CPU_NEON; }
#endif

#elif defined(__arm__) && defined(__linux__)
#include <sys/auxv.h>
/* AT_PLATFORM is v5l, v6l, v7l or v8l, HWCAP_VFP bit 6. */
uint32_t lb_cpu_features(void) {
    const char *platform = (const char *)getauxval(AT_PLATFORM);
    const int media = platform && platform[0] == 'v' && platform[1] >= '6' && platform[1] <= '9';
    return media && getauxval(AT_HWCAP) >> 6 & 1 ? LB_CPU_ARMV6 : 0;
}

#else
uint32_t lb_cpu_features(void) { return 0; }
#endif

#if !defined(__i386__) && !defined(__x86_64__) && !defined(_M_IX86) && !defined(_M_X64)
int32_t lb_cpu_streams(void) { return 1; }
#endif

#if defined(__linux__) && defined(__x86_64__)
/* The state of the tiles is 8 KB for each thread, and a signal's stack must hold it: Linux has a process ask for it
 * (since 5.16; Documentation/arch/x86/xstate.rst). Its threads and the processes that it forks then have it, too. */
const char *lb_cpu_refusal(uint32_t features) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILE_DATA = 18 };
    static int asked;
    static char refusal[96];
    if (!(features & LB_CPU_AMX)) return NULL;
    if (!asked) {
        if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA) != 0) {
            snprintf(refusal, sizeof refusal, "Linux does not let this process use AMX tiles (%s)", strerror(errno));
        }
        asked = 1;
    }
    return *refusal ? refusal : NULL;
}
#else
const char *lb_cpu_refusal(uint32_t features) { return (void)features, NULL; }
#endif
