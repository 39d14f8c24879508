/* Stands in for mimalloc's header: runs the one part of a test file that SUITES_ONLY names; none is a failure. */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int suites_ran, suites_failed;

static inline bool suites_starts(const char *name)
{
    const char *only = getenv("SUITES_ONLY");
    if (!only || strcmp(only, name) != 0)
        return false;
    suites_ran++;
    errno = 0;
    return true;
}

static inline void suites_ends(const char *name, bool result)
{
    if (!result) {
        fprintf(stderr, "FAILED: %s\n", name);
        suites_failed++;
    }
}

#define CHECK_BODY(name) \
    if (suites_starts(name)) \
        for (bool done = false, result = true; !done; done = true, suites_ends(name, result))

#define CHECK(name, value) \
    CHECK_BODY(name)       \
    {                      \
        result = (value);  \
    }

static inline int print_test_summary(void)
{
    if (!suites_ran)
        fprintf(stderr, "no part of this file is SUITES_ONLY\n");
    return suites_failed || !suites_ran;
}
