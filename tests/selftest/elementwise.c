/* Quantisation, norm, activation, addition and exponential: the portable set against double precision, the others
 * against the portable set, bit for bit. */
#include <float.h>
#include <math.h>

#include "selftest.h"

enum { MOST = 4096, AFTER = 16 };
static const int32_t lengths[] = {1, 3, 15, 16, 17, 31, 32, 33, 64, 255, 256, 257, 1000, MOST};

static float x[MOST], y[MOST], got[MOST + AFTER], expected[MOST + AFTER];
static double exact[MOST];
static char text[200];

static void check_guard(const void *after, size_t n_bytes) {
    if (!guards_hold(after, n_bytes)) report(text, "bytes after the output were written");
}

static void check_exp(int32_t n, float shift, float factor) {
    snprintf(text, sizeof text, "exp: n %d, shift %g, factor %g", (int)n, shift, factor);
    fill_random(x, n, -120.0f, 87.0f); /* from below the smallest result to near the largest */
    if (n > 2) x[0] = -87.3f, x[1] = -87.30001f, x[2] = 88.0f; /* the smallest, below it, the largest */
    memset(got, GUARD, sizeof got), memset(expected, GUARD, sizeof expected);
    lb_table.exp(x, shift, factor, n, got);
    check_guard(got + n, sizeof got - (size_t)n * sizeof *got);
    if (is_portable) {
        for (int32_t i = 0; i < n; i++) {
            volatile float d = x[i] - shift; /* volatile: rounded to float also by an x87 */
            d = d * factor;
            exact[i] = d < -87.3f ? 0.0 : exp((double)d);
        }
        check_near(text, "exp", got, exact, n, 1.5e-7, 0.0);
    } else {
        portable.exp(x, shift, factor, n, expected);
        check_floats(text, "exp", got, expected, n);
    }
}

static void check_add(int32_t n) {
    snprintf(text, sizeof text, "add: n %d", (int)n);
    fill_random(x, n, -9.0f, 9.0f), fill_random(y, n, -9.0f, 9.0f);
    memset(got, GUARD, sizeof got);
    memcpy(got, x, (size_t)n * sizeof *x);
    for (int32_t i = 0; i < n; i++) expected[i] = x[i] + y[i];
    lb_table.add(got, y, n);
    check_floats(text, "sum", got, expected, n);
    check_guard(got + n, sizeof got - (size_t)n * sizeof *got);
}

static void check_rms_norm(int32_t n, float eps) {
    snprintf(text, sizeof text, "rms_norm: n %d, eps %g", (int)n, eps);
    fill_random(x, n, -9.0f, 9.0f), fill_random(y, n, -2.0f, 2.0f);
    memset(got, GUARD, sizeof got), memset(expected, GUARD, sizeof expected);
    lb_table.rms_norm(x, y, n, eps, got);
    check_guard(got + n, sizeof got - (size_t)n * sizeof *got);
    if (is_portable) {
        double squares = 0;
        for (int32_t i = 0; i < n; i++) squares += (double)x[i] * x[i];
        for (int32_t i = 0; i < n; i++) exact[i] = x[i] / sqrt(squares / n + eps) * y[i];
        check_near(text, "norm", got, exact, n, 2e-6, 0.0);
    } else {
        portable.rms_norm(x, y, n, eps, expected);
        check_floats(text, "norm", got, expected, n);
    }
}

/* The definition in kernels.h, one pair after the other; every set must equal it. Twice gives the values again, `block`
 * times as large. */
static void check_hadamard(int32_t n, int32_t block) {
    snprintf(text, sizeof text, "hadamard: n %d, blocks of %d", (int)n, (int)block);
    fill_random(x, n, -9.0f, 9.0f);
    for (int32_t i = 0; i < n; i += 7) x[i] = i % 2 ? 0.0f : -0.0f;
    memset(got, GUARD, sizeof got);
    memcpy(got, x, (size_t)n * sizeof *x), memcpy(expected, x, (size_t)n * sizeof *x);
    lb_table.hadamard(got, n, block);
    for (int32_t stride = 1; stride < block; stride *= 2) {
        for (int32_t i = 0; i < n; i++) {
            if (i & stride) continue;
            const float a = expected[i], b = expected[i + stride];
            expected[i] = a + b, expected[i + stride] = a - b;
        }
    }
    check_floats(text, "transform", got, expected, n);
    check_guard(got + n, sizeof got - (size_t)n * sizeof *got);
    lb_table.hadamard(got, n, block);
    for (int32_t i = 0; i < n; i++) exact[i] = (double)x[i] * block;
    check_near(text, "inverse", got, exact, n, 0.0, 2e-5 * block);
    memset(got, 0, (size_t)n * sizeof *got); /* a column: the signs of the formula, exactly */
    const int32_t start = random_int(0, n / block - 1) * block, column = random_int(0, block - 1);
    got[start + column] = 3.0f;
    lb_table.hadamard(got, n, block);
    for (int32_t i = 0; i < n; i++) {
        int odd = 0;
        for (int32_t both = (i - start) & column; both; both &= both - 1) odd ^= 1;
        exact[i] = i < start || i >= start + block ? 0.0 : odd ? -3.0 : 3.0;
    }
    check_near(text, "column", got, exact, n, 0.0, 0.0);
}

static void check_count_from(int32_t n) {
    static const float limits[] = {0.0f, 1e-40f, 0.5f, 3.0f, 1e30f, INFINITY, NAN};
    snprintf(text, sizeof text, "count_from: n %d", (int)n);
    /* x is what the check before this one left there */
    for (int32_t i = 0; i < n; i += 5) x[i] = limits[i % COUNT(limits)] * (i % 2 ? 1.0f : -1.0f);
    for (int j = 0; j < COUNT(limits); j++) {
        int32_t limit, bits, want = 0;
        memcpy(&limit, &limits[j], sizeof limit);
        limit &= 0x7fffffff;
        for (int32_t i = 0; i < n; i++) {
            memcpy(&bits, x + i, sizeof bits);
            want += (bits & 0x7fffffff) >= limit;
        }
        const int32_t count = lb_table.count_from(x, n, limit);
        check_bytes(text, "count", &count, &want, sizeof count);
    }
}

static void check_glu(int32_t n, int32_t activation) {
    static const char *const names[] = {"silu", "relu2", "gelu", "swiglu_oai"};
    snprintf(text, sizeof text, "glu: n %d, %s", (int)n, names[activation]);
    fill_random(x, n, -100.0f, 60.0f), fill_random(y, n, -2.0f, 2.0f);
    for (int32_t i = 0; i < n; i += 7) x[i] = i % 2 ? 0.0f : -0.0f;
    memset(got, GUARD, sizeof got);
    memcpy(got, x, (size_t)n * sizeof *x);
    memcpy(expected, x, (size_t)n * sizeof *x);
    lb_table.glu(got, y, n, activation);
    check_guard(got + n, sizeof got - (size_t)n * sizeof *got);
    if (is_portable) {
        for (int32_t i = 0; i < n; i++) {
            const double g = x[i], t = 0.7978845608028654 * (g + 0.044715 * g * g * g);
            const double a[] = {g / (1 + exp(-g)), g > 0 ? g * g : 0, g / (1 + exp(-2 * t)), g / (1 + exp(-1.702 * g))};
            exact[i] = a[activation] * (activation == LB_SWIGLU_OAI ? y[i] + 1.0 : y[i]);
        }
        /* the exponent of GELU and of what follows it reaches 80, and its rounding counts that often */
        check_near(text, "activation", got, exact, n, activation >= LB_GELU ? 1e-5 : 1e-6, 1e-35);
    } else {
        portable.glu(expected, y, n, activation);
        check_floats(text, "activation", got, expected, n);
    }
}

/* The definition in kernels.h, one value after the other; every set must equal it. */
static void reference_quantize(int32_t n, int32_t group_cols, int32_t per_token, int8_t *q, float *scale,
                               int32_t *sum) {
    for (int32_t start = 0; start < n; start += group_cols) {
        const int32_t end = n - start < group_cols ? n : start + group_cols;
        float largest = 1e-5f;
        for (int32_t i = per_token ? 0 : start; i < (per_token ? n : end); i++)
            largest = fmaxf(largest, fabsf(tame(x[i])));
        const volatile float s = 127.0f / largest; /* volatile: rounded to float also by an x87 */
        *scale++ = 1.0f / s;
        *sum = 0;
        for (int32_t i = start; i < end; i++) {
            const volatile float scaled = tame(x[i]) * s;
            *sum += q[i] = (int8_t)rintf(scaled);
        }
        sum++;
    }
}

/* Every `wild`th value is no number, the infinities, or the largest float in turn; 0: none. */
static void check_quantize(int32_t n, int32_t group_cols, int32_t per_token, float size, int32_t wild) {
    static const float values[] = {NAN, INFINITY, -INFINITY, -NAN, FLT_MAX, -FLT_MAX};
    static int8_t q[MOST + 128], q_expected[MOST + 128];
    static float scale[MOST + 1], scale_expected[MOST + 1];
    static int32_t sum[MOST + 1], sum_expected[MOST + 1];
    const int32_t padded = (n + 127) / 128 * 128, groups = (n + group_cols - 1) / group_cols;
    snprintf(text, sizeof text, "quantize: n %d, groups of %d, %s, |x| up to %g, each %dth wild", (int)n,
             (int)group_cols, per_token ? "one scale" : "a scale per group", size, (int)wild);
    fill_random(x, n, -size, size);
    if (size == 127.0f) { /* s is 1: every half is a tie */
        for (int32_t i = 0; i < n; i++) x[i] = (float)random_int(-253, 253) / 2;
        for (int32_t i = 0; i < n; i += group_cols) x[i] = i % 2 ? 127.0f : -127.0f;
    }
    for (int32_t i = 0, j = random_int(0, 5); wild && i < n; i += wild, j++) x[i] = values[j % (wild == 3 ? 1 : 6)];
    memset(q, GUARD, sizeof q), memset(scale, GUARD, sizeof scale), memset(sum, GUARD, sizeof sum);
    memset(q_expected, GUARD, sizeof q), memset(scale_expected, GUARD, sizeof scale);
    memset(sum_expected, GUARD, sizeof sum);
    lb_table.quantize(x, n, group_cols, per_token, padded, q, scale, sum);
    memset(q_expected, 0, (size_t)padded);
    reference_quantize(n, group_cols, per_token, q_expected, scale_expected, sum_expected);
    check_rounded(text, "q", q, q_expected, (size_t)padded);
    memset(sum_expected, 0, (size_t)groups * sizeof *sum); /* of what was rounded, which way ever a tie went */
    for (int32_t i = 0; i < n; i++) sum_expected[i / group_cols] += q[i];
    check_floats(text, "scale", scale, scale_expected, groups);
    check_bytes(text, "sum", sum, sum_expected, (size_t)groups * sizeof *sum);
    check_guard(q + padded, sizeof q - (size_t)padded);
    check_guard(scale + groups, sizeof scale - (size_t)groups * sizeof *scale);
    check_guard(sum + groups, sizeof sum - (size_t)groups * sizeof *sum);
}

/* The probes of a machine: a read depends on every word, and a peak counts the products of whole tiles. */
static void check_probes(void) {
    uint64_t memory[3 * 8 * 16];
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) memory[i] = random_bits();
    for (int32_t streams = 1; streams <= 16; streams *= 2) {
        for (size_t n = 8 * streams; n <= 3 * 8 * (size_t)streams; n += 8 * streams) {
            snprintf(text, sizeof text, "read: n %zu, %d streams", n, (int)streams);
            const uint64_t before = lb_table.read(memory, n, streams);
            if (before != lb_table.read(memory, n, 1)) report(text, "not the sum of one stream");
            for (size_t i = 0; i < n; i++) {
                memory[i]++;
                if (lb_table.read(memory, n, streams) == before) report(text, "word %zu was not read", i);
                memory[i]--;
            }
            n_checks++;
        }
    }
    const int64_t one = lb_table.dot_peak(1), ten = lb_table.dot_peak(10);
    snprintf(text, sizeof text, "dot_peak: 1 and 10 rounds");
    n_checks++;
    if (one <= 0 || one % 512 || ten != 10 * one)
        report(text, "%lld and %lld products", (long long)one, (long long)ten);
}

void test_elementwise(void) {
    static const float sizes[] = {1.0f, 127.0f, 1e-7f, 1e30f, 0.0f};
    check_probes();
    for (int i = 0; i < COUNT(lengths); i++) {
        const int32_t n = lengths[i];
        for (int again = 0; again < 4; again++) {
            check_exp(n, again & 1 ? 3.25f : 0.0f, again & 2 ? -0.5f : 1.0f);
            check_add(n);
            check_rms_norm(n, again ? 1e-5f : 1e-6f);
            check_glu(n, again % 4);
            check_count_from(n);
        }
        for (int32_t block = 1; block <= n; block *= 2) check_hadamard(n / block * block, block);
        for (int j = 0; j < COUNT(sizes); j++) {
            check_quantize(n, n, 1, sizes[j], 0);
            check_quantize(n, 32, 0, sizes[j], 0);
            check_quantize(n, 256, 0, sizes[j], 0);
            check_quantize(n, 128, 1, sizes[j], 0);
        }
        for (int32_t wild = 1; wild < 400; wild += wild > 20 ? 100 : 1 + wild / 3) {
            check_quantize(n, n, 1, 1.0f, wild);
            check_quantize(n, 32, 0, 1.0f, wild);
            check_quantize(n, 128, 1, 1.0f, wild);
        }
    }
}
