// Stands in for the header through which snmalloc's tests reach a library built apart: its functions as the standard
// ones. Sizes, bits and messages are snmalloc's own, from its headers, which allocate nothing themselves.
#pragma once

#include <errno.h>
#include <malloc.h>
#include <snmalloc/snmalloc_core.h>
#include <stdlib.h>
#include <string.h>

extern "C"
{
  __attribute__((weak)) void free_sized(void*, size_t);
}

namespace snmalloc
{
  // Blocks are nobody's that this program knows, so that no test asks for snmalloc's exact sizes.
  inline bool is_owned(void*)
  {
    return false;
  }

  inline size_t alloc_size(const void* p)
  {
    return ::malloc_usable_size(const_cast<void*>(p));
  }

  template<ZeroMem zero = ZeroMem::NoZero>
  inline void* alloc(size_t size)
  {
    void* block = zero == ZeroMem::YesZero ? ::calloc(1, size) : ::malloc(size);
    SNMALLOC_CHECK(block != nullptr);
    return block;
  }

  template<size_t size, ZeroMem zero = ZeroMem::NoZero>
  inline void* alloc()
  {
    return alloc<zero>(size);
  }

  inline void dealloc(void* p)
  {
    ::free(p);
  }

  inline void dealloc(void* p, size_t size)
  {
    if (::free_sized)
      ::free_sized(p, size);
    else
      ::free(p);
  }

  template<size_t size>
  inline void dealloc(void* p)
  {
    dealloc(p, size);
  }

  inline void debug_teardown() {}

  inline void debug_check_empty() {}

  inline void debug_in_use(size_t) {}

  inline void cleanup_unused()
  {
    ::malloc_trim(0);
  }

  inline size_t max_small_sizeclass_bits()
  {
    return MAX_SMALL_SIZECLASS_BITS;
  }

  inline size_t pal_address_bits()
  {
    return 47;
  }

  inline uint64_t pal_tick()
  {
    return Aal::tick();
  }

  inline void pal_pause()
  {
    Aal::pause();
  }

  struct ScopedAllocHandle
  {
    void* alloc(size_t size)
    {
      return snmalloc::alloc(size);
    }

    void dealloc(void* p)
    {
      snmalloc::dealloc(p);
    }

    ScopedAllocHandle* operator->()
    {
      return this;
    }
  };

  inline ScopedAllocHandle get_scoped_allocator()
  {
    return {};
  }

  namespace libc
  {
    using ::calloc;
    using ::free;
    using ::malloc;
    using ::malloc_usable_size;

    inline void* __malloc_start_pointer(void* p)
    {
      return p;
    }
  }
}

// What every block of this size is aligned to, instead of snmalloc's promise that it is to the size's last bit.
inline size_t suites_alignment(size_t size)
{
  return size >= alignof(max_align_t) ? alignof(max_align_t) : 1;
}

#define testlib_malloc ::malloc
#define testlib_free ::free
#define testlib_calloc ::calloc
#define testlib_realloc ::realloc
#define testlib_reallocarray ::reallocarray
#define testlib_memalign ::memalign
#define testlib_posix_memalign ::posix_memalign
#define testlib_malloc_usable_size ::malloc_usable_size

inline size_t testlib_malloc_good_size(size_t size)
{
  return size;
}

// NetBSD's, which nothing but snmalloc has here: as its manual says.
inline int testlib_reallocarr(void* block, size_t count, size_t size)
{
  int before = errno;
  void* old;
  memcpy(&old, block, sizeof(old));
  if (count == 0 || size == 0)
  {
    ::free(old);
    old = nullptr;
  }
  else
  {
    old = ::reallocarray(old, count, size);
    if (old == nullptr)
    {
      errno = before;
      return size > SIZE_MAX / count ? EOVERFLOW : ENOMEM;
    }
  }
  memcpy(block, &old, sizeof(old));
  return 0;
}
