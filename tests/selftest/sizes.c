/* Computed sizes against 64-bit arithmetic, where a size_t of 32 bits would wrap around; this is no kernel's, so it is
 * checked once. */
#include "sizes.h"

#include "selftest.h"

/* What fits, in more bits than any size has. */
static size_t expected(uint64_t high, uint64_t low) { return high || low > LB_MOST_BYTES ? LB_TOO_LARGE : (size_t)low; }

static void check_pair(size_t a, size_t b) {
    char text[120];
    snprintf(text, sizeof text, "sizes: %zu and %zu", a, b);
    /* schoolbook, by halves of 32 bits */
    const uint64_t a1 = (uint64_t)a >> 32, a0 = (uint32_t)a, b1 = (uint64_t)b >> 32, b0 = (uint32_t)b;
    const uint64_t middle = a1 * b0 + (a0 * b0 >> 32), other = a0 * b1 + (uint32_t)middle;
    const uint64_t high = a1 * b1 + (middle >> 32) + (other >> 32), low = (uint64_t)a * b, sum = (uint64_t)a + b;
    const int lost = a > LB_MOST_BYTES || b > LB_MOST_BYTES;
    n_checks++;
    if (lb_times(a, b) != (lost ? LB_TOO_LARGE : expected(high, low)))
        report(text, "the product is %zu", lb_times(a, b));
    if (lb_plus(a, b) != (lost ? LB_TOO_LARGE : expected(sum < a, sum))) report(text, "the sum is %zu", lb_plus(a, b));
}

static void check_kv(uint64_t element, uint64_t heads, uint64_t head_dim, uint64_t value_dim, uint64_t span,
                     uint64_t layers, int whole) {
    char text[160];
    const lb_kv_layout l = lb_lay_out_kv((size_t)element, (size_t)heads, (size_t)head_dim, (size_t)value_dim,
                                         (size_t)span, (size_t)layers);
    const uint64_t padded = (value_dim + 15) / 16 * 16, scales = element == 1 ? (value_dim ? 8 : 4) * heads * span : 0;
    const uint64_t layer = (element * heads * span * (head_dim + padded) + scales + 63) / 64 * 64;
    const size_t want = whole ? expected(0, layer * layers) : LB_TOO_LARGE; /* else 64 bits do not hold it either */
    snprintf(text, sizeof text, "keys and values: %d bytes, %lu heads of %lu, %lu positions, %lu layers", (int)element,
             (unsigned long)heads, (unsigned long)head_dim, (unsigned long)span, (unsigned long)layers);
    n_checks++;
    if (l.nbytes != want) report(text, "%zu bytes, not %zu", l.nbytes, want);
    if (want != LB_TOO_LARGE && l.value_scales_at + (value_dim ? scales / 2 : scales) > l.layer_bytes)
        report(text, "parts overlap");
}

void test_sizes(void) {
    const size_t edges[] = {0,
                            1,
                            2,
                            3,
                            15,
                            16,
                            65535,
                            65536,
                            65537,
                            (size_t)1 << 30,
                            ((size_t)1 << 31) - 1,
                            (size_t)1 << 31,
                            SIZE_MAX / 4,
                            SIZE_MAX / 2 - 1,
                            SIZE_MAX / 2,
                            SIZE_MAX / 2 + 1,
                            SIZE_MAX - 1,
                            SIZE_MAX};
    for (int i = 0; i < COUNT(edges); i++) {
        for (int j = 0; j < COUNT(edges); j++) check_pair(edges[i], edges[j]);
        const size_t rounded = lb_round_up(edges[i], 16);
        n_checks++;
        if (edges[i] <= LB_MOST_BYTES - 16 ? rounded < edges[i] || rounded - edges[i] > 15 || rounded % 16
                                           : rounded != LB_TOO_LARGE)
            report("sizes", "%zu is rounded up to %zu", edges[i], rounded);
    }
    for (int element = 1; element <= 4; element *= 2) {
        check_kv(element, 2, 64, 64, 64, 3, 1);
        check_kv(element, 1, 576, 500, 64, 61, 1);
        check_kv(element, 1, 576, 0, 64, 61, 1); /* latents */
        check_kv(element, 512, 512, 512, 8192, 1, 1);    /* 2 GiB and more: with 32 bits once 0 bytes */
        check_kv(element, 16384, 512, 512, 8192, 64, 1); /* 2 to the power 43 and more */
        check_kv(element, 16384, 512, 512, 1 << 24, 1024, 1);
    }
    check_kv(4, 1 << 24, 1 << 15, 1 << 15, 1 << 20, 1 << 10, 0); /* 2 to the power 72 */
    check_kv(4, 1, 512, 512, SIZE_MAX / 2, 1, 0);
    check_kv(4, 1, 512, 512, SIZE_MAX, 1, 0);
}
