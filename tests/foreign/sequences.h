/*
 * Three commit sequences in assembly, for x86-64 and aarch64: count, push, pop.
 *
 * In all of them 1 is the start of the section, 2 its end, 3 the descriptor, 4 the abort handler. rseq_cs is not cleared
 * afterwards: the kernel allows that, and whoever runs the next sequence has to cope. All inputs are in registers that
 * the section does not write.
 *
 * Each returns COMMITTED, MOVED if the thread was not on `cpu` any more, or ABORTED; nothing has been changed in the
 * latter two cases.
 */
#ifndef FOREIGN_SEQUENCES_H
#define FOREIGN_SEQUENCES_H

#include "area.h"

#define DESCRIPTOR                                     \
	".pushsection foreign_cs, \"aw\"\n"            \
	".balign 32\n"                                 \
	"3:\n"                                         \
	".long 0, 0\n"                                 \
	".quad 1f, 2f - 1f, 4f\n"                      \
	".popsection\n"

#if defined(__x86_64__)

#define SIGNATURE 0x53053053

/* The signature is the displacement of an undefined instruction, for disassemblers. */
#define ABORT_HANDLER                                  \
	".pushsection foreign_abort, \"ax\"\n"         \
	".byte 0x0f, 0xb9, 0x3d\n"                     \
	".long 0x53053053\n"                           \
	"4:\n"                                         \
	"jmp %l[aborted]\n"                            \
	".popsection\n"

#define BEGIN                                          \
	DESCRIPTOR                                     \
	"leaq 3b(%%rip), %%rax\n"                      \
	"movq %%rax, 8(%[area])\n"                     \
	"1:\n"                                         \
	"cmpl %[cpu], 4(%[area])\n"                    \
	"jne %l[moved]\n"

/* The old value is held for `spin` rounds, at least one, so that an update between load and store has time to happen. */
static inline enum attempt count(struct area *area, uint32_t cpu, uint64_t *counter, uint32_t spin)
{
	__asm__ goto(BEGIN
		     "movl %[spin], %%ecx\n"
		     "movq (%[counter]), %%rax\n"
		     "5:\n"
		     "subl $1, %%ecx\n"
		     "jnz 5b\n"
		     "addq $1, %%rax\n"
		     "movq %%rax, (%[counter])\n"
		     "2:\n" ABORT_HANDLER
		     :
		     : [area] "r"(area), [cpu] "r"(cpu), [counter] "r"(counter), [spin] "r"(spin)
		     : "rax", "rcx", "cc", "memory"
		     : moved, aborted);
	return COMMITTED;
moved:
	return MOVED;
aborted:
	return ABORTED;
}

static inline enum attempt push(struct area *area, uint32_t cpu, struct node **head, struct node *node)
{
	__asm__ goto(BEGIN
		     "movq (%[head]), %%rax\n"
		     "movq %%rax, (%[node])\n"
		     "movq %[node], (%[head])\n"
		     "2:\n" ABORT_HANDLER
		     :
		     : [area] "r"(area), [cpu] "r"(cpu), [head] "r"(head), [node] "r"(node)
		     : "rax", "cc", "memory"
		     : moved, aborted);
	return COMMITTED;
moved:
	return MOVED;
aborted:
	return ABORTED;
}

/* EMPTY if there is no node; else the node goes to `result`. */
static inline enum attempt pop(struct area *area, uint32_t cpu, struct node **head, struct node **result)
{
	__asm__ goto(BEGIN
		     "movq (%[head]), %%rax\n"
		     "testq %%rax, %%rax\n"
		     "jz %l[empty]\n"
		     "movq %%rax, (%[result])\n"
		     "movq (%%rax), %%rax\n"
		     "movq %%rax, (%[head])\n"
		     "2:\n" ABORT_HANDLER
		     :
		     : [area] "r"(area), [cpu] "r"(cpu), [head] "r"(head), [result] "r"(result)
		     : "rax", "cc", "memory"
		     : moved, aborted, empty);
	return COMMITTED;
moved:
	return MOVED;
aborted:
	return ABORTED;
empty:
	return EMPTY;
}

static inline char *thread_pointer(void)
{
	char *at;

	__asm__("movq %%fs:0, %0" : "=r"(at));
	return at;
}

#elif defined(__aarch64__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__

#define SIGNATURE 0xd428bc00

#define ABORT_HANDLER                                  \
	".pushsection foreign_abort, \"ax\"\n"         \
	".balign 4\n"                                  \
	".long 0xd428bc00\n"                           \
	"4:\n"                                         \
	"b %l[aborted]\n"                              \
	".popsection\n"

#define BEGIN                                          \
	DESCRIPTOR                                     \
	"adrp x9, 3b\n"                                \
	"add x9, x9, :lo12:3b\n"                       \
	"str x9, [%[area], #8]\n"                      \
	"1:\n"                                         \
	"ldr w9, [%[area], #4]\n"                      \
	"cmp w9, %w[cpu]\n"                            \
	"b.ne %l[moved]\n"

/* The old value is held for `spin` rounds, at least one, so that an update between load and store has time to happen. */
static inline enum attempt count(struct area *area, uint32_t cpu, uint64_t *counter, uint32_t spin)
{
	__asm__ goto(BEGIN
		     "mov w10, %w[spin]\n"
		     "ldr x9, [%[counter]]\n"
		     "5:\n"
		     "subs w10, w10, #1\n"
		     "b.ne 5b\n"
		     "add x9, x9, #1\n"
		     "str x9, [%[counter]]\n"
		     "2:\n" ABORT_HANDLER
		     :
		     : [area] "r"(area), [cpu] "r"(cpu), [counter] "r"(counter), [spin] "r"(spin)
		     : "x9", "x10", "cc", "memory"
		     : moved, aborted);
	return COMMITTED;
moved:
	return MOVED;
aborted:
	return ABORTED;
}

static inline enum attempt push(struct area *area, uint32_t cpu, struct node **head, struct node *node)
{
	__asm__ goto(BEGIN
		     "ldr x9, [%[head]]\n"
		     "str x9, [%[node]]\n"
		     "str %[node], [%[head]]\n"
		     "2:\n" ABORT_HANDLER
		     :
		     : [area] "r"(area), [cpu] "r"(cpu), [head] "r"(head), [node] "r"(node)
		     : "x9", "cc", "memory"
		     : moved, aborted);
	return COMMITTED;
moved:
	return MOVED;
aborted:
	return ABORTED;
}

/* EMPTY if there is no node; else the node goes to `result`. */
static inline enum attempt pop(struct area *area, uint32_t cpu, struct node **head, struct node **result)
{
	__asm__ goto(BEGIN
		     "ldr x9, [%[head]]\n"
		     "cbz x9, %l[empty]\n"
		     "str x9, [%[result]]\n"
		     "ldr x9, [x9]\n"
		     "str x9, [%[head]]\n"
		     "2:\n" ABORT_HANDLER
		     :
		     : [area] "r"(area), [cpu] "r"(cpu), [head] "r"(head), [result] "r"(result)
		     : "x9", "cc", "memory"
		     : moved, aborted, empty);
	return COMMITTED;
moved:
	return MOVED;
aborted:
	return ABORTED;
empty:
	return EMPTY;
}

static inline char *thread_pointer(void)
{
	char *at;

	__asm__("mrs %0, tpidr_el0" : "=r"(at));
	return at;
}

#else
#error "this library has sequences for x86-64 and little-endian aarch64 only"
#endif

#endif
