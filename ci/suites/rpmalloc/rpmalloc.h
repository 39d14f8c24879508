/* Stands in for rpmalloc's header: its functions as the standard ones. There is nothing to set up or to shut down. */
#ifndef SUITES_RPMALLOC_H
#define SUITES_RPMALLOC_H

#define _GNU_SOURCE 1
#include <malloc.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RPMALLOC_CDECL
#define RPMALLOC_FIRST_CLASS_HEAPS 0
#define RPMALLOC_GROW_OR_FAIL 2

typedef struct {
    void (*error_callback)(const char *);
    size_t page_size, span_map_count;
} rpmalloc_config_t;

static inline int rpmalloc_initialize(void) { return 0; }
static inline int rpmalloc_initialize_config(const rpmalloc_config_t *config) { return 0; }
static inline const rpmalloc_config_t *rpmalloc_config(void)
{
    static rpmalloc_config_t config;
    config.page_size = (size_t)sysconf(_SC_PAGESIZE);
    return &config;
}
static inline void rpmalloc_finalize(void) {}
static inline void rpmalloc_thread_initialize(void) {}
static inline void rpmalloc_thread_finalize(int release) {}

static inline void *rpmalloc(size_t size) { return malloc(size); }
static inline void rpfree(void *block) { free(block); }
static inline void *rprealloc(void *block, size_t size) { return realloc(block, size); }
static inline size_t rpmalloc_usable_size(void *block) { return malloc_usable_size(block); }
/* An alignment of 0 is none. */
static inline void *rpaligned_alloc(size_t align, size_t size)
{
    return align ? aligned_alloc(align, size) : malloc(size);
}
/* There is no standard function for this one, and none that only grows in place. */
static inline void *rpaligned_realloc(void *old, size_t align, size_t size, size_t old_size, unsigned flags)
{
    size_t before = malloc_usable_size(old);
    void *block;
    if (flags & RPMALLOC_GROW_OR_FAIL)
        return size <= before ? old : NULL;
    block = rpaligned_alloc(align, size);
    if (block) {
        memcpy(block, old, before < size ? before : size);
        free(old);
    }
    return block;
}
#endif
