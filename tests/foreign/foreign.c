/*
 * A C library that uses restartable sequences by itself, as any library in a process may: per-CPU counters and per-CPU
 * lists, with descriptors and assembly of its own. It knows nothing of the Rust side and shares no code with it.
 *
 * Whose area it uses, thread by thread: the one that it registered itself in that thread (foreign_register), else the
 * one that the C library registered (__rseq_offset), else the one at an offset that somebody else told it
 * (foreign_use_offset). It never registers a thread by itself, but for the main thread in a constructor if the
 * environment variable FOREIGN_REGISTERS is set.
 *
 * Everything that counts is called from threads and from signal handlers alike: no locks, no allocation, no errno.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "area.h"
#include "sequences.h"

#ifndef SYS_rseq
#if defined(__x86_64__)
#define SYS_rseq 334
#else
#define SYS_rseq 293
#endif
#endif
#define UNREGISTER 1

#define MAX_CPUS 8192
#define MAX_NODES 64

/* Of the C library, where it has them (glibc 2.35). */
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));

/* This thread's own area, and whether it is registered. */
static __thread struct area own __attribute__((tls_model("initial-exec"))) = { .cpu_id = (uint32_t)-1 };
static __thread int own_registered __attribute__((tls_model("initial-exec")));

/* What foreign_use_offset was told; there is nothing at the thread pointer itself. */
static ptrdiff_t told;

static struct {
	uint64_t counter;
	struct node *list;
} __attribute__((aligned(128))) per_cpu[MAX_CPUS];

static struct node nodes[MAX_NODES];

static uint64_t aborts;
static uint64_t found_own;
static uint64_t found_others;

/* The descriptors of this library, by the linker. */
extern char __start_foreign_cs[], __stop_foreign_cs[];

static struct area *area(void)
{
	if (own_registered)
		return &own;
	if (&__rseq_offset && &__rseq_size && __rseq_size > 0)
		return (struct area *)(thread_pointer() + __rseq_offset);
	if (told)
		return (struct area *)(thread_pointer() + told);
	return NULL;
}

static void add(uint64_t *to, uint64_t n)
{
	__atomic_fetch_add(to, n, __ATOMIC_RELAXED);
}

/* Whose descriptor the previous sequence left behind. */
static void look_at_what_was_left(struct area *in)
{
	uint64_t left = __atomic_load_n(&in->rseq_cs, __ATOMIC_RELAXED);

	if (left == 0)
		return;
	if (left - (uintptr_t)__start_foreign_cs < (uintptr_t)(__stop_foreign_cs - __start_foreign_cs))
		add(&found_own, 1);
	else
		add(&found_others, 1);
}

/* The CPU that the thread was on a moment ago; the process ends if that is none. */
static uint32_t current_cpu(struct area *in)
{
	uint32_t cpu = __atomic_load_n(&in->cpu_id, __ATOMIC_RELAXED);

	if (cpu >= MAX_CPUS)
		abort();
	return cpu;
}

void foreign_use_offset(ptrdiff_t offset)
{
	told = offset;
}

/* Whether this thread has an area that is registered, as far as its cpu_id tells. */
int foreign_has_area(void)
{
	struct area *in = area();

	return in && (int32_t)__atomic_load_n(&in->cpu_id, __ATOMIC_RELAXED) >= 0;
}

/* Whether the area in use is this library's own. */
int foreign_is_registrar(void)
{
	return own_registered;
}

static int rseq(int flags)
{
	int before = errno;
	int answer = syscall(SYS_rseq, &own, sizeof(own), flags, SIGNATURE) == 0 ? 0 : errno;

	errno = before;
	return answer;
}

/* Registers this thread in this library's area; 0 or an errno. */
int foreign_register(void)
{
	int answer = rseq(0);

	if (answer == 0)
		own_registered = 1;
	return answer;
}

/* Takes that back; 0 or an errno. The kernel sets cpu_id to -1. */
int foreign_unregister(void)
{
	int answer;

	own_registered = 0;
	answer = rseq(UNREGISTER);
	if (answer != 0)
		own_registered = 1;
	return answer;
}

/* Whether the kernel still has this thread registered in this library's area: a repetition is EBUSY then. */
int foreign_still_registered(void)
{
	return own_registered && rseq(0) == EBUSY && (int32_t)own.cpu_id >= 0;
}

/* Adds 1 to the counter of the current CPU, holding the old value for `spin` rounds. Needs an area. */
void foreign_count(uint32_t spin)
{
	struct area *in = area();

	look_at_what_was_left(in);
	for (;;) {
		uint32_t cpu = current_cpu(in);
		enum attempt ended = count(in, cpu, &per_cpu[cpu].counter, spin + 1);

		if (ended == COMMITTED)
			return;
		if (ended == ABORTED)
			add(&aborts, 1);
	}
}

/*
 * Takes a node from the list of the current CPU and puts it on the list of the then current CPU. 1 if that was done, 0
 * if the list was empty, -1 if somebody else held the node too. Needs an area.
 */
int foreign_move_node(void)
{
	struct area *in = area();
	struct node *node = NULL;
	enum attempt ended;

	look_at_what_was_left(in);
	do {
		uint32_t cpu = current_cpu(in);

		ended = pop(in, cpu, &per_cpu[cpu].list, &node);
		if (ended == ABORTED)
			add(&aborts, 1);
	} while (ended == MOVED || ended == ABORTED);
	if (ended == EMPTY)
		return 0;
	if (__atomic_exchange_n(&node->taken, 1, __ATOMIC_RELAXED) != 0)
		return -1;
	__atomic_store_n(&node->taken, 0, __ATOMIC_RELAXED);
	do {
		uint32_t cpu = current_cpu(in);

		ended = push(in, cpu, &per_cpu[cpu].list, node);
		if (ended == ABORTED)
			add(&aborts, 1);
	} while (ended != COMMITTED);
	return 1;
}

/* Clears rseq_cs, as a library does before its code is unmapped. Needs an area. */
void foreign_disarm(void)
{
	__atomic_store_n(&area()->rseq_cs, 0, __ATOMIC_RELAXED);
}

/* Puts all nodes on the list of CPU `cpu`. Before any thread counts. */
unsigned foreign_prepare(uint32_t cpu)
{
	for (unsigned i = 0; i < MAX_NODES; i++) {
		nodes[i].next = per_cpu[cpu].list;
		per_cpu[cpu].list = &nodes[i];
	}
	return MAX_NODES;
}

/* Sequences aborted so far. At any time. */
uint64_t foreign_aborts(void)
{
	return __atomic_load_n(&aborts, __ATOMIC_RELAXED);
}

struct foreign_totals {
	uint64_t counted;
	uint64_t nodes;
	uint64_t aborts;
	uint64_t found_own;
	uint64_t found_others;
	uint64_t cpus;
};

/* The sums over all CPUs. When no thread counts any more. A list that has become a ring counts more nodes than there are. */
void foreign_totals(struct foreign_totals *to)
{
	*to = (struct foreign_totals){ .aborts = aborts, .found_own = found_own, .found_others = found_others };
	for (unsigned cpu = 0; cpu < MAX_CPUS; cpu++) {
		to->counted += per_cpu[cpu].counter;
		to->cpus += per_cpu[cpu].counter != 0;
		for (struct node *node = per_cpu[cpu].list; node && to->nodes <= MAX_NODES; node = node->next)
			to->nodes++;
	}
}

struct start {
	void (*body)(void *);
	void *argument;
};

static void *registered_thread(void *start)
{
	struct start here = *(struct start *)start;

	free(start);
	/* Before anything else can: the thread belongs to this library. */
	if (foreign_register() != 0)
		abort();
	here.body(here.argument);
	/* The area goes away with the thread, and the kernel must not write to it afterwards. */
	if (own_registered && foreign_unregister() != 0)
		abort();
	return NULL;
}

/* Starts a thread that this library registers before any other code runs in it; 0 or an errno. */
int foreign_start(pthread_t *thread, void (*body)(void *), void *argument)
{
	struct start *start = malloc(sizeof(*start));
	int answer;

	if (!start)
		return ENOMEM;
	*start = (struct start){ body, argument };
	answer = pthread_create(thread, NULL, registered_thread, start);
	if (answer != 0)
		free(start);
	return answer;
}

/* Ahead of the constructors without a priority, so ahead of whatever the Rust side does before main. */
__attribute__((constructor(101))) static void before_others(void)
{
	if (getenv("FOREIGN_REGISTERS") && foreign_register() != 0)
		abort();
}
