/* Plain C: the two codes of a lane are taken apart. */
#define LB_ISA portable
#include "../names.h"

void LB_NAME(lb_sketch)(const lb_sketch *s, const int16_t *z, int32_t begin, int32_t end, float *best) {
    for (int32_t group = begin; group < end; group++) {
        const int16_t *codes = s->codes + (size_t)group * s->spans * LB_SPAN_LANES;
        const float *scales = s->scales + (size_t)group * LB_ROWS;
        int32_t sums[LB_ROWS] = {0};
        for (int32_t span = 0; span < s->spans; span++) {
            for (int i = 0; i < LB_SPAN_LANES; i++) {
                const int32_t code = *codes++, high = (code + 1024) >> 11, low = code - high * 2048;
                const int32_t x = z[16 * span + i % 16];
                int32_t *sum = sums + i / 16 * 4 + i / 2 % 2;
                sum[0] += low * x, sum[2] += high * x;
            }
        }
        float most = (float)sums[0] * scales[0];
        for (int r = 1; r < LB_ROWS; r++) {
            const float one = (float)sums[r] * scales[r];
            most = one > most ? one : most;
        }
        best[group] = most;
    }
}
