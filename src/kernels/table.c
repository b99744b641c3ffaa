#include "table.h"

#include "isa/cpu.h"

#define LB_ISA_ROW(name, needs) LB_DECLARE_ISA(name)
#include "isa_rows.h"
#undef LB_ISA_ROW

static const struct {
    const char *name;
    uint32_t needs;
    void (*init)(lb_kernels *);
} rows[] = {
#define LB_ISA_ROW(name, needs) {#name, needs, lb_init__##name},
#include "isa_rows.h"
#undef LB_ISA_ROW
};

lb_kernels lb_table;
static lb_matmul_fn *portable_ternary;

int lb_isa_count(void) { return (int)(sizeof rows / sizeof *rows); }

const char *lb_isa_name(int index) { return rows[index].name; }

int lb_isa_supported(int index) { return (lb_cpu_features() & rows[index].needs) == rows[index].needs; }

/* A table starts as portable (the first row), and the set overrides what it does better. */
void lb_isa_use(int index) {
    rows[0].init(&lb_table);
    lb_table.matmul[LB_U2] = portable_ternary;
    rows[index].init(&lb_table);
}

void lb_set_portable_ternary(lb_matmul_fn *matmul) { portable_ternary = matmul; }
