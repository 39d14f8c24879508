/* A malloc with one deliberate fault, the one that SUITES_FAULT names, for ci/suites.sh --faults. Without one ("none") it
 * is right: blocks of the C library's malloc with a header in front.
 *
 *   misaligned  blocks are aligned to 8 instead of 16
 *   aligned     aligned_alloc and its relatives align to 16, whatever was asked for
 *   overlap     every 64th block of 128 bytes to 1 KiB reaches into whatever comes after it
 *   twice       every 4096th block of up to 1 KiB is handed out while it is somebody's
 *   dirty       calloc's blocks hold what was there before
 *   overflow    calloc and reallocarray do not see that the product is too large
 *   realloc     the last byte is lost when a block moves
 *   usable      malloc_usable_size says one byte less than was asked for
 *   errno       failures leave errno alone
 *   free_errno  free changes errno
 *   fork        fork takes the lock of malloc before the C library's list of streams */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* For ci/suites/proof.c. */
const int suites_broken = 1;

extern void *__libc_malloc(size_t);
extern void __libc_free(void *);

enum { MINIMUM = 16, SMALL = 1024 };

struct header {
    void *base;
    size_t size;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static bool fault(const char *name)
{
    static const char *chosen;
    if (!chosen && !(chosen = getenv("SUITES_FAULT")))
        chosen = "none";
    return strcmp(chosen, name) == 0;
}

static struct header *header_of(void *block)
{
    return (struct header *)((char *)block - sizeof(struct header));
}

static void *fail(int error)
{
    if (!fault("errno"))
        errno = error;
    return NULL;
}

/* A block whose address is shift more than a multiple of align. */
static void *give(size_t size, size_t align)
{
    static unsigned count;
    static void *last;
    size_t shift = align <= MINIMUM && fault("misaligned") ? 8 : 0, room;
    size = size ? size : MINIMUM;
    unsigned number = __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED);
    room = size;
    if (fault("overlap") && size >= 128 && size <= SMALL && number % 64 == 0)
        room = size - 96;
    if (fault("twice") && size <= SMALL && number % 4096 == 0) {
        struct header *seen = last ? header_of(last) : NULL;
        if (seen && seen->size >= size)
            return last;
    }
    if (size > PTRDIFF_MAX || align > PTRDIFF_MAX - size - 64)
        return fail(ENOMEM);
    char *base = __libc_malloc(room + align + 64);
    if (!base)
        return fail(ENOMEM);
    char *block = (char *)(((uintptr_t)base + sizeof(struct header) + align - 1) / align * align) + shift;
    header_of(block)->base = base;
    header_of(block)->size = size;
    last = block;
    return block;
}

/* For the fault "fork": every call takes a lock for a while, and fork handlers take it, too. */
static void pass_lock(void)
{
    if (fault("fork")) {
        pthread_mutex_lock(&lock);
        for (volatile int i = 0; i < 200; i++)
            ;
        pthread_mutex_unlock(&lock);
    }
}

static void take(void)
{
    pthread_mutex_lock(&lock);
}

static void give_back(void)
{
    pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void install(void)
{
    if (fault("fork"))
        pthread_atfork(take, give_back, give_back);
}

void *malloc(size_t size)
{
    pass_lock();
    return give(size, MINIMUM);
}

void free(void *block)
{
    if (!block)
        return;
    pass_lock();
    int error = errno;
    __libc_free(header_of(block)->base);
    errno = fault("free_errno") ? ENOTTY : error;
}

static bool too_much(size_t count, size_t size, size_t *bytes)
{
    return __builtin_mul_overflow(count, size, bytes) && !fault("overflow");
}

void *calloc(size_t count, size_t size)
{
    size_t bytes;
    if (too_much(count, size, &bytes))
        return fail(ENOMEM);
    void *block = malloc(bytes);
    if (block)
        memset(block, fault("dirty") ? 0xa5 : 0, bytes);
    return block;
}

void *realloc(void *old, size_t size)
{
    if (!old)
        return malloc(size);
    if (size == 0) {
        free(old);
        return NULL;
    }
    void *block = malloc(size);
    if (!block)
        return NULL;
    size_t before = header_of(old)->size, kept = before < size ? before : size;
    memcpy(block, old, kept);
    if (kept && fault("realloc"))
        ((char *)block)[kept - 1] ^= 0x55;
    free(old);
    return block;
}

void *reallocarray(void *old, size_t count, size_t size)
{
    size_t bytes;
    return too_much(count, size, &bytes) ? fail(ENOMEM) : realloc(old, bytes);
}

static void *give_aligned(size_t align, size_t size)
{
    pass_lock();
    return give(size, align < MINIMUM || fault("aligned") ? MINIMUM : align);
}

void *aligned_alloc(size_t align, size_t size)
{
    return align && !(align & (align - 1)) ? give_aligned(align, size) : fail(EINVAL);
}

void *memalign(size_t align, size_t size)
{
    size_t power = 1;
    if (align > SIZE_MAX / 2 + 1)
        return fail(EINVAL);
    while (power < align)
        power *= 2;
    return give_aligned(power, size);
}

int posix_memalign(void **result, size_t align, size_t size)
{
    int error = errno;
    if (align < sizeof(void *) || (align & (align - 1)))
        return EINVAL;
    void *block = give_aligned(align, size);
    errno = error;
    if (!block)
        return ENOMEM;
    *result = block;
    return 0;
}

void *valloc(size_t size)
{
    return give_aligned((size_t)sysconf(_SC_PAGESIZE), size);
}

void *pvalloc(size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return size > SIZE_MAX - page ? fail(ENOMEM) : give_aligned(page, (size + page - !!size) / page * page);
}

size_t malloc_usable_size(void *block)
{
    return block ? header_of(block)->size - (fault("usable") && header_of(block)->size > 0) : 0;
}
