#ifndef LB_ARENA_H
#define LB_ARENA_H

#include <stddef.h>

/*
 * Memory for weights, which are written once and read in order ever after. What is asked for while the arena is open
 * lies one behind the other in large pages, where the system has them: a processor's prefetcher stops at the end of a
 * page, and each page costs a walk. What else is asked for has pages of its own. All this from any thread; NULL if
 * there is no memory.
 */
void lb_open_arena(void);
void lb_close_arena(void);
void *lb_alloc_weights(size_t bytes);
void lb_free_weights(void *p);

#endif
