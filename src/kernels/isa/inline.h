/* Functions whose constant arguments must become constants of their code, loops that must be unrolled, prefetches. */
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

/* Into the second cache. */
#if defined(_MSC_VER) && (defined(_M_X64) || defined(_M_IX86))
#define LB_PREFETCH(p) _mm_prefetch((const char *)(p), _MM_HINT_T1)
#elif defined(_MSC_VER)
#define LB_PREFETCH(p) __prefetch(p)
#else
#define LB_PREFETCH(p) __builtin_prefetch(p, 0, 2)
#endif

#endif
