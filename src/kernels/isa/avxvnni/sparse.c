/*
 * AVX-VNNI, channel-major. The fields are masked and not shifted down: field f is summed as 4**f times its value, at
 * most 2 * 64 * 128 * 2**16 = 2**30 in a part, and shifted at the end.
 */
#define LB_ISA avxvnni
#include "../avx2/sparse_registers.h"

/* The same instruction in its AVX-512 encoding, to run this file's code where only that exists (tests/selftest). */
#if defined(LB_AVXVNNI_AS_EVEX)
#define DPBUSD _mm256_dpbusd_epi32
#else
#define DPBUSD _mm256_dpbusd_avx_epi32
#endif

LB_INLINE vec field_of(vec v, const int f) { return _mm256_and_si256(v, _mm256_set1_epi8((char)(3 << (2 * f)))); }

LB_INLINE vec dot_eight(vec acc, vec a, four_q qa, vec b, four_q qb) { return DPBUSD(DPBUSD(acc, a, qa), b, qb); }

LB_INLINE i32x16 load_sums(const int32_t *acc, const int field) { return load_pieces(acc, 2 * field); }

#include "../sparse_simd.h"
#include "../sparse_template.h"
