/* The mode of floats is the same whatever the host's is, and the host gets its own back (floats.h). */
#include "floats.h"

#include <fenv.h>

#include "selftest.h"

typedef struct {
    uint32_t product, quotient; /* one that is subnormal, one that rounds */
} sums;

static sums compute(void) {
    volatile float tiny = 1e-30f, small = 1.1e-10f, one = 1.0f, three = 3.0f, product, quotient;
    product = tiny * small;
    quotient = one / three;
    return (sums){lb_float_to_bits(product), lb_float_to_bits(quotient)};
}

/* Takes subnormal numbers for zeros, as hosts do for speed; 0 if this CPU cannot. */
static int flush(void) {
#if defined(LB_SSE_MODE)
    if (!lb_has_sse_mode()) return 0;
    lb_set_sse_mode(lb_get_sse_mode() | 0x8040);
    return 1;
#elif defined(LB_ARM_MODE)
    lb_set_arm_mode(lb_get_arm_mode() | 1u << 24);
    return 1;
#else
    return 0;
#endif
}

static uint32_t mode_bits(void) {
#if defined(LB_SSE_MODE)
    return lb_has_sse_mode() ? lb_get_sse_mode() & ~(uint32_t)LB_SSE_FLAGS : 0;
#elif defined(LB_ARM_MODE)
    return lb_get_arm_mode() & LB_ARM_MODE;
#else
    return 0;
#endif
}

static void check_under(const char *host, const sums *want) {
    const uint32_t before = mode_bits();
    const int rounding = fegetround();
    n_checks++;
    lb_float_mode mode = lb_begin_floats();
    const sums floats = compute();
    const lb_float_mode within = lb_begin_doubles();
    const sums doubles = compute();
    lb_end_floats(within);
    const sums again = compute();
    lb_end_floats(mode);
    if (memcmp(&floats, want, sizeof floats) || memcmp(&doubles, want, sizeof doubles) ||
        memcmp(&again, want, sizeof again))
        report(host, "floats become %08x, %08x", (unsigned)floats.product, (unsigned)floats.quotient);
    if (mode_bits() != before || fegetround() != rounding) report(host, "the host's mode has changed");
}

void test_float_mode(void) {
    const sums want = {0x000132a3u, 0x3eaaaaabu};
    static const struct {
        const char *name;
        int mode;
    } roundings[] = {
        {"to nearest", FE_TONEAREST}, {"up", FE_UPWARD}, {"down", FE_DOWNWARD}, {"to zero", FE_TOWARDZERO}};
    fenv_t host;
    fegetenv(&host);
    for (int flushing = 0; flushing < 2; flushing++) {
        for (int i = 0; i < COUNT(roundings); i++) {
            fesetround(roundings[i].mode);
            if (!flushing || flush()) check_under(roundings[i].name, &want);
            fesetenv(&host);
        }
    }
}
