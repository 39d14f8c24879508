/* For tst-malloc-thread-fail, which looks at errno after posix_memalign: POSIX has it return the error, and does not say
 * that errno is set. */
#include "mallopt.h"
#include <errno.h>
#include <stdlib.h>

static int suites_posix_memalign(void **block, size_t align, size_t size)
{
    int error = posix_memalign(block, align, size);
    if (error != 0)
        errno = error;
    return error;
}
#define posix_memalign suites_posix_memalign
