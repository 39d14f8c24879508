/* The functions of stdlib.h and malloc.h and the library's own, one case for each, named like it. */
#define _GNU_SOURCE
#include "cases.h"
#include "../../include/rseqalloc.h"
#include <pthread.h>
#include <sys/wait.h>

/* C23, not in every stdlib.h. */
void free_sized(void *block, size_t size);
void free_aligned_sized(void *block, size_t align, size_t size);

/* Checks and frees a block of `size` bytes that should be aligned to `align`. */
static void check_block(void *block, size_t align, size_t size)
{
    CHECK(aligned(block, align));
    CHECK(malloc_usable_size(block) >= size);
    size_t usable = malloc_usable_size(block);
    fill(block, usable, (unsigned)size);
    CHECK(filled(block, usable, (unsigned)size));
    free(block);
}

CASE(malloc)
{
    void *kept[SIZES];
    for (size_t i = 0; i < SIZES; i++) {
        kept[i] = malloc(sizes[i]);
        CHECK(aligned(kept[i], 16));
        fill(kept[i], sizes[i], (unsigned)i);
    }
    for (size_t i = 0; i < SIZES; i++) {
        CHECK(filled(kept[i], sizes[i], (unsigned)i));
        free(kept[i]);
    }
    void *one = malloc(0), *other = malloc(0);
    CHECK(one != other && malloc_usable_size(one) == 16);
    free(one);
    free(other);
    errno = 0;
    CHECK(malloc(too_much) == NULL && errno == ENOMEM);
    errno = 0;
    CHECK(malloc(SIZE_MAX - 8) == NULL && errno == ENOMEM);
    errno = 0;
    CHECK(malloc((size_t)PTRDIFF_MAX + 1) == NULL && errno == ENOMEM);
}

CASE(calloc)
{
    for (int round = 0; round < 2; round++)
        for (size_t i = 0; i < SIZES; i++) {
            unsigned char *block = calloc(sizes[i], 1);
            CHECK(aligned(block, 16) && is_zero(block, sizes[i]));
            /* So that the next round finds used memory. */
            memset(block, 0xff, malloc_usable_size(block));
            free(block);
        }
    errno = 0;
    CHECK(calloc(too_much, 2) == NULL && errno == ENOMEM);
    errno = 0;
    CHECK(calloc((size_t)1 << 33, (size_t)1 << 33) == NULL && errno == ENOMEM);
    void *none = calloc(0, 8);
    CHECK(none != NULL);
    free(none);
}

CASE(realloc)
{
    /* From every size to every other, with the contents kept. */
    for (size_t i = 0; i < SIZES; i++)
        for (size_t j = 0; j < SIZES; j++) {
            if (sizes[j] == 0)
                continue;
            unsigned char *block = malloc(sizes[i]);
            fill(block, sizes[i], (unsigned)(i + j));
            block = realloc(block, sizes[j]);
            CHECK(aligned(block, 16) && malloc_usable_size(block) >= sizes[j]);
            CHECK(filled(block, sizes[i] < sizes[j] ? sizes[i] : sizes[j], (unsigned)(i + j)));
            fill(block, sizes[j], 1);
            free(block);
        }
    /* In place where it fits and is more than half of what fits. */
    void *block = malloc(1000);
    CHECK(realloc(block, malloc_usable_size(block)) == block);
    CHECK(realloc(block, malloc_usable_size(block) / 2 + 1) == block);
    /* Not where it is a small part. */
    block = realloc(block, 100);
    CHECK(malloc_usable_size(block) == 112);
    /* A failure leaves the block alone. */
    fill(block, 100, 3);
    errno = 0;
    CHECK(realloc(block, too_much) == NULL && errno == ENOMEM);
    CHECK(filled(block, 100, 3));
    /* As in glibc. */
    CHECK(realloc(block, 0) == NULL);
    block = realloc(NULL, 50);
    CHECK(aligned(block, 16));
    free(block);
    block = malloc(3000000);
    fill(block, 3000000, 5);
    CHECK(realloc(block, too_much) == NULL && filled(block, 3000000, 5));
    /* What is more aligned than malloc promises keeps its contents. */
    free(block);
    block = aligned_alloc(1 << 21, 3000000);
    fill(block, 3000000, 6);
    block = realloc(block, 9000000);
    CHECK(filled(block, 3000000, 6));
    free(block);
}

CASE(reallocarray)
{
    int *numbers = reallocarray(NULL, 100, sizeof *numbers);
    fill(numbers, 400, 1);
    numbers = reallocarray(numbers, 1000, sizeof *numbers);
    CHECK(filled(numbers, 400, 1));
    errno = 0;
    CHECK(reallocarray(numbers, too_much, 4) == NULL && errno == ENOMEM);
    CHECK(filled(numbers, 400, 1));
    free(numbers);
}

CASE(free)
{
    free(NULL);
    for (size_t i = 0; i < SIZES; i++) {
        errno = 77;
        free(malloc(sizes[i]));
        CHECK(errno == 77);
    }
    /* Freed memory is used again: more than 16 GiB pass through here. */
    for (int i = 0; i < 4000000; i++)
        free(malloc(4096));
    for (int i = 0; i < 2000; i++)
        free(malloc(8 << 20));
}

CASE(free_sized)
{
    for (size_t i = 0; i < SIZES; i++)
        free_sized(malloc(sizes[i]), sizes[i]);
    free_sized(NULL, 8);
    CHECK(mallinfo2().uordblks < 4 << 20);
}

CASE(free_aligned_sized)
{
    for (size_t i = 0; i < SIZES; i++)
        free_aligned_sized(aligned_alloc(256, sizes[i]), 256, sizes[i]);
    free_aligned_sized(NULL, 16, 8);
    CHECK(mallinfo2().uordblks < 4 << 20);
}

CASE(posix_memalign)
{
    void *block = (void *)&block;
    errno = 77;
    for (size_t align = 8; align <= (size_t)1 << 30; align *= 2)
        for (size_t i = 0; i < SIZES; i += 3) {
            CHECK(posix_memalign(&block, align, sizes[i]) == 0);
            check_block(block, align, sizes[i]);
        }
    block = &block;
    CHECK(posix_memalign(&block, 0, 8) == EINVAL);
    CHECK(posix_memalign(&block, 4, 8) == EINVAL);
    CHECK(posix_memalign(&block, 24, 8) == EINVAL);
    CHECK(posix_memalign(&block, 64, too_much) == ENOMEM);
    CHECK(block == (void *)&block && errno == 77);
}

CASE(aligned_alloc)
{
    for (size_t align = 1; align <= 1 << 22; align *= 2)
        for (size_t i = 0; i < SIZES; i++)
            check_block(aligned_alloc(align, sizes[i]), align, sizes[i]);
    volatile size_t odd = 24;
    errno = 0;
    CHECK(aligned_alloc(odd, 48) == NULL && errno == EINVAL);
    errno = 0;
    CHECK(aligned_alloc(64, too_much) == NULL && errno == ENOMEM);
    errno = 0;
    CHECK(aligned_alloc((size_t)1 << 63, 1) == NULL && errno == ENOMEM);
}

CASE(memalign)
{
    for (size_t align = 1; align <= 1 << 22; align *= 2)
        check_block(memalign(align, 1000), align, 1000);
    check_block(memalign(0, 10), 16, 10);
    check_block(memalign(24, 10), 32, 10);
    check_block(memalign(5000, 10), 8192, 10);
    errno = 0;
    CHECK(memalign(SIZE_MAX, 8) == NULL && errno == EINVAL);
}

CASE(valloc)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < SIZES; i++)
        check_block(valloc(sizes[i]), page, sizes[i]);
    errno = 0;
    CHECK(valloc(too_much) == NULL && errno == ENOMEM);
}

CASE(pvalloc)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < SIZES; i++)
        check_block(pvalloc(sizes[i]), page, (sizes[i] + page - 1) / page * page);
    check_block(pvalloc(0), page, page);
    errno = 0;
    CHECK(pvalloc(SIZE_MAX - 5) == NULL && errno == ENOMEM);
}

CASE(malloc_usable_size)
{
    CHECK(malloc_usable_size(NULL) == 0);
    for (size_t i = 0; i < SIZES; i++) {
        void *block = malloc(sizes[i]);
        size_t usable = malloc_usable_size(block);
        CHECK(usable >= sizes[i] && usable >= 16 && usable % 16 == 0);
        /* Steps of a quarter, at least 16 bytes. */
        CHECK(usable <= sizes[i] + (sizes[i] < 64 ? 16 : sizes[i] / 4 + 16));
        free(block);
    }
}

CASE(malloc_trim)
{
    void *blocks[100];
    for (int i = 0; i < 100; i++)
        blocks[i] = memset(malloc(100000), 1, 100000);
    for (int i = 0; i < 100; i++)
        free(blocks[i]);
    struct mallinfo2 before = mallinfo2();
    CHECK(before.fordblks > 9000000);
    CHECK(malloc_trim(0) == 1);
    CHECK(mallinfo2().fordblks + 8000000 < before.fordblks);
}

CASE(mallopt)
{
    CHECK(mallopt(M_MMAP_THRESHOLD, 1 << 20) == 0);
    CHECK(mallopt(M_ARENA_MAX, 1) == 0);
    CHECK(mallopt(12345, 0) == 0);
    /* Bionic's. At once and not after a while: a freed mapping is not kept. */
    CHECK(mallopt(-100, 0) == 1);
    free(malloc(3000000));
    CHECK(mallinfo2().hblks == 0);
    CHECK(mallopt(-100, 1) == 1);
    free(malloc(3000000));
    CHECK(mallinfo2().hblks == 1);
    CHECK(mallopt(-101, 0) == 1 && mallinfo2().hblks == 0);
    free(malloc(3000000));
    CHECK(mallopt(-104, 0) == 1 && mallinfo2().hblks == 0);
    CHECK(mallopt(-100, 7) == 0);
}

CASE(mallinfo2)
{
    struct mallinfo2 before = mallinfo2();
    void *large = malloc(5000000), *small = malloc(50000);
    struct mallinfo2 with = mallinfo2();
    CHECK(with.hblks == before.hblks + 1 && with.hblkhd >= before.hblkhd + 5000000);
    CHECK(with.uordblks >= before.uordblks + 5050000 && with.uordblks < before.uordblks + 5800000);
    free(large);
    free(small);
    struct mallinfo2 after = mallinfo2();
    CHECK(after.uordblks == before.uordblks && after.fordblks >= 5050000 && after.keepcost >= 5000000);
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
CASE(mallinfo)
{
    void *large = malloc(5000000);
    struct mallinfo narrow = mallinfo();
    struct mallinfo2 wide = mallinfo2();
    CHECK((size_t)narrow.uordblks == wide.uordblks && (size_t)narrow.hblkhd == wide.hblkhd && narrow.hblks == 1);
    /* Address space alone; what does not fit an int is cut. */
    void *huge = malloc((size_t)3 << 30);
    CHECK(huge != NULL && mallinfo().hblkhd == INT32_MAX);
    free(huge);
    free(large);
}
#pragma GCC diagnostic pop

/* What `run` writes to file descriptor 2. */
static const char *stderr_of(void (*run)(void))
{
    static char text[8192];
    int ends[2], kept = dup(2);
    CHECK(pipe(ends) == 0 && dup2(ends[1], 2) == 2);
    run();
    CHECK(dup2(kept, 2) == 2);
    close(ends[1]);
    ssize_t len = read(ends[0], text, sizeof text - 1);
    CHECK(len >= 0);
    text[len] = 0;
    return text;
}

CASE(malloc_stats)
{
    const char *text = stderr_of(malloc_stats);
    CHECK(strncmp(text, "rseq-alloc: ", 12) == 0 && strstr(text, rseqalloc_mode()) != NULL);
    CHECK(strstr(text, "\nrseq-alloc: allocated ") != NULL && text[strlen(text) - 1] == '\n');
}

CASE(malloc_info)
{
    char text[8192] = "";
    FILE *stream = fmemopen(text, sizeof text, "w");
    CHECK(malloc_info(1, stream) == EINVAL);
    CHECK(malloc_info(0, stream) == 0);
    fclose(stream);
    CHECK(strncmp(text, "<malloc version=", 16) == 0);
    CHECK(strcmp(text + strlen(text) - 10, "</malloc>\n") == 0);
    CHECK(strstr(text, "<total type=\"mmap\" count=\"") != NULL);
    FILE *full = fopen("/dev/full", "w");
    CHECK(full != NULL && setvbuf(full, NULL, _IONBF, 0) == 0);
    CHECK(malloc_info(0, full) == ENOSPC);
    fclose(full);
}

CASE(vfork)
{
    volatile int shared = 1;
    pid_t child = vfork();
    if (child == 0) {
        /* A real vfork would change the parent's variable and corrupt its heap's caches. */
        shared = 2;
        for (int i = 0; i < 100000; i++)
            free(malloc(100));
        _exit(7);
    }
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7 && shared == 1);
}

CASE(rseqalloc_mode)
{
    const char *mode = rseqalloc_mode();
    CHECK(strstr(mode, "mm_cid") == mode || strstr(mode, "cpu_id") == mode || strstr(mode, "arenas") == mode);
    const char *asked = getenv("EXPECTED_MODE");
    CHECK(asked == NULL || strstr(mode, asked) == mode);
    CHECK(rseqalloc_mode() == mode);
}

CASE(rseqalloc_stats_text)
{
    char text[4096], cut[10];
    size_t len = rseqalloc_stats_text(text, sizeof text);
    CHECK(len > 100 && len == strlen(text) && strncmp(text, "allocated ", 10) == 0);
    CHECK(rseqalloc_stats_text(NULL, 0) == len);
    memset(cut, 'x', sizeof cut);
    CHECK(rseqalloc_stats_text(cut, 5) == len && strcmp(cut, "allo") == 0 && cut[5] == 'x');
    CHECK(rseqalloc_stats_text(cut, 1) == len && cut[0] == 0);
}

CASE(rseqalloc_stats_json)
{
    char text[4096];
    void *block = malloc(3000000);
    size_t len = rseqalloc_stats_json(text, sizeof text);
    CHECK(len == strlen(text) && text[0] == '{' && text[len - 1] == '}');
    CHECK(strncmp(text, "{\"mode\":\"", 9) == 0 && strstr(text, rseqalloc_mode()) == text + 9);
    const char *allocated = strstr(text, "\"allocated\":");
    CHECK(allocated != NULL && atol(allocated + 12) >= 3000000);
    CHECK(strstr(text, "\"arena_moves\":") != NULL);
    free(block);
}

CASE(rseqalloc_purge)
{
    free(memset(malloc(900000), 1, 900000));
    free(memset(malloc(3000000), 1, 3000000));
    CHECK(rseqalloc_purge() >= 3900000);
    CHECK(mallinfo2().keepcost == 0);
}

CASE(rseqalloc_set_options)
{
    CHECK(rseqalloc_set_options("") == 0);
    CHECK(rseqalloc_set_options("budget=2M,decay=never") == 0);
    /* Kept for ever, so it is there to be given back; then given back when it is freed. */
    free(memset(malloc(3000000), 1, 3000000));
    CHECK(mallinfo2().keepcost >= 3000000);
    CHECK(rseqalloc_set_options("decay=0") == 0);
    rseqalloc_purge();
    free(memset(malloc(3000000), 1, 3000000));
    CHECK(mallinfo2().keepcost < 3000000);

    /* What is wrong is named, and the rest applies. */
    int said[2], errors = dup(2);
    char text[1024] = "";
    CHECK(errors >= 0 && pipe(said) == 0 && dup2(said[1], 2) == 2);
    int result = rseqalloc_set_options("colour=red,decay=never,index=arenas");
    CHECK(dup2(errors, 2) == 2 && read(said[0], text, sizeof text - 1) > 0);
    CHECK(result == EINVAL);
    CHECK(strstr(text, "ignored 'colour=red': unknown name") != NULL);
    CHECK(strstr(text, "ignored 'index=arenas': the first allocation has decided that") != NULL);
    CHECK(strstr(text, "decay=never") == NULL);
    free(memset(malloc(3000000), 1, 3000000));
    CHECK(mallinfo2().keepcost >= 3000000);
}
