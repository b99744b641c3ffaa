/*
 * Sizes of memory, computed from what a file says. What does not fit is LB_TOO_LARGE, and so is all that is computed
 * from it: nothing wraps around, and no allocation of so many bytes succeeds. Nothing may be larger than half of the
 * addresses, so that differences of pointers fit too.
 */
#ifndef LB_SIZES_H
#define LB_SIZES_H

#include <stddef.h>
#include <stdint.h>

#define LB_TOO_LARGE SIZE_MAX
#define LB_MOST_BYTES (SIZE_MAX / 2)

static inline size_t lb_times(size_t a, size_t b) {
    if (a > LB_MOST_BYTES || b > LB_MOST_BYTES) return LB_TOO_LARGE;
    return b && a > LB_MOST_BYTES / b ? LB_TOO_LARGE : a * b;
}

static inline size_t lb_plus(size_t a, size_t b) {
    return a > LB_MOST_BYTES || b > LB_MOST_BYTES - a ? LB_TOO_LARGE : a + b;
}

/* The next multiple of `step`, which is small. */
static inline size_t lb_round_up(size_t n, size_t step) {
    return n > LB_MOST_BYTES - step ? LB_TOO_LARGE : (n + step - 1) / step * step;
}

/* Where the parts of one layer's keys and values lie in a block (kernels.h draws them), in bytes. */
typedef struct {
    size_t stride; /* elements from one kv head to the next; its values follow its keys, as attention reads them */
    size_t values_at, key_scales_at, value_scales_at;
    size_t layer_bytes;
    size_t nbytes; /* of all layers, LB_TOO_LARGE if it is more than there are addresses for */
} lb_kv_layout;

/* For elements of `element` bytes, with scales if it is 1. Without channels of their own, values are part of the keys.
 */
static inline lb_kv_layout lb_lay_out_kv(size_t element, size_t heads, size_t key_dim, size_t value_dim, size_t span,
                                         size_t layers) {
    const size_t scales = element == 1 ? lb_times(lb_times(sizeof(float), heads), span) : 0;
    lb_kv_layout l;
    l.stride = lb_times(span, lb_plus(key_dim, lb_round_up(value_dim, 16)));
    l.values_at = value_dim ? lb_times(element, lb_times(span, key_dim)) : 0;
    l.key_scales_at = lb_times(lb_times(element, heads), l.stride);
    l.value_scales_at = value_dim ? lb_plus(l.key_scales_at, scales) : l.key_scales_at;
    l.layer_bytes = lb_round_up(lb_plus(l.value_scales_at, scales), 64);
    l.nbytes = lb_times(l.layer_bytes, layers);
    return l;
}

#endif
