/* Frees that end the process. Each case should not get past its faulty line. */
#define _GNU_SOURCE
#include "cases.h"

static char in_data[64] __attribute__((aligned(16)));
/* Keeps the compiler from seeing what is freed. */
static void *volatile hidden;

CASE(free_of_the_stack)
{
    char on_stack[64] __attribute__((aligned(16)));
    hidden = on_stack;
    free(hidden);
}

CASE(free_of_data)
{
    hidden = in_data;
    free(hidden);
}

CASE(free_of_no_address)
{
    hidden = (void *)0x7b00deadbeef0010;
    free(hidden);
}

CASE(free_of_the_kernels)
{
    hidden = (void *)-4096;
    free(hidden);
}

CASE(free_inside_a_large_block)
{
    hidden = (char *)malloc(3000000) + 1000000;
    free(hidden);
}

CASE(free_of_the_first_page_of_a_large_block)
{
    hidden = (char *)malloc(3000000) + 16;
    free(hidden);
}

CASE(second_free_of_a_large_block)
{
    hidden = malloc(3000000);
    free(hidden);
    free(hidden);
}

CASE(second_free)
{
    hidden = malloc(100);
    free(hidden);
    free(hidden);
}

CASE(realloc_of_data)
{
    hidden = in_data;
    hidden = realloc(hidden, 10);
}

CASE(size_of_data)
{
    hidden = in_data;
    hidden = (void *)malloc_usable_size(hidden);
}

void *_Znwm(size_t size);

/* In a program without libstdc++. */
CASE(new_without_exceptions)
{
    hidden = _Znwm(too_much);
}
