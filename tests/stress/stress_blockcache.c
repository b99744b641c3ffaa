/*
 * Many threads, random blocks, a budget of a few slots. Every byte of every block is checked, the cache's own
 * assertions are on (the budget is one of them), and a part of the reads fails.
 *
 *     stress SECONDS THREADS SEED FILE        FILE is written and removed
 *
 * Rounds of half a second differ in their caches: file or function as source, direct reads or not, the number of
 * readers, an order or none, blocks outside the order, hints, failing reads, changes of order under way.
 */
#include "os.h"
#include "blockcache.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#ifndef O_DIRECT
#define O_DIRECT 0
#endif

enum { MOST_THREADS = 64, N_BLOCKS = 120, SHORTEST = 1, LONGEST = 40000, ROUND_NS = 500000000 };

typedef struct {
    lb_cache *cache;
    const int64_t *table;
    const uint8_t *file; /* what it must hold */
    int64_t until;
    lb_atomic in_order; /* threads take the next place of the order rather than any block */
    lb_atomic next;
    lb_atomic calls, nested, timeouts, questions, interrupted;
    int fails;
} round_t;

typedef struct {
    round_t *round;
    uint64_t random;
    int64_t acquired, bytes, errors;
} thread_t;

static uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void die(const char *why, int64_t number) {
    fprintf(stderr, "stress: %s (%lld)\n", why, (long long)number);
    exit(1);
}

/* A source that fails, comes short of what was asked, and takes its time. */
static int64_t read_function(void *context, void *buffer, int64_t bytes, int64_t offset) {
    round_t *round = context;
    const int32_t call = lb_atomic_add(&round->calls, 1);
    if (round->fails && call % 7 == 0) return -EIO;
    if (call % 5 == 0) lb_yield();
    if (call % 11 == 0) { /* the cache that this is read for */
        int32_t error;
        const int32_t block = call % N_BLOCKS;
        if (lb_cache_acquire(round->cache, block, -1, &error)) {
            lb_cache_release(round->cache, block);
            lb_atomic_add(&round->nested, 1);
        } else if (error != LB_CACHE_OWN_WAIT && error != LB_CACHE_CLOSED)
            die("acquire in a read", error);
    }
    const int64_t n = call % 3 == 0 && bytes > 1 ? bytes / 2 : bytes;
    memcpy(buffer, round->file + offset, (size_t)n);
    return n;
}

static int is_interrupted(void *context) {
    round_t *round = context;
    return lb_atomic_add(&round->questions, 1) % 3 == 0;
}

static LB_THREAD_RESULT use_blocks(void *argument) {
    thread_t *t = argument;
    round_t *round = t->round;
    while (lb_nanoseconds() < round->until) {
        const uint64_t r = next_random(&t->random);
        int32_t block = (int32_t)(r % N_BLOCKS), error = 0;
        if (lb_atomic_load(&round->in_order) && r >> 60) block = lb_atomic_add(&round->next, 1) % N_BLOCKS;
        if ((r >> 32) % 16 == 0) {
            const int32_t hints[2] = {(int32_t)((r >> 40) % N_BLOCKS), (int32_t)((r >> 48) % N_BLOCKS)};
            lb_cache_prefetch(round->cache, hints, 2);
        }
        if ((r >> 32) % 1024 == 1) {
            int32_t order[N_BLOCKS];
            int64_t smallest;
            for (int32_t i = 0; i < N_BLOCKS; i++) order[i] = i;
            const int32_t n = (r >> 52) % 2 ? N_BLOCKS : 0;
            const int32_t result = lb_cache_set_order(round->cache, order, n, 0, &smallest);
            if (result && result != LB_CACHE_BUSY && result != LB_CACHE_INTERRUPTED) die("set_order", result);
            if (!result) lb_atomic_store(&round->in_order, n > 0);
        }
        const int64_t timeout = (r >> 36) % 8 == 0 ? 1000000 : -1;
        const uint8_t *bytes = lb_cache_acquire(round->cache, block, timeout, &error);
        if (bytes) {
            if (memcmp(bytes, round->file + round->table[3 * block + 1], (size_t)round->table[3 * block + 2]))
                die("wrong bytes in block", block);
            if ((r >> 36) % 32 == 1) lb_yield();
            lb_cache_release(round->cache, block);
            if ((r >> 44) % 16 == 1) lb_cache_forget(round->cache, block);
            t->acquired++;
            t->bytes += round->table[3 * block + 2];
        } else if (error == LB_CACHE_BUSY && timeout > 0) {
            lb_atomic_add(&round->timeouts, 1);
        } else if (error == LB_CACHE_INTERRUPTED) {
            lb_atomic_add(&round->interrupted, 1);
        } else if (error == EIO && round->fails) {
            t->errors++;
        } else {
            die("acquire", error);
        }
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 5) die("usage: stress SECONDS THREADS SEED FILE", argc);
    const int64_t seconds = atoll(argv[1]);
    const int most_threads = atoi(argv[2]);
    uint64_t random = (uint64_t)atoll(argv[3]) * 0x9E3779B97F4A7C15u + 1;
    if (most_threads < 1 || most_threads > MOST_THREADS) die("threads", most_threads);

    int64_t table[3 * N_BLOCKS], size = 0;
    for (int32_t b = 0; b < N_BLOCKS; b++) {
        table[3 * b] = 0;
        table[3 * b + 1] = size;
        table[3 * b + 2] = SHORTEST + (int64_t)(next_random(&random) % (LONGEST - SHORTEST));
        size += table[3 * b + 2] + (int64_t)(next_random(&random) % 3 ? 0 : next_random(&random) % 5000);
    }
    uint8_t *bytes_of_file = malloc((size_t)size);
    if (!bytes_of_file) die("no memory", size);
    for (int64_t i = 0; i < size; i++) bytes_of_file[i] = (uint8_t)(next_random(&random) >> 20);
    FILE *file = fopen(argv[4], "wb");
    if (!file || fwrite(bytes_of_file, 1, (size_t)size, file) != (size_t)size || fclose(file))
        die("cannot write the file", errno);

    int64_t acquired = 0, bytes = 0, errors = 0, rounds = 0, timeouts = 0, interrupted = 0, nested = 0,
            direct_rounds = 0;
    lb_cache_stats sum = {0};
    const int64_t end = lb_nanoseconds() + seconds * 1000000000;
    for (; lb_nanoseconds() < end; rounds++) {
        const uint64_t r = next_random(&random);
        round_t round = {
            .table = table, .file = bytes_of_file, .fails = (r >> 8) % 2, .until = lb_nanoseconds() + ROUND_NS};
        lb_source source = {NULL, NULL, -1, -1};
        if (r % 3 == 0) {
            source.read = read_function;
            source.context = &round;
        } else {
            source.fd = open(argv[4], O_RDONLY);
            if (source.fd < 0) die("cannot open the file", errno);
            if (r % 3 == 1 && O_DIRECT) source.direct_fd = open(argv[4], O_RDONLY | O_DIRECT);
            direct_rounds += source.direct_fd >= 0;
        }
        const int32_t readers = (int32_t)((r >> 16) % 5);
        int64_t smallest = 0, budget = 1;
        int32_t error;
        if (lb_cache_new(&source, 1, table, N_BLOCKS, budget, readers, &error, &smallest) || error != LB_CACHE_BUDGET)
            die("a budget of one byte was enough", error);
        budget = smallest + (int64_t)((r >> 24) % (r >> 60 ? 400000 : 4000000)); /* a few slots; or up to all */
        round.cache = lb_cache_new(&source, 1, table, N_BLOCKS, budget, readers, &error, &smallest);
        if (!round.cache) die("no cache", error);
        lb_cache_on_wait(round.cache, is_interrupted, &round);
        thread_t threads[MOST_THREADS];
        lb_thread handles[MOST_THREADS];
        const int n_threads = (r >> 56) % 4 ? most_threads : (most_threads + 7) / 8; /* few leave time to read ahead */
        for (int i = 0; i < n_threads; i++) {
            threads[i] = (thread_t){.round = &round, .random = next_random(&random) | 1};
            if (!lb_thread_run(&handles[i], use_blocks, &threads[i])) die("no thread", i);
        }
        for (int i = 0; i < n_threads; i++) {
            lb_thread_join(handles[i]);
            acquired += threads[i].acquired;
            bytes += threads[i].bytes;
            errors += threads[i].errors;
        }
        const lb_cache_stats s = lb_cache_get_stats(round.cache);
        if (s.peak_memory > budget || s.memory > s.peak_memory) die("more memory than the budget", s.peak_memory);
        if (s.wasted > s.prefetched || s.prefetched > s.reads || s.late > s.misses) die("counters disagree", s.reads);
        sum.hits += s.hits;
        sum.misses += s.misses;
        sum.reads += s.reads;
        sum.prefetched += s.prefetched;
        sum.evictions += s.evictions;
        timeouts += lb_atomic_load(&round.timeouts);
        interrupted += lb_atomic_load(&round.interrupted);
        nested += lb_atomic_load(&round.nested);
        const int32_t last = (int32_t)(r % N_BLOCKS);
        const uint8_t *kept = lb_cache_acquire(round.cache, last, -1, &error);
        if (kept) { /* what is referenced stays */
            lb_cache_end(round.cache);
            if (lb_cache_close(round.cache) != LB_CACHE_BUSY) die("closed under a reference", last);
            if (memcmp(kept, bytes_of_file + table[3 * last + 1], (size_t)table[3 * last + 2]))
                die("wrong bytes in the block kept", last);
            lb_cache_release(round.cache, last);
        }
        lb_cache_free(round.cache);
        if (source.fd >= 0) close(source.fd);
        if (source.direct_fd >= 0) close(source.direct_fd);
    }
    remove(argv[4]);
    free(bytes_of_file);
    const int64_t uses = sum.hits + sum.misses; /* readers may nest some more once they are counted */
    if (uses < acquired || uses > acquired + nested) die("hits and misses are not all", acquired);
    printf("%lld rounds (%lld with direct reads), %d threads: %lld blocks and %lld bytes checked, %lld hits, "
           "%lld misses, %lld reads, %lld of them ahead, %lld evictions, %lld read errors, %lld timeouts, "
           "%lld interrupted: no fault\n",
           (long long)rounds, (long long)direct_rounds, most_threads, (long long)acquired, (long long)bytes,
           (long long)sum.hits, (long long)sum.misses, (long long)sum.reads, (long long)sum.prefetched,
           (long long)sum.evictions, (long long)errors, (long long)timeouts, (long long)interrupted);
    return 0;
}
