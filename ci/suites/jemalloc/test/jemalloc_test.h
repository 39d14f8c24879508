/* Stands in for the header that jemalloc's configure makes: the names that its tests use, as far as these need only the
 * standard interface. One function of a test file is run, the one that SUITES_ONLY names; none is a failure.
 *
 * jemalloc's extended functions become combinations of standard ones:
 *
 *   mallocx    malloc, calloc or aligned_alloc        dallocx, sdallocx   free, or C23's free_sized if there is one
 *   rallocx    realloc; with an alignment             sallocx             malloc_usable_size
 *              aligned_alloc, memcpy, free            nallocx             usable size of a block that is freed again
 *
 * MALLOCX_ZERO promises zeros in the whole usable size, so that is written to. mallctl knows what these tests ask:
 * purging is malloc_trim, arenas are all the same one, and the largest size class is PTRDIFF_MAX. */
#ifndef SUITES_JEMALLOC_TEST_H
#define SUITES_JEMALLOC_TEST_H

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <malloc.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LG_SIZEOF_PTR 3
#define SIZE_T_MAX SIZE_MAX
#define ZU(number) ((size_t)(number))
#define BUFERROR_BUF 64
#define SC_LARGE_MINCLASS ((size_t)16384)
#define JEMALLOC_DIAGNOSTIC_PUSH
#define JEMALLOC_DIAGNOSTIC_POP
#define JEMALLOC_DIAGNOSTIC_IGNORE_ALLOC_SIZE_LARGER_THAN
#define TEST_MALLOC_SIZE malloc_usable_size
#define malloc_printf printf
#define malloc_snprintf snprintf
#define config_stats false

static inline void set_errno(int error) { errno = error; }
static inline int get_errno(void) { return errno; }
static inline int buferror(int error, char *buffer, size_t size)
{
    return snprintf(buffer, size, "errno %d", error) < 0;
}

/* The harness. Threads may report, too. */
typedef void suites_function(void);
static volatile int suites_failures, suites_ran, suites_skipped;

__attribute__((format(printf, 1, 2))) static inline void test_fail(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    __atomic_add_fetch(&suites_failures, 1, __ATOMIC_SEQ_CST);
}

__attribute__((format(printf, 1, 2))) static inline void test_skip(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    suites_skipped = 1;
}

static inline bool suites_starts(const char *name)
{
    const char *only = getenv("SUITES_ONLY");
    if (!only || strcmp(only, name) != 0)
        return false;
    suites_ran++;
    return true;
}

static inline int suites_run(suites_function *const *functions, size_t count)
{
    for (size_t i = 0; i < count; i++)
        functions[i]();
    if (!suites_ran)
        test_fail("no function of this file is SUITES_ONLY");
    return suites_failures ? 1 : suites_skipped ? 77 : 0;
}

#define TEST_BEGIN(name)               \
    static void name(void)             \
    {                                  \
        if (!suites_starts(#name))     \
            return;
#define TEST_END }
#define test_no_reentrancy(...) test(__VA_ARGS__)
/* A block that has a value works in both languages of the GNU compilers. */
#define test(...)                                                                                               \
    __extension__({                                                                                             \
        suites_function *const functions_[] = {__VA_ARGS__};                                                    \
        suites_run(functions_, sizeof functions_ / sizeof *functions_);                                         \
    })

/* Comparisons: as what they are compared and shown, and whether a failure ends the program. */
#define SUITES_CMP(end, type, format, a, op, b, ...)                                                            \
    do {                                                                                                        \
        __typeof__(type) a_ = (type)(a), b_ = (type)(b);                                                        \
        if (!(a_ op b_)) {                                                                                      \
            fprintf(stderr, "%s:%d: expected %s " #op " %s, not " format " and " format ": ", __FILE__,         \
                __LINE__, #a, #b, a_, b_);                                                                      \
            test_fail(__VA_ARGS__);                                                                             \
            if (end)                                                                                            \
                abort();                                                                                        \
        }                                                                                                       \
    } while (0)
#define expect_d_eq(a, b, ...) SUITES_CMP(0, int, "%d", a, ==, b, __VA_ARGS__)
#define expect_d_ne(a, b, ...) SUITES_CMP(0, int, "%d", a, !=, b, __VA_ARGS__)
#define expect_u_eq(a, b, ...) SUITES_CMP(0, unsigned, "%u", a, ==, b, __VA_ARGS__)
#define expect_zu_eq(a, b, ...) SUITES_CMP(0, size_t, "%zu", a, ==, b, __VA_ARGS__)
#define expect_zu_ne(a, b, ...) SUITES_CMP(0, size_t, "%zu", a, !=, b, __VA_ARGS__)
#define expect_zu_ge(a, b, ...) SUITES_CMP(0, size_t, "%zu", a, >=, b, __VA_ARGS__)
#define expect_zd_eq(a, b, ...) SUITES_CMP(0, ssize_t, "%zd", a, ==, b, __VA_ARGS__)
#define expect_ptr_eq(a, b, ...) SUITES_CMP(0, void *, "%p", a, ==, b, __VA_ARGS__)
#define expect_ptr_null(a, ...) SUITES_CMP(0, void *, "%p", a, ==, NULL, __VA_ARGS__)
#define expect_ptr_not_null(a, ...) SUITES_CMP(0, void *, "%p", a, !=, NULL, __VA_ARGS__)
#define expect_true(a, ...) SUITES_CMP(0, int, "%d", (bool)(a), ==, true, __VA_ARGS__)
#define expect_false(a, ...) SUITES_CMP(0, int, "%d", (bool)(a), ==, false, __VA_ARGS__)
#define assert_zu_eq(a, b, ...) SUITES_CMP(1, size_t, "%zu", a, ==, b, __VA_ARGS__)
#define assert_ptr_not_null(a, ...) SUITES_CMP(1, void *, "%p", a, !=, NULL, __VA_ARGS__)
#define assert(what) SUITES_CMP(1, int, "%d", (bool)(what), ==, true, "assertion")

/* Threads. */
typedef pthread_t thd_t;
static inline void thd_create(thd_t *thread, void *(*start)(void *), void *argument)
{
    if (pthread_create(thread, NULL, start, argument) != 0) {
        test_fail("pthread_create");
        abort();
    }
}
static inline void thd_join(thd_t thread, void **result) { pthread_join(thread, result); }

#ifndef __cplusplus
/* A queue of messages, linked, with a lock. */
#define mq_msg(type) struct { type *next; }
#define mq_gen(attributes, prefix, queue, message, field)                                                       \
    typedef struct { pthread_mutex_t lock; message *first, **last; unsigned count; } queue;                     \
    attributes bool prefix##init(queue *q)                                                                      \
    {                                                                                                           \
        q->first = NULL, q->last = &q->first, q->count = 0;                                                     \
        return pthread_mutex_init(&q->lock, NULL) != 0;                                                         \
    }                                                                                                           \
    attributes void prefix##fini(queue *q) { pthread_mutex_destroy(&q->lock); }                                 \
    attributes unsigned prefix##count(queue *q) { return __atomic_load_n(&q->count, __ATOMIC_SEQ_CST); }        \
    attributes message *prefix##tryget(queue *q)                                                                \
    {                                                                                                           \
        pthread_mutex_lock(&q->lock);                                                                           \
        message *m = q->first;                                                                                  \
        if (m && !(q->count--, q->first = m->field.next))                                                       \
            q->last = &q->first;                                                                                \
        pthread_mutex_unlock(&q->lock);                                                                         \
        return m;                                                                                               \
    }                                                                                                           \
    attributes message *prefix##get(queue *q)                                                                   \
    {                                                                                                           \
        message *m;                                                                                             \
        while (!(m = prefix##tryget(q)))                                                                        \
            usleep(10);                                                                                         \
        return m;                                                                                               \
    }                                                                                                           \
    attributes void prefix##put(queue *q, message *m)                                                           \
    {                                                                                                           \
        pthread_mutex_lock(&q->lock);                                                                           \
        m->field.next = NULL, *q->last = m, q->last = &m->field.next, q->count++;                               \
        pthread_mutex_unlock(&q->lock);                                                                         \
    }
#endif

/* The extended functions. */
#define MALLOCX_LG_ALIGN(lg) ((int)(lg))
#define MALLOCX_ALIGN(align) ((int)__builtin_ctzll(align))
#define MALLOCX_ZERO 64
#define MALLOCX_TCACHE_NONE 0
#define MALLOCX_ARENA(arena) 0

#ifdef __cplusplus
extern "C" {
#endif
__attribute__((weak)) void free_sized(void *, size_t);
__attribute__((weak)) void free_aligned_sized(void *, size_t, size_t);
#ifdef __cplusplus
}
#endif

static inline void *mallocx(size_t size, int flags)
{
    size_t align = (size_t)1 << (flags & 63);
    void *block;
    if (align > 1)
        block = aligned_alloc(align, size);
    else
        block = flags & MALLOCX_ZERO ? calloc(1, size) : malloc(size);
    if (block && (flags & MALLOCX_ZERO))
        memset(block, 0, malloc_usable_size(block));
    return block;
}
static inline size_t sallocx(void *block, int flags) { return malloc_usable_size(block); }
static inline void dallocx(void *block, int flags) { free(block); }
static inline void sdallocx(void *block, size_t size, int flags)
{
    size_t align = (size_t)1 << (flags & 63);
    if (align > 1 && free_aligned_sized)
        free_aligned_sized(block, align, size);
    else if (align == 1 && free_sized)
        free_sized(block, size);
    else
        free(block);
}
static inline size_t nallocx(size_t size, int flags)
{
    void *block = mallocx(size, flags);
    size_t usable = block ? malloc_usable_size(block) : 0;
    free(block);
    return usable;
}
static inline void *rallocx(void *old, size_t size, int flags)
{
    size_t align = (size_t)1 << (flags & 63), before = malloc_usable_size(old), after;
    void *block;
    if (align > 1) {
        block = aligned_alloc(align, size);
        if (!block)
            return NULL;
        after = malloc_usable_size(block);
        memcpy(block, old, before < after ? before : after);
        free(old);
    } else {
        block = realloc(old, size);
        if (!block)
            return NULL;
    }
    after = malloc_usable_size(block);
    if ((flags & MALLOCX_ZERO) && after > before)
        memset((char *)block + before, 0, after - before);
    return block;
}

static inline int mallctlbymib(const size_t *mib, size_t len, void *old, size_t *old_size, void *to, size_t size)
{
    *(size_t *)old = mib[2] == 0 ? SC_LARGE_MINCLASS : (size_t)PTRDIFF_MAX;
    return 0;
}
static inline int mallctlnametomib(const char *name, size_t *mib, size_t *len)
{
    return strcmp(name, "arenas.lextent.0.size") == 0 ? 0 : ENOENT;
}
static inline int mallctl(const char *name, void *old, size_t *old_size, void *to, size_t size)
{
    if (strcmp(name, "arena.0.purge") == 0)
        malloc_trim(0);
    else if (strcmp(name, "arenas.nlextents") == 0)
        *(unsigned *)old = 2;
    else if (strcmp(name, "arenas.lextent.0.size") == 0)
        *(size_t *)old = SC_LARGE_MINCLASS;
    else if (strcmp(name, "arenas.create") == 0 || strcmp(name, "thread.arena") == 0)
        *(unsigned *)old = 0;
    else if (strcmp(name, "opt.percpu_arena") == 0)
        *(const char **)old = "disabled";
    else if (strcmp(name, "thread.tcache.flush") != 0)
        return ENOENT;
    return 0;
}
#endif
