// Stands in for snmalloc's header: a test's name is kept and shown when a check of it fails, not before.
#pragma once

#include <test/snmalloc_testlib.h>

namespace snmalloc
{
  inline const char* current_test = "";

#define START_TEST(...) (snmalloc::current_test = __PRETTY_FUNCTION__)
#define INFO(...) snmalloc::message<1024>(__VA_ARGS__)
#define EXPECT(condition, text, ...) \
  SNMALLOC_CHECK_MSG(condition, " in {}: " text "\n", snmalloc::current_test, ##__VA_ARGS__)
}

inline bool is_aligned(void* block, size_t align)
{
  return reinterpret_cast<uintptr_t>(block) % align == 0;
}
