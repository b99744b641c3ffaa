/*
 * Many callers of the pool at once, with work that hands out work, and thread numbers that change from call to call.
 * Every unit must be done exactly once, in the default mode of floats whatever the caller's own is, and callers get
 * their mode back. Mutexes let their owner in again, as those of Windows do.
 *
 *     stress SECONDS CALLERS SEED FORKS        FORKS: 1 to fork children that use the pool too
 */
#include "os.h"

#define lb_mutex_init init_recursive_mutex
static void init_recursive_mutex(lb_mutex *m) {
    pthread_mutexattr_t recursive;
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(m, &recursive);
    pthread_mutexattr_destroy(&recursive);
}
#include "pool.c"

#include <fenv.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

enum { MOST_CALLERS = 64, MOST_UNITS = 3000, INNER_UNITS = 40, MOST_WORKERS = 12 };

typedef struct {
    uint64_t random;
    int64_t until, calls;
    int forks;
    uint8_t done[MOST_UNITS];
} caller;

typedef struct {
    uint8_t *done;
    int32_t nested; /* each such unit hands out work of its own, 0: none */
} job;

static uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void die(const char *why) {
    fprintf(stderr, "stress: %s\n", why);
    _exit(1);
}

static void work(void *context, int32_t begin, int32_t end) {
    const job *j = context;
    volatile float one = 1.0f, three = 3.0f, third = one / three;
    const float expected = 0x1.555556p-2f;
    for (int32_t i = begin; i < end; i++) {
        j->done[i]++; /* not atomic: nobody else may do this unit */
        if (third != expected) die("a unit was computed in the caller's mode of floats");
        if (j->nested && i % j->nested == 0) {
            uint8_t inner[INNER_UNITS] = {0};
            job own = {inner, 0};
            lb_parallel(work, &own, INNER_UNITS, 1, MOST_WORKERS);
            for (int32_t k = 0; k < INNER_UNITS; k++) {
                if (inner[k] != 1) die("a unit of nested work was not done once");
            }
        }
    }
}

static void call_once(caller *c) {
    static const int modes[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
    const uint64_t r = next_random(&c->random);
    const int32_t n = (int32_t)(r % MOST_UNITS), chunk = 1 + (int32_t)((r >> 16) % 50);
    const int mode = modes[(r >> 32) % 4];
    job j = {c->done, (r >> 40) % 3 ? 0 : 1 + (int32_t)((r >> 44) % 100)};
    memset(c->done, 0, sizeof c->done);
    fesetround(mode);
    lb_parallel(work, &j, n, chunk, 1 + (int32_t)((r >> 24) % MOST_WORKERS));
    if (fegetround() != mode) die("a caller's mode of floats has changed");
    for (int32_t i = 0; i < MOST_UNITS; i++) {
        if (c->done[i] != (i < n)) die("a unit was not done once");
    }
    c->calls++;
}

static void fork_once(caller *c) {
    const pid_t child = fork();
    if (child == 0) {
        lb_pool_after_fork();
        for (int i = 0; i < 3; i++) call_once(c);
        _exit(0);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || status) die("a child ended badly");
}

static LB_THREAD_RESULT run_caller(void *argument) {
    caller *c = argument;
    while (lb_nanoseconds() < c->until) {
        for (int i = 0; i < 50; i++) call_once(c);
        if (c->forks) fork_once(c);
    }
    return 0;
}

int main(int argc, char **argv) {
    static caller callers[MOST_CALLERS];
    lb_thread threads[MOST_CALLERS];
    if (argc != 5) die("SECONDS CALLERS SEED FORKS");
    const int n = atoi(argv[2]) < MOST_CALLERS ? atoi(argv[2]) : MOST_CALLERS;
    int64_t calls = 0;
    for (int i = 0; i < n; i++) {
        callers[i].random = (uint64_t)atoll(argv[3]) * 0x9e3779b97f4a7c15u + (uint64_t)i + 1;
        callers[i].until = lb_nanoseconds() + atoll(argv[1]) * 1000000000;
        callers[i].forks = i == 0 && atoi(argv[4]);
        if (!lb_thread_run(&threads[i], run_caller, &callers[i])) die("no thread");
    }
    for (int i = 0; i < n; i++) {
        lb_thread_join(threads[i]);
        calls += callers[i].calls;
    }
    printf("%lld calls by %d callers, no fault\n", (long long)calls, n);
    return 0;
}
