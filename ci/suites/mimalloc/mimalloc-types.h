/* Stands in for mimalloc's header: limits that its tests choose sizes below and above of. */
#define MI_ALIGNMENT_MAX (1024 * 1024UL)
#define MI_SMALL_SIZE_MAX (128 * sizeof(void *))
#define MI_MAX_ALIGN_SIZE 16
#define MI_DEBUG 0
