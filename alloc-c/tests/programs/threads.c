/* Several threads: blocks that another thread frees, and forks while others allocate. */
#define _GNU_SOURCE
#include "cases.h"
#include <fcntl.h>
#include <pthread.h>
#include <sys/wait.h>

enum { THREADS = 4, SLOTS = 512 };

static void *slots[SLOTS];
static volatile int stop;

static unsigned next_random(unsigned *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static size_t random_size(unsigned *state)
{
    unsigned kind = next_random(state) % 100;
    if (kind < 80)
        return 8 + next_random(state) % 1000;
    return kind < 98 ? next_random(state) % 100000 : next_random(state) % 3000000;
}

/* A block that says how long it is, with a mark at its end. */
static void *marked(unsigned *state)
{
    size_t size = 16 + random_size(state);
    unsigned char *block = malloc(size);
    CHECK(block != NULL);
    memcpy(block, &size, sizeof size);
    block[size - 1] = (unsigned char)(size * 31);
    return block;
}

static void check_and_free(unsigned char *block)
{
    size_t size;
    if (block == NULL)
        return;
    memcpy(&size, block, sizeof size);
    CHECK(size >= 16 && size < 4000000 && block[size - 1] == (unsigned char)(size * 31));
    free(block);
}

static void *exchange(void *seed)
{
    unsigned state = (unsigned)(uintptr_t)seed;
    for (long i = 0; seed != NULL && !stop && i < 300000; i++)
        check_and_free(__atomic_exchange_n(&slots[next_random(&state) % SLOTS], marked(&state), __ATOMIC_ACQ_REL));
    return NULL;
}

static void start(pthread_t *threads)
{
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, exchange, (void *)(i + 1)) == 0);
}

/* Each block is freed by whichever thread comes next. */
CASE(cross_thread)
{
    pthread_t threads[THREADS];
    start(threads);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    for (int i = 0; i < SLOTS; i++)
        check_and_free(slots[i]);
}

static void *forever(void *seed)
{
    while (!stop)
        exchange(seed);
    return NULL;
}

static void *some(void *seed)
{
    unsigned state = (unsigned)(uintptr_t)seed;
    for (int i = 0; i < 2000; i++)
        check_and_free(__atomic_exchange_n(&slots[next_random(&state) % SLOTS], marked(&state), __ATOMIC_ACQ_REL));
    return NULL;
}

/* Children of a process with four allocating threads allocate themselves, free what the parent's threads made, start
 * threads, and fork once more. One that hangs is ended by its alarm. FORKS in the environment says how many. */
CASE(forks)
{
    int forks = atoi(getenv("FORKS"));
    CHECK(forks > 0);
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, forever, (void *)(i + 1)) == 0);
    for (int i = 0; i < forks; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            alarm(60);
            stop = 0;
            for (int slot = 0; slot < SLOTS; slot++) {
                check_and_free(slots[slot]);
                slots[slot] = NULL;
            }
            unsigned state = (unsigned)i;
            for (int round = 0; round < 2000; round++)
                check_and_free(marked(&state));
            pthread_t own[THREADS];
            for (uintptr_t thread = 0; thread < THREADS; thread++)
                CHECK(pthread_create(&own[thread], NULL, some, (void *)(thread + 1)) == 0);
            for (int thread = 0; thread < THREADS; thread++)
                CHECK(pthread_join(own[thread], NULL) == 0);
            pid_t grandchild = fork();
            if (grandchild == 0) {
                check_and_free(marked(&state));
                _exit(0);
            }
            int status;
            _exit(waitpid(grandchild, &status, 0) == grandchild && status == 0 ? 0 : 3);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(status == 0);
    }
    stop = 1;
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

/* More threads one after the other than fit at once; what each leaves is freed by the main thread. */
static void *leave(void *ignored)
{
    (void)ignored;
    unsigned state = 9;
    return marked(&state);
}

CASE(short_threads)
{
    for (int i = 0; i < 2000; i++) {
        pthread_t thread;
        void *block;
        CHECK(pthread_create(&thread, NULL, leave, NULL) == 0 && pthread_join(thread, &block) == 0);
        check_and_free(block);
    }
}

/* None of the library's functions is where a cancelled thread ends, not even those that write. */
static pthread_barrier_t cancelled;
static FILE *figures;
static int written;

static void *write_figures(void *ignored)
{
    (void)ignored;
    pthread_barrier_wait(&cancelled);
    malloc_stats();
    CHECK(malloc_info(0, figures) == 0);
    unsigned state = 5;
    for (int i = 0; i < 1000; i++)
        check_and_free(marked(&state));
    CHECK(malloc_trim(0) >= 0);
    written = 1;
    pthread_testcancel();
    return NULL;
}

CASE(cancelled_threads)
{
    pthread_t thread;
    void *result;
    int errors = dup(2), null = open("/dev/null", O_WRONLY);
    figures = fopen("/dev/null", "w");
    CHECK(errors >= 0 && null >= 0 && figures != NULL && setvbuf(figures, NULL, _IONBF, 0) == 0);
    CHECK(pthread_barrier_init(&cancelled, NULL, 2) == 0);
    CHECK(pthread_create(&thread, NULL, write_figures, NULL) == 0 && pthread_cancel(thread) == 0);
    CHECK(dup2(null, 2) == 2);
    pthread_barrier_wait(&cancelled);
    CHECK(pthread_join(thread, &result) == 0);
    CHECK(dup2(errors, 2) == 2);
    CHECK(written && result == PTHREAD_CANCELED);
}

/* Threads that fork, that read lines into new memory, and that write all streams, each of which needs locks of the other
 * two. One that hangs is ended by the alarm. */
static char lines[] = "/tmp/rseqalloc-lines-XXXXXX";

static void *fork_often(void *ignored)
{
    (void)ignored;
    while (!stop) {
        int status;
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            /* The list of streams is free here. */
            FILE *file = fopen("/dev/null", "r");
            _exit(file != NULL && fclose(file) == 0 && fflush(NULL) == 0 ? 17 : 1);
        }
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 17);
    }
    return NULL;
}

static void *read_lines(void *ignored)
{
    (void)ignored;
    FILE *file = fopen(lines, "r");
    CHECK(file != NULL);
    while (!stop) {
        char *line = NULL;
        size_t room = 0;
        rewind(file);
        CHECK(getline(&line, &room, file) == 50001);
        free(line);
    }
    fclose(file);
    return NULL;
}

static void *write_all(void *ignored)
{
    (void)ignored;
    while (!stop)
        CHECK(fflush(NULL) == 0);
    return NULL;
}

CASE(streams)
{
    static void *(*const starts[])(void *) = {
        fork_often, fork_often, read_lines, read_lines, read_lines, read_lines, write_all,
    };
    enum { COUNT = sizeof starts / sizeof *starts };
    pthread_t threads[COUNT];
    int to = mkstemp(lines);
    FILE *file = fdopen(to, "w");
    CHECK(file != NULL);
    for (int i = 0; i < 50000; i++)
        fputc('x', file);
    CHECK(fputc('\n', file) == '\n' && fclose(file) == 0);
    alarm(60);
    for (int i = 0; i < COUNT; i++)
        CHECK(pthread_create(&threads[i], NULL, starts[i], NULL) == 0);
    sleep(2);
    stop = 1;
    for (int i = 0; i < COUNT; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(remove(lines) == 0);
}
