/* What tst-aligned_alloc-lib.c means by the C library's own malloc: that of the library after this one. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

/* For ci/suites/proof.c. */
const int suites_in_front = 1;

void *suites_next_malloc(size_t size)
{
    static void *(*next)(size_t);
    if (!next)
        next = (void *(*)(size_t))dlsym(RTLD_NEXT, "malloc");
    return next(size);
}

void *suites_next_calloc(size_t count, size_t size)
{
    static void *(*next)(size_t, size_t);
    if (!next)
        next = (void *(*)(size_t, size_t))dlsym(RTLD_NEXT, "calloc");
    return next(count, size);
}
