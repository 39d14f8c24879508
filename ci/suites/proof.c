/* Linked into every test: looks before main whose malloc the program has, and ends it if that is not SUITES_MALLOC:
 *
 *   ours     librseqalloc.so, which is where the function rseqalloc_mode is
 *   broken   broken.so, which is where the function suites_broken is
 *   libc     the C library, which is where the function gnu_get_libc_version is, and no rseqalloc_mode anywhere
 *
 * malloc, free, and what else a test may call, have to come from the same file. Writes the word to the file
 * SUITES_PROOF, so that who started the test knows that this was done. Uses nothing that allocates. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void say(int to, const char *text)
{
    ssize_t written = write(to, text, strlen(text));
    (void)written;
}

static _Noreturn void refuse(const char *what, const char *where)
{
    say(2, "suites: not the malloc that was asked for: ");
    say(2, what);
    say(2, " is in ");
    say(2, where);
    say(2, "\n");
    _exit(99);
}

static const char *file_of(const char *function)
{
    Dl_info info;
    void *address = dlsym(RTLD_DEFAULT, function);
    return address && dladdr(address, &info) ? info.dli_fname : "no file";
}

__attribute__((constructor(101))) static void prove(void)
{
    static const char *const functions[] = {
        "malloc", "calloc", "realloc", "free", "posix_memalign", "aligned_alloc", "memalign", "valloc",
        "malloc_usable_size",
    };
    /* Which only librseqalloc.so has all of: the operators of C++ are its own, too. */
    static const char *const more[] = {"_Znwm", "_ZnwmSt11align_val_t", "_ZdlPv", "free_sized", "pvalloc", "mallinfo2"};
    const char *allocator = getenv("SUITES_MALLOC"), *path = getenv("SUITES_PROOF"), *mark, *before, *home;
    if (!allocator || !path)
        refuse("SUITES_MALLOC or SUITES_PROOF", "nobody's environment: tests are run by ci/suites.sh");
    if (strcmp(allocator, "ours") == 0)
        mark = "rseqalloc_mode";
    else if (strcmp(allocator, "broken") == 0)
        mark = "suites_broken";
    else
        mark = "gnu_get_libc_version";
    if (strcmp(allocator, "ours") != 0 && dlsym(RTLD_DEFAULT, "rseqalloc_mode"))
        refuse("rseqalloc_mode", file_of("rseqalloc_mode"));
    home = file_of(mark);
    if (!dlsym(RTLD_DEFAULT, mark))
        refuse(mark, home);
    /* A few of glibc's tests put a library of their own in front, which defines malloc only and calls the next one. */
    before = dlsym(RTLD_DEFAULT, "suites_in_front") ? file_of("suites_in_front") : "";
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        const char *file = file_of(functions[i]);
        if (strcmp(file, home) != 0 && strcmp(file, before) != 0)
            refuse(functions[i], file);
    }
    for (size_t i = 0; strcmp(allocator, "ours") == 0 && i < sizeof more / sizeof *more; i++)
        if (strcmp(file_of(more[i]), home) != 0)
            refuse(more[i], file_of(more[i]));
    int to = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (to < 0)
        refuse("SUITES_PROOF", "no file that can be written");
    say(to, allocator);
    say(to, "\n");
    close(to);
}
