/* What tst-aligned_alloc-lib.c needs of glibc's header of this name. */
#define strong_alias(name, other) extern __typeof(name) other __attribute__((alias(#name)));
