#ifndef LB_ARENA_H
#define LB_ARENA_H

#include <stddef.h>

/*
 * Memory for weights, which are written once and read in order ever after. Small matrices lie one behind the other in
 * large pages, where the system has them: a processor's prefetcher stops at the end of a page, and each page costs a
 * walk. Returns NULL if there is no memory. From any thread.
 */
void *lb_alloc_weights(size_t bytes);
void lb_free_weights(void *p);

#endif
