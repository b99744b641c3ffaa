"""Whether this CPU has what the compiler took for granted in the other modules.

They are asked for in vain otherwise: a wheel for a Pentium II would end with an illegal instruction on an older CPU.
This module itself is built for the oldest CPU of its kind (CMakeLists.txt), and imported before the others.
"""
from libc.stdint cimport uint32_t


cdef extern from "cpu.h":
    enum:
        LB_CPU_CMOV
        LB_CPU_MMX
        LB_CPU_SSE2
        LB_CPU_ARMV6
        LB_CPU_SSE42
    uint32_t lb_cpu_features() noexcept
    const uint32_t lb_built_for


def missing() -> list:
    """Return the names of what the other modules need and this CPU does not have."""
    cdef uint32_t lacking = lb_built_for & ~lb_cpu_features()
    flags = {"cmov": LB_CPU_CMOV, "MMX": LB_CPU_MMX, "SSE2": LB_CPU_SSE2, "ARMv6 and VFP": LB_CPU_ARMV6}
    return [name for name, flag in flags.items() if lacking & flag]


def lacks_sse42() -> bool:
    """Return whether this is an x86-64 without SSE4.2 or POPCNT."""
    return sizeof(void *) == 8 and lb_cpu_features() & (LB_CPU_SSE2 | LB_CPU_SSE42) == LB_CPU_SSE2
