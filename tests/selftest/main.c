/*
 * Compares every micro-kernel of every instruction set that this CPU (or emulator) has with plain loops, without
 * Python.
 *
 *     selftest            all sets of this build
 *     LOWBIT_ISA=avx2     only that one; a name that is unknown here, or that the CPU does not have, is an error
 *
 * Prints one line per set, the parameters of what differs, and ends with 1 if something does.
 */
#include <float.h>
#include <math.h>
#include <stdarg.h>

#include "cpu.h"
#include "selftest.h"

const char *isa;
int is_portable;
lb_kernels portable;
long n_checks, n_failures;

void *allocate(size_t n_bytes) {
    void *memory = malloc(n_bytes ? n_bytes : 1);
    if (!memory) {
        fprintf(stderr, "no memory for %zu bytes\n", n_bytes);
        exit(2);
    }
    return memory;
}

void *allocate_aligned(size_t n_bytes) {
    void *memory = aligned_alloc(64, (n_bytes + 63) / 64 * 64);
    if (!memory) {
        fprintf(stderr, "no memory for %zu bytes\n", n_bytes);
        exit(2);
    }
    return memory;
}

/* xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled", 2016. */
static uint64_t state = 88172645463325252u;

uint64_t random_restart(uint64_t from) {
    const uint64_t before = state;
    state = from;
    return before;
}

uint32_t random_bits(void) {
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return (uint32_t)((state * 2685821657736338717u) >> 32);
}

int32_t random_int(int32_t low, int32_t high) { return low + (int32_t)(random_bits() % (uint32_t)(high - low + 1)); }

float random_float(float low, float high) { return low + (high - low) * (float)(random_bits() >> 8) / 16777216.0f; }

void fill_random(float *x, int32_t n, float low, float high) {
    for (int32_t i = 0; i < n; i++) x[i] = random_float(low, high);
}

float tame(float value) { return isnan(value) ? 0.0f : fmaxf(fminf(value, FLT_MAX), -FLT_MAX); }

int guards_hold(const void *memory, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++) {
        if (((const uint8_t *)memory)[i] != GUARD) return 0;
    }
    return 1;
}

void report(const char *parameters, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "%s: %s: ", isa, parameters);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    if (++n_failures == 20) {
        fprintf(stderr, "%s: twenty differences, giving up\n", isa);
        exit(1);
    }
}

static int same(float a, float b, float tolerance) {
    return lb_float_to_bits(a) == lb_float_to_bits(b) || (isnan(a) && isnan(b)) || fabsf(a - b) < tolerance;
}

void check_floats(const char *parameters, const char *what, const float *got, const float *expected, int32_t n) {
    float tolerance = 0.0f;
    n_checks++;
    if (FLT_EVAL_METHOD != 0) {
        for (int32_t i = 0; i < n; i++) tolerance = fmaxf(tolerance, 1e-5f * fabsf(expected[i]));
    }
    for (int32_t i = 0; i < n; i++) {
        if (!same(got[i], expected[i], tolerance)) {
            report(parameters, "%s [%d] is %.9g (%08x), not %.9g (%08x)", what, (int)i, got[i],
                   (unsigned)lb_float_to_bits(got[i]), expected[i], (unsigned)lb_float_to_bits(expected[i]));
            return;
        }
    }
}

void check_near(const char *parameters, const char *what, const float *got, const double *expected, int32_t n,
                double relative, double absolute) {
    n_checks++;
    for (int32_t i = 0; i < n; i++) {
        if (!(fabs(got[i] - expected[i]) <= relative * fabs(expected[i]) + absolute)) {
            report(parameters, "%s [%d] is %.9g, not %.12g", what, (int)i, got[i], expected[i]);
            return;
        }
    }
}

void check_bytes(const char *parameters, const char *what, const void *got, const void *expected, size_t n_bytes) {
    n_checks++;
    for (size_t i = 0; i < n_bytes; i++) {
        if (((const uint8_t *)got)[i] != ((const uint8_t *)expected)[i]) {
            report(parameters, "%s: byte %zu is %d, not %d", what, i, ((const uint8_t *)got)[i],
                   ((const uint8_t *)expected)[i]);
            return;
        }
    }
}

void check_rounded(const char *parameters, const char *what, const int8_t *got, const int8_t *expected, size_t n) {
    const int allowed = FLT_EVAL_METHOD != 0;
    n_checks++;
    for (size_t i = 0; i < n; i++) {
        if (abs(got[i] - expected[i]) > allowed) {
            report(parameters, "%s [%zu] is %d, not %d", what, i, got[i], expected[i]);
            return;
        }
    }
}

/* The set that LOWBIT_ISA names, or -1 for all. */
static int forced_isa(void) {
    const char *name = getenv("LOWBIT_ISA");
    if (!name || !*name) return -1;
    for (int i = 0; i < lb_isa_count(); i++) {
        if (strcmp(lb_isa_name(i), name) == 0) {
            if (!lb_isa_lacks(i)) return i;
            fprintf(stderr, "LOWBIT_ISA: no %s: %s\n", name, lb_isa_lacks(i));
            exit(2);
        }
    }
    fprintf(stderr, "LOWBIT_ISA: this build has no instruction set %s\n", name);
    exit(2);
}

/* What only a request brings is refused where the CPU does not have it; what nobody has to ask for is not. */
static void test_permission(void) {
    n_checks++;
    if (lb_cpu_refusal(~(uint32_t)LB_CPU_AMX)) report("permission", "%s", lb_cpu_refusal(~(uint32_t)LB_CPU_AMX));
#if defined(__linux__) && defined(__x86_64__)
    if (!(lb_cpu_features() & LB_CPU_AMX) && !lb_cpu_refusal(LB_CPU_AMX)) report("permission", "AMX is not refused");
#endif
}

int main(void) {
    const int forced = forced_isa();
    long all_failures = 0;
    lb_set_portable_ternary(reference_matmul_u2);
    lb_isa_use(0);
    portable = lb_table;
    isa = "all sets";
    test_permission();
    test_sizes();
    test_float_mode();
    all_failures = n_failures;
    for (int i = 0; i < lb_isa_count(); i++) {
        if (forced >= 0 && forced != i) continue;
        isa = lb_isa_name(i);
        if (lb_isa_lacks(i)) {
            printf("%-12s %s\n", isa, lb_isa_lacks(i));
            continue;
        }
        is_portable = i == 0;
        n_checks = n_failures = 0;
        lb_isa_use(i);
        test_integer_matmul();
        const long integer = n_checks;
        test_float_matmul();
        const long product = n_checks;
        test_sparse();
        const long sparse = n_checks;
        test_elementwise();
        const long elementwise = n_checks;
        test_attention();
        const long cache = n_checks;
        test_shortlist();
        printf("%-12s %ld integer products, %ld float products, %ld sparse products, %ld elementwise, %ld cache and "
               "attention, %ld of the largest rows: %s\n",
               isa, integer, product - integer, sparse - product, elementwise - sparse, cache - elementwise,
               n_checks - cache, n_failures ? "FAILED" : "equal");
        fflush(stdout);
        all_failures += n_failures;
    }
    return all_failures != 0;
}
