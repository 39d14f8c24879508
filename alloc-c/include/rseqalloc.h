/* The functions of librseqalloc beside the standard ones. None of them allocates. */
#ifndef RSEQALLOC_H
#define RSEQALLOC_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What the caches belong to in this process, and why: a text that begins with "mm_cid", "cpu_id" or "arenas". It stays
 * valid and is never null. The first call decides the mode, if no allocation has. */
const char *rseqalloc_mode(void);

/* Figures about the heap, as one line of text or as a JSON object. As snprintf does, these write at most `size` bytes,
 * the last of them 0, and return the length of the whole text without the 0. They take every lock of the allocator for
 * a moment. */
size_t rseqalloc_stats_text(char *buffer, size_t size);
size_t rseqalloc_stats_json(char *buffer, size_t size);

/* Gives everything that is free back to the operating system. Returns how many bytes that were. */
size_t rseqalloc_purge(void);

/* Changes options while the process runs, in the form of the environment variable RSEQ_ALLOC, "name=value,name=value":
 *   decay=MILLISECONDS or never    over how long free pages go back to the operating system (10000)
 *   budget=BYTES, with K, M or G   bytes of blocks for which one vCPU has room (4M)
 *   cache=BYTES, likewise, or none bytes of blocks for which all vCPUs together have room (12M per CPU, at least 32M)
 *   background=on or off           whether a thread gives memory back when the program is silent (off)
 *   soft_limit=BYTES, or 1% to 100% of the limit of the process' cgroup, or none
 *                                  above it, caches shrink and everything free is given back before more is taken
 *   hard_limit=, likewise          what would exceed it fails with ENOMEM
 * Returns 0, or EINVAL if a part made no sense or comes too late; that part is named on file descriptor 2, and the
 * others apply. "index=" and "thp=" always come too late, since the first allocation, before main, decides them: the
 * environment is the place for them. */
int rseqalloc_set_options(const char *options);

#ifdef __cplusplus
}
#endif

#endif
