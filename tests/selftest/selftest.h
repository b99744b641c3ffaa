/* What the self-test's files share: memory with guards, random numbers, and the report of a difference. */
#ifndef LB_SELFTEST_H
#define LB_SELFTEST_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "half.h"
#include "kernels.h"
#include "table.h"

extern const char *isa;          /* name of the set under test */
extern int is_portable;          /* it is the set that the others must equal */
extern lb_kernels portable;      /* the kernels of that set */
extern long n_checks, n_failures; /* for the set under test */

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

/* Memory of exactly n bytes, so that a tool that watches the heap sees any access beyond it. */
void *allocate(size_t n_bytes);
/* The same at a 64-byte boundary. */
void *allocate_aligned(size_t n_bytes);

uint64_t random_restart(uint64_t from); /* returns how to go on as if nothing was */
uint32_t random_bits(void);
int32_t random_int(int32_t low, int32_t high); /* both included */
float random_float(float low, float high);
void fill_random(float *x, int32_t n, float low, float high);

/* What kernels.h says that a value counts as before it becomes an int8. */
float tame(float value);

/* Fills outputs before a call: a value that no kernel writes by chance. */
#define GUARD 0xA5
int guards_hold(const void *memory, size_t n_bytes);

/* Prints the set, the parameters and what differs; ends the program after twenty of these. */
void report(const char *parameters, const char *format, ...);

/* Compares n floats by their bits; where the compiler keeps excess precision (x87), within 1e-5 of the largest. */
void check_floats(const char *parameters, const char *what, const float *got, const float *expected, int32_t n);
/* Compares n floats with doubles: |got - expected| <= relative * |expected| + absolute. */
void check_near(const char *parameters, const char *what, const float *got, const double *expected, int32_t n,
                double relative, double absolute);
void check_bytes(const char *parameters, const char *what, const void *got, const void *expected, size_t n_bytes);

/* Compares n rounded values; with excess precision (x87) a tie may have gone the other way. */
void check_rounded(const char *parameters, const char *what, const int8_t *got, const int8_t *expected, size_t n);

/* The ternary product as the definition in kernels.h reads, one weight after the other. */
lb_matmul_fn reference_matmul_u2;

void test_sizes(void);
void test_float_mode(void);
void test_integer_matmul(void);
void test_float_matmul(void);
void test_sparse(void);
void test_elementwise(void);
void test_attention(void);
void test_shortlist(void);

#endif
