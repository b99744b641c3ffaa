/* The first of the largest values; what is no number is passed over. */
#ifndef LB_LARGEST_H
#define LB_LARGEST_H

#include <stdint.h>

#include "../isa/inline.h"

static inline int32_t lb_largest(const float *x, int32_t n) {
    int32_t best = 0;
    while (best < n - 1 && x[best] != x[best]) best++;
    float most = x[best];
    LB_UNROLL(8)
    for (int32_t i = best + 1; i < n; i++) {
        if (x[i] > most) most = x[i], best = i;
    }
    return best;
}

#endif
