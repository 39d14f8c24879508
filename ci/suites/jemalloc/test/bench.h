/* Stands in for jemalloc's header of this name: runs both functions as often as a test says, or a hundredth of that
 * (-DSUITES_SHORT). Times are nobody's business here. */
static inline void suites_repeat(uint64_t count, void *function)
{
    for (uint64_t i = 0; i < count; i++)
        ((void (*)(void))function)();
}

static inline void compare_funcs(uint64_t warm_up, uint64_t count, const char *name_a, void *a, const char *name_b, void *b)
{
#ifdef SUITES_SHORT
    count /= 100;
#endif
    suites_repeat(count, a);
    suites_repeat(count, b);
    printf("%s, %s: %" PRIu64 " each\n", name_a, name_b, count);
}

static inline void *no_opt_ptr(void *block)
{
    __asm__ volatile("" : "+r"(block));
    return block;
}
