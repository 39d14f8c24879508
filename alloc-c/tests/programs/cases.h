/* A program of named cases. Without an argument it prints their names, with one it runs that case: exit status 0 and no
 * output if all its checks hold, a line and status 1 at the first that does not. */
#ifndef CASES_H
#define CASES_H

#include <errno.h>
#include <malloc.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct named_case {
    const char *name;
    void (*run)(void);
};

static struct named_case cases[64];
static int case_count;

#define CASE(of)                                                                                                       \
    static void case_##of(void);                                                                                       \
    __attribute__((constructor)) static void add_##of(void)                                                            \
    {                                                                                                                  \
        cases[case_count].name = #of;                                                                                  \
        cases[case_count].run = case_##of;                                                                             \
        case_count++;                                                                                                  \
    }                                                                                                                  \
    static void case_##of(void)

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* A size that cannot be had and that the compiler cannot see. */
static volatile size_t too_much = PTRDIFF_MAX - 4096;

static inline int aligned(const void *block, size_t align)
{
    return block != NULL && (uintptr_t)block % align == 0;
}

/* Fills a block with a pattern of its own. */
static inline void fill(void *block, size_t size, unsigned seed)
{
    for (size_t i = 0; i < size; i++)
        ((unsigned char *)block)[i] = (unsigned char)(seed + i * 7 + (i >> 8));
}

static inline int filled(const void *block, size_t size, unsigned seed)
{
    for (size_t i = 0; i < size; i++)
        if (((const unsigned char *)block)[i] != (unsigned char)(seed + i * 7 + (i >> 8)))
            return 0;
    return 1;
}

static inline int is_zero(const void *block, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (((const unsigned char *)block)[i] != 0)
            return 0;
    return 1;
}

/* Sizes around every kind of boundary. */
static const size_t sizes[] = {
    0,    1,    7,    8,     9,     15,    16,    17,     24,     25,     32,      63,      64,
    65,   72,   80,   81,    100,   127,   128,   129,    1000,   1008,   1009,    1023,    1024,
    1025, 4000, 16384, 16385, 65535, 65536, 100000, 262144, 500000, 1048575, 1048576, 1048577, 5000000,
};
#define SIZES (sizeof sizes / sizeof sizes[0])

int main(int argc, char **argv)
{
    for (int i = 0; i < case_count; i++) {
        if (argc < 2) {
            puts(cases[i].name);
        } else if (strcmp(argv[1], cases[i].name) == 0) {
            cases[i].run();
            return 0;
        }
    }
    return argc < 2 ? 0 : 2;
}

#endif
