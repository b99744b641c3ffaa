/*
 * NEON, channel-major. smlal adds products of two channels each in int16: at most 2 * 32 * 128 = 2**13 for field 2,
 * after addp 2**14. A part of 2**16 channels sums to at most 32 * 128 * 2**16 = 2**28.
 */
#define LB_ISA neon
#include "sparse_registers.h"

LB_INLINE int32x4_t dot_eight(int32x4_t acc, int8x16_t a, four_q qa, int8x16_t b, four_q qb) {
    const int16x8_t low = vmlal_s8(vmull_s8(vget_low_s8(a), vget_low_s8(qa)), vget_low_s8(b), vget_low_s8(qb));
    const int16x8_t high = vmlal_high_s8(vmull_high_s8(a, qa), b, qb);
    return vpadalq_s16(acc, vpaddq_s16(low, high));
}

#include "../sparse_simd.h"
#include "../sparse_template.h"
#include "../transpose_template.h"
