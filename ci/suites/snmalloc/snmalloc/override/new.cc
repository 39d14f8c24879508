// In the place of the operators that snmalloc defines: those of the preloaded library are meant.
#pragma once

#include <new>
#include <test/snmalloc_testlib.h>

#define EXCEPTSPEC noexcept
