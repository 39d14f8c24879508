/* Records which sizes a program asks for: how often, and how many blocks of each were live when most bytes were live.
 *
 * Preloaded, it stands before the C library's own malloc. Each block has a header in front of it with the size that was
 * asked for, so that a free is told it. When the process ends by exit, the file $SIZES_FOLDER/NAME.PID gets a line for
 * each size, "size calls live", where NAME is the program's and live counts blocks. Processes that end otherwise, and
 * those that were forked and run no program of their own, leave no file.
 *
 * Sizes are exact up to 4 KiB, and beyond that rounded up to 1/256 of the power of two below them. A realloc is a call for
 * its new size. The alignment of a request is not recorded: most of them do not say any. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *block, size_t size);
void *__libc_memalign(size_t align, size_t size);
void __libc_free(void *block);

/* In front of each block. */
struct header {
    size_t size;
    /* How far the block of the C library lies below this one, mixed with MARK. A block without the mark is one that the
     * dynamic linker took before it could call this library. */
    size_t distance;
};
#define MARK ((size_t)0xb10cda7a << 32)
#define ALIGN (sizeof(struct header))

/* Sizes of one count each, then 256 counts per doubling. */
enum { EXACT = 4096, STEPS = 256, COUNTS = EXACT + 1 + (48 - 12) * STEPS };

/* Of a size. */
static struct count {
    uint64_t calls, live;
    /* Live blocks when most bytes were live; the same as live, unless that has changed since then. */
    uint64_t at_peak;
    int changed;
} counts[COUNTS];
static uint64_t live_bytes, peak_bytes;
/* Those that have changed since the peak: a new one copies them alone. */
static unsigned changed[COUNTS], changes;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static size_t step_of(size_t size) {
    return ((size_t)1 << (63 - __builtin_clzl(size - 1))) / STEPS;
}

static unsigned count_of(size_t size) {
    if (size <= EXACT)
        return size;
    size_t step = step_of(size), log = 63 - __builtin_clzl(size - 1);
    size_t index = EXACT + (log - 12) * STEPS + (size - ((size_t)1 << log) + step - 1) / step;
    return index < COUNTS ? index : COUNTS - 1;
}

static size_t size_of_count(unsigned index) {
    if (index <= EXACT)
        return index;
    size_t log = 12 + (index - EXACT - 1) / STEPS, steps = (index - EXACT - 1) % STEPS + 1;
    return ((size_t)1 << log) + steps * (((size_t)1 << log) / STEPS);
}

/* With the lock held. */
static void change(size_t size, int by) {
    struct count *count = &counts[count_of(size)];
    if (!count->changed) {
        count->changed = 1;
        changed[changes++] = count - counts;
    }
    count->live += by;
    live_bytes += by * (int64_t)size;
    if (live_bytes <= peak_bytes)
        return;
    peak_bytes = live_bytes;
    while (changes > 0) {
        count = &counts[changed[--changes]];
        count->at_peak = count->live;
        count->changed = 0;
    }
}

static void *begin(char *base, size_t distance, size_t size) {
    if (!base)
        return NULL;
    struct header *header = (struct header *)(base + distance) - 1;
    *header = (struct header){size, distance ^ MARK};
    pthread_mutex_lock(&lock);
    counts[count_of(size)].calls++;
    change(size, 1);
    pthread_mutex_unlock(&lock);
    return header + 1;
}

static size_t distance_of(const void *block) {
    size_t distance = ((const struct header *)block)[-1].distance ^ MARK;
    return distance >> 32 ? 0 : distance;
}

static void forget(const void *block) {
    pthread_mutex_lock(&lock);
    change(((const struct header *)block)[-1].size, -1);
    pthread_mutex_unlock(&lock);
}

static int too_large(size_t size) {
    if (size < PTRDIFF_MAX / 2)
        return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size) {
    return too_large(size) ? NULL : begin(__libc_malloc(size + ALIGN), ALIGN, size);
}

void *calloc(size_t count, size_t each) {
    size_t size;
    if (__builtin_mul_overflow(count, each, &size))
        size = SIZE_MAX;
    return too_large(size) ? NULL : begin(__libc_calloc(1, size + ALIGN), ALIGN, size);
}

void *memalign(size_t align, size_t size) {
    if (align < ALIGN)
        align = ALIGN;
    return too_large(size) || too_large(align) ? NULL : begin(__libc_memalign(align, size + align), align, size);
}

void free(void *block) {
    size_t distance = block ? distance_of(block) : 0;
    if (distance)
        forget(block);
    __libc_free((char *)block - distance);
}

void *realloc(void *block, size_t size) {
    if (!block)
        return malloc(size);
    if (size == 0) {
        free(block);
        return NULL;
    }
    size_t distance = distance_of(block);
    if (!distance || too_large(size))
        return distance ? NULL : __libc_realloc(block, size);
    size_t before = ((struct header *)block)[-1].size;
    char *base;
    if (distance == ALIGN) {
        base = __libc_realloc((char *)block - ALIGN, size + ALIGN);
    } else if ((base = __libc_malloc(size + ALIGN))) {
        memcpy(base + ALIGN, block, before < size ? before : size);
        __libc_free((char *)block - distance);
    }
    if (!base)
        return NULL;
    pthread_mutex_lock(&lock);
    change(before, -1);
    pthread_mutex_unlock(&lock);
    return begin(base, ALIGN, size);
}

void *aligned_alloc(size_t align, size_t size) {
    return memalign(align, size);
}

int posix_memalign(void **block, size_t align, size_t size) {
    if (align % sizeof(void *) || align & (align - 1) || !align)
        return EINVAL;
    int before = errno;
    void *got = memalign(align, size);
    errno = before;
    if (!got)
        return ENOMEM;
    *block = got;
    return 0;
}

void *valloc(size_t size) {
    return memalign(sysconf(_SC_PAGESIZE), size);
}

/* What was asked for, so that nobody uses more. */
size_t malloc_usable_size(void *block) {
    return block && distance_of(block) ? ((struct header *)block)[-1].size : 0;
}

static pid_t process;
static char file[4096];

/* A fork may not find the lock held by a thread that the child does not have. */
static void take(void) {
    pthread_mutex_lock(&lock);
}

static void leave(void) {
    pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void start(void) {
    const char *folder = getenv("SIZES_FOLDER");
    process = getpid();
    if (folder)
        snprintf(file, sizeof file, "%s/%s.%d", folder, program_invocation_short_name, process);
    pthread_atfork(take, leave, leave);
}

__attribute__((destructor)) static void end(void) {
    FILE *out = *file && getpid() == process ? fopen(file, "w") : NULL;
    if (!out)
        return;
    take();
    static struct count last[COUNTS];
    memcpy(last, counts, sizeof last);
    leave();
    for (unsigned i = 0; i < COUNTS; i++)
        if (last[i].calls)
            fprintf(out, "%zu %lu %lu\n", size_of_count(i), last[i].calls, last[i].at_peak);
    fclose(out);
}
