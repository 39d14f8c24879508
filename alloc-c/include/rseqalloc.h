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

#ifdef __cplusplus
}
#endif

#endif
