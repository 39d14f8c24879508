/* Stands in for mimalloc's header: its functions as the standard ones. */
#ifndef SUITES_MIMALLOC_H
#define SUITES_MIMALLOC_H

#include <limits.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define mi_option_disable(option) ((void)0)
#define mi_stats_reset() ((void)0)
#define mi_stats_print(out) malloc_stats()
#define mi_collect(force) malloc_trim(0)

#define mi_malloc malloc
#define mi_zalloc(size) calloc(1, size)
#define mi_zalloc_small(size) calloc(1, size)
#define mi_calloc calloc
#define mi_realloc realloc
#define mi_reallocarray reallocarray
#define mi_free free
#define mi_usable_size malloc_usable_size
#define mi_posix_memalign posix_memalign
#define mi_memalign memalign
#define mi_malloc_aligned(size, align) aligned_alloc(align, size)
#define mi_realpath realpath

static inline void *mi_zalloc_aligned(size_t size, size_t align)
{
    void *block = aligned_alloc(align, size);
    return block ? memset(block, 0, size) : NULL;
}

/* What has no counterpart. The parts that call it are not run: ci/suites/tests. */
static inline void *suites_none(void)
{
    abort();
}
typedef void mi_heap_t;
#define mi_heap_new() suites_none()
#define mi_heap_malloc_tp(heap, type) ((type *)suites_none())
#define mi_heap_malloc_aligned(heap, size, align) suites_none()
#define mi_heap_contains_block(heap, block) (suites_none() != NULL)
#define mi_heap_destroy(heap) suites_none()
#define mi_heap_delete(heap) suites_none()
#define mi_malloc_aligned_at(size, align, offset) suites_none()
#define mi_calloc_aligned(count, size, align) suites_none()
#define mi_rezalloc(block, size) suites_none()
#define mi_recalloc(block, count, size) suites_none()
#define mi_rezalloc_aligned(block, size, align) suites_none()
#define mi_recalloc_aligned(block, count, size, align) suites_none()
#endif
