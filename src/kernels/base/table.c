#include "table.h"

#include "cpu.h"

#define LB_ISA_ROW(name, base, needs) LB_DECLARE_ISA(name)
#include "isa_rows.h"
#undef LB_ISA_ROW

enum {
#define LB_ISA_ROW(name, base, needs) ROW_##name,
#include "isa_rows.h"
#undef LB_ISA_ROW
};

static const struct {
    const char *name;
    int base; /* the row of the set that it refines; portable, the first, is its own */
    uint32_t needs;
    void (*init)(lb_kernels *);
} rows[] = {
#define LB_ISA_ROW(name, base, needs) {#name, ROW_##base, needs, lb_init__##name},
#include "isa_rows.h"
#undef LB_ISA_ROW
};

lb_kernels lb_table;
static lb_matmul_fn *portable_ternary;

int lb_isa_count(void) { return (int)(sizeof rows / sizeof *rows); }

const char *lb_isa_name(int index) { return rows[index].name; }

const char *lb_isa_lacks(int index) {
    if ((lb_cpu_features() & rows[index].needs) != rows[index].needs) return "this CPU does not have it";
    return lb_cpu_refusal(rows[index].needs);
}

/* A table starts as that of the base, and the set overrides what it does better. */
void lb_isa_use(int index) {
    if (rows[index].base != index) lb_isa_use(rows[index].base);
    rows[index].init(&lb_table);
}

void lb_set_portable_ternary(lb_matmul_fn *matmul) { portable_ternary = matmul; }

lb_matmul_fn lb_matmul_u2__portable;
void lb_matmul_u2__portable(const lb_matmul_args *args, int32_t begin, int32_t end) {
    portable_ternary(args, begin, end);
}
