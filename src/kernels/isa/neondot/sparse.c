/* NEON with the dot product, channel-major. A part of 2**16 channels sums to at most 32 * 128 * 2**16 = 2**28. */
#define LB_ISA neondot
#include "../neon/sparse_registers.h"

LB_INLINE int32x4_t dot_eight(int32x4_t acc, int8x16_t a, four_q qa, int8x16_t b, four_q qb) {
    return vdotq_s32(vdotq_s32(acc, a, qa), b, qb);
}

#include "../sparse_simd.h"
#include "../sparse_template.h"
