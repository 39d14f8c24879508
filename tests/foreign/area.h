/*
 * The part of struct rseq that this library uses, by the kernel's ABI (include/uapi/linux/rseq.h). Written out here, so
 * that neither new kernel headers nor a new C library are needed to compile it.
 */
#ifndef FOREIGN_AREA_H
#define FOREIGN_AREA_H

#include <stdint.h>

struct area {
	uint32_t cpu_id_start;
	uint32_t cpu_id;
	uint64_t rseq_cs;
	uint32_t flags;
	uint32_t rest[3];
} __attribute__((aligned(32)));

_Static_assert(sizeof(struct area) == 32, "the length that every kernel accepts");

/* How one attempt at a sequence ended. */
enum attempt { COMMITTED, MOVED, ABORTED, EMPTY };

/* A node of a per-CPU list. */
struct node {
	struct node *next;
	uint32_t taken;
} __attribute__((aligned(64)));

#endif
