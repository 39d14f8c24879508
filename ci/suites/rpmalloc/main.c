/* Runs one function of rpmalloc's test/main.c, the one that SUITES_ONLY names. */
#define NO_MAIN 1
#include SUITES_SOURCE

int main(void)
{
    static const struct {
        const char *name;
        int (*run)(void);
    } tests[] = {
        {"test_alloc", test_alloc},
        {"test_realloc", test_realloc},
        {"test_superalign", test_superalign},
        {"test_crossthread", test_crossthread},
        {"test_threaded", test_threaded},
        {"test_threadspam", test_threadspam},
    };
    const char *only = getenv("SUITES_ONLY");
    test_initialize();
    for (size_t i = 0; only && i < sizeof tests / sizeof *tests; i++)
        if (strcmp(only, tests[i].name) == 0)
            return tests[i].run() || test_failed;
    fprintf(stderr, "no test is SUITES_ONLY\n");
    return 1;
}
