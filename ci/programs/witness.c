/* Says of every process that it is loaded into whether the allocator is there and in use.
 *
 * Preloaded before the library, or linked into a static program with -DLINKED. When a program starts and when it exits,
 * a line is added to the file $WITNESS_LOG, its fields separated by tabs:
 *
 *     start or end, pid, the program's path
 *     yes or no: whether the file $WITNESS_LIBRARY is mapped (static: whether rseqalloc_mode is linked in)
 *     the file that malloc, calloc, realloc and free of this process are in; "several" if not the same for all
 *     rseqalloc_mode(), or "-"
 *     how often caches were filled from the heap so far: more than 0 if the allocator handed out blocks
 *     the largest resident size so far in KiB
 *
 * A process that ends by a signal or by _exit has no line "end". Works the same where the allocator is not loaded, so
 * that the two can be told apart. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef LINKED
const char *rseqalloc_mode(void) __attribute__((weak));
size_t rseqalloc_stats_json(char *buffer, size_t size) __attribute__((weak));
#endif

typedef const char *mode_function(void);
typedef size_t stats_function(char *buffer, size_t size);

/* The environment as it was at the start: servers clear it. */
static char log_file[4096], library[4096];

struct allocator {
    const char *mapped;
    const char *of_malloc;
    mode_function *mode;
    stats_function *stats;
};

/* A line of a file of /proc that begins with or contains `what`, read without streams: those allocate. */
static int find_line(const char *path, const char *what, char *line, size_t size) {
    int file = open(path, O_RDONLY | O_CLOEXEC), found = 0;
    size_t len = 0;
    char c;
    static __thread char block[4096];
    ssize_t got;
    while (file >= 0 && !found && (got = read(file, block, sizeof block)) > 0) {
        for (ssize_t i = 0; i < got && !found; i++) {
            c = block[i];
            if (c != '\n') {
                if (len < size - 1)
                    line[len++] = c;
                continue;
            }
            line[len] = 0;
            len = 0;
            found = strstr(line, what) != NULL;
        }
    }
    if (file >= 0)
        close(file);
    return found;
}

#ifdef LINKED
static struct allocator look(const char *program) {
    struct allocator found = {rseqalloc_mode ? "yes" : "no", program, rseqalloc_mode, rseqalloc_stats_json};
    return found;
}
#else
/* A program that is not position-independent has a stub for a function whose address it takes, which counts as the
 * function's address everywhere; its symbol is undefined, but has a value. What the stub leads to is looked up as if
 * the program were not there, which needs this library to come before the allocator. */
static const char *file_of(const char *function) {
    Dl_info info;
    const ElfW(Sym) *symbol = NULL;
    void *address = dlsym(RTLD_DEFAULT, function);
    if (address && dladdr1(address, &info, (void **)&symbol, RTLD_DL_SYMENT) && symbol && symbol->st_shndx == SHN_UNDEF)
        address = dlsym(RTLD_NEXT, function);
    return address && dladdr(address, &info) ? info.dli_fname : "nowhere";
}

static struct allocator look(const char *program) {
    static const char *const others[] = {"calloc", "realloc", "free"};
    char line[4096 + 128];
    struct allocator found = {"no", file_of("malloc"), NULL, NULL};
    if (*library && find_line("/proc/thread-self/maps", library, line, sizeof line))
        found.mapped = "yes";
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (strcmp(file_of(others[i]), found.of_malloc) != 0)
            found.of_malloc = "several";
    found.mode = (mode_function *)dlsym(RTLD_DEFAULT, "rseqalloc_mode");
    found.stats = (stats_function *)dlsym(RTLD_DEFAULT, "rseqalloc_stats_json");
    (void)program;
    return found;
}
#endif

static long number_after(const char *text, const char *name) {
    const char *at = strstr(text, name);
    return at ? atol(at + strlen(name)) : 0;
}

/* Of the thread, since the main thread of a process may have ended before it. */
static void say(const char *when) {
    char program[4096], stats[2048] = "", peak[4096 + 128] = "", text[3 * 4096];
    if (!*log_file)
        return;
    ssize_t len = readlink("/proc/thread-self/exe", program, sizeof program - 1);
    program[len < 0 ? 0 : len] = 0;
    struct allocator found = look(program);
    if (found.stats)
        found.stats(stats, sizeof stats);
    find_line("/proc/thread-self/status", "VmHWM:", peak, sizeof peak);
    int size = snprintf(text, sizeof text, "%s\t%ld\t%s\t%s\t%s\t%s\t%ld\t%ld\n", when, (long)getpid(), program, found.mapped,
                        found.of_malloc, found.mode ? found.mode() : "-", number_after(stats, "\"refills\":"),
                        number_after(peak, "VmHWM:"));
    int file = open(log_file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0)
        return;
    /* One call, so that lines of processes that write at the same time stay whole. */
    if (write(file, text, (size_t)size) != size)
        abort();
    close(file);
}

__attribute__((constructor)) static void start(void) {
    const char *log = getenv("WITNESS_LOG"), *path = getenv("WITNESS_LIBRARY");
    snprintf(log_file, sizeof log_file, "%s", log ? log : "");
    snprintf(library, sizeof library, "%s", path ? path : "");
    say("start");
}

__attribute__((destructor)) static void end(void) {
    say("end");
}
