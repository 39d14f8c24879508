// The whole of snmalloc, for tests that need no more than its functions.
#include <test/snmalloc_testlib.h>
