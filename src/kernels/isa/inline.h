/* Functions whose constant arguments must become constants of their code, and loops that must be unrolled. */
#ifndef LB_INLINE_H
#define LB_INLINE_H

#if defined(_MSC_VER)
#define LB_INLINE static __forceinline
#define LB_UNROLL(n)
#else
#define LB_INLINE static inline __attribute__((always_inline))
#define LB_PRAGMA(text) _Pragma(#text)
#define LB_UNROLL(n) LB_PRAGMA(GCC unroll n)
#endif

#endif
