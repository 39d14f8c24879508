/* A library that is opened while the program runs: what it allocates outlives it. */
#include <stdlib.h>
#include <string.h>

char *plugin_text(const char *of);
void plugin_free(void *block);
size_t plugin_churn(void);

static __thread void *last;

/* Allocates before the program can call it. */
static char *kept;
__attribute__((constructor)) static void opened(void)
{
    kept = strdup("opened");
}

__attribute__((destructor)) static void closed(void)
{
    free(kept);
}

char *plugin_text(const char *of)
{
    return strdup(of);
}

void plugin_free(void *block)
{
    free(block);
}

size_t plugin_churn(void)
{
    size_t sum = 0;
    for (size_t i = 1; i < 5000; i++) {
        last = realloc(last, i * 37 % 20000 + 1);
        sum += last != NULL;
    }
    free(last);
    last = NULL;
    return sum;
}
