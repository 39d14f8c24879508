/* Says whether the process runs with secure execution, and the allocator's mode. */
#include "../../include/rseqalloc.h"
#include <stdio.h>
#include <sys/auxv.h>

int main(void)
{
    printf("%lu %s\n", getauxval(AT_SECURE), rseqalloc_mode());
    return 0;
}
