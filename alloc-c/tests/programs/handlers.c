/* A library that installs fork handlers as early as it can, and allocates in them. A handler that hangs is ended by its
 * alarm. */
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

enum { BLOCKS = 4000 };

/* More than magazines hold, so that the allocator's locks are needed. */
static void churn(void)
{
    static void *blocks[BLOCKS];
    alarm(60);
    for (int i = 0; i < BLOCKS; i++)
        blocks[i] = malloc(24 + (size_t)i * 7);
    for (int i = 0; i < BLOCKS; i++)
        free(blocks[i]);
    alarm(0);
}

__attribute__((constructor)) static void install(void)
{
    pthread_atfork(churn, churn, churn);
}
