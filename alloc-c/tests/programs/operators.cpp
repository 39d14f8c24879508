// The operators new and delete of C++, one case for each, named like its symbol.
#include "cases.h"
#include <initializer_list>
#include <new>
#include <sys/resource.h>

static int calls;

// Gives up after three calls.
static void counting()
{
    if (++calls == 3)
        std::set_new_handler(nullptr);
}

// A request that cannot be met: the handler is called, and `std::bad_alloc` thrown when there is none any more.
template <typename Request> static void check_throws(Request request)
{
    for (int expected : {0, 3}) {
        calls = 0;
        std::set_new_handler(expected == 0 ? nullptr : counting);
        bool caught = false;
        try {
            request();
        } catch (const std::bad_alloc &) {
            caught = true;
        }
        CHECK(caught && calls == expected);
    }
}

// Likewise for the forms that do not throw.
template <typename Request> static void check_null(Request request)
{
    for (int expected : {0, 3}) {
        calls = 0;
        std::set_new_handler(expected == 0 ? nullptr : counting);
        CHECK(request() == nullptr && calls == expected);
    }
}

static void *reserve;

static void release()
{
    CHECK(reserve != nullptr);
    operator delete(reserve);
    reserve = nullptr;
    calls++;
}

// The handler makes room, and the request succeeds.
template <typename Request> static void check_rescue(Request request)
{
    calls = 0;
    reserve = operator new(512u << 20);
    struct rlimit limit = {600u << 20, RLIM_INFINITY}, old;
    // What the process maps now, in pages, plus what it may map beyond.
    unsigned long pages;
    FILE *statm = fopen("/proc/self/statm", "r");
    CHECK(statm != nullptr && fscanf(statm, "%lu", &pages) == 1);
    fclose(statm);
    CHECK(getrlimit(RLIMIT_AS, &old) == 0);
    limit.rlim_cur = pages * sysconf(_SC_PAGESIZE) + (100u << 20);
    limit.rlim_max = old.rlim_max;
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    std::set_new_handler(release);
    void *block = request();
    CHECK(block != nullptr && calls == 1 && reserve == nullptr);
    std::set_new_handler(nullptr);
    CHECK(setrlimit(RLIMIT_AS, &old) == 0);
    operator delete(block);
}

static const std::align_val_t ALIGN{256};
static const size_t RESCUED = 500u << 20;

CASE(_Znwm)
{
    for (size_t size : sizes) {
        void *block = operator new(size);
        CHECK(aligned(block, 16) && malloc_usable_size(block) >= size);
        fill(block, size, 1);
        operator delete(block);
    }
    check_throws([] { return operator new(too_much); });
    check_rescue([] { return operator new(RESCUED); });
}

CASE(_Znam)
{
    for (size_t size : sizes) {
        void *block = operator new[](size);
        CHECK(aligned(block, 16));
        operator delete[](block);
    }
    check_throws([] { return operator new[](too_much); });
    check_rescue([] { return operator new[](RESCUED); });
}

CASE(_ZnwmRKSt9nothrow_t)
{
    void *block = operator new(100, std::nothrow);
    CHECK(aligned(block, 16));
    operator delete(block);
    check_null([] { return operator new(too_much, std::nothrow); });
    check_rescue([] { return operator new(RESCUED, std::nothrow); });
}

CASE(_ZnamRKSt9nothrow_t)
{
    void *block = operator new[](100, std::nothrow);
    CHECK(aligned(block, 16));
    operator delete[](block);
    check_null([] { return operator new[](too_much, std::nothrow); });
}

CASE(_ZnwmSt11align_val_t)
{
    for (size_t size : sizes) {
        void *block = operator new(size, ALIGN);
        CHECK(aligned(block, 256) && malloc_usable_size(block) >= size);
        fill(block, size, 1);
        operator delete(block, ALIGN);
    }
    check_throws([] { return operator new(too_much, ALIGN); });
    check_rescue([] { return operator new(RESCUED, ALIGN); });
}

CASE(_ZnamSt11align_val_t)
{
    void *block = operator new[](100, ALIGN);
    CHECK(aligned(block, 256));
    operator delete[](block, ALIGN);
    check_throws([] { return operator new[](too_much, ALIGN); });
}

CASE(_ZnwmSt11align_val_tRKSt9nothrow_t)
{
    void *block = operator new(100, ALIGN, std::nothrow);
    CHECK(aligned(block, 256));
    operator delete(block, ALIGN);
    check_null([] { return operator new(too_much, ALIGN, std::nothrow); });
}

CASE(_ZnamSt11align_val_tRKSt9nothrow_t)
{
    void *block = operator new[](100, ALIGN, std::nothrow);
    CHECK(aligned(block, 256));
    operator delete[](block, ALIGN);
    check_null([] { return operator new[](too_much, ALIGN, std::nothrow); });
}

// What goes in comes out: bytes in use are the same before and after, over every kind of block.
template <typename Delete> static void check_delete(Delete remove)
{
    remove(nullptr, 0);
    size_t before = mallinfo2().uordblks;
    for (int round = 0; round < 100; round++)
        for (size_t size : sizes)
            remove(operator new(size, ALIGN), size);
    CHECK(mallinfo2().uordblks == before);
}

CASE(_ZdlPv)
{
    check_delete([](void *block, size_t) { operator delete(block); });
}

CASE(_ZdaPv)
{
    check_delete([](void *block, size_t) { operator delete[](block); });
}

CASE(_ZdlPvm)
{
    check_delete([](void *block, size_t size) { operator delete(block, size); });
}

CASE(_ZdaPvm)
{
    check_delete([](void *block, size_t size) { operator delete[](block, size); });
}

CASE(_ZdlPvRKSt9nothrow_t)
{
    check_delete([](void *block, size_t) { operator delete(block, std::nothrow); });
}

CASE(_ZdaPvRKSt9nothrow_t)
{
    check_delete([](void *block, size_t) { operator delete[](block, std::nothrow); });
}

CASE(_ZdlPvSt11align_val_t)
{
    check_delete([](void *block, size_t) { operator delete(block, ALIGN); });
}

CASE(_ZdaPvSt11align_val_t)
{
    check_delete([](void *block, size_t) { operator delete[](block, ALIGN); });
}

CASE(_ZdlPvmSt11align_val_t)
{
    check_delete([](void *block, size_t size) { operator delete(block, size, ALIGN); });
}

CASE(_ZdaPvmSt11align_val_t)
{
    check_delete([](void *block, size_t size) { operator delete[](block, size, ALIGN); });
}

CASE(_ZdlPvSt11align_val_tRKSt9nothrow_t)
{
    check_delete([](void *block, size_t) { operator delete(block, ALIGN, std::nothrow); });
}

CASE(_ZdaPvSt11align_val_tRKSt9nothrow_t)
{
    check_delete([](void *block, size_t) { operator delete[](block, ALIGN, std::nothrow); });
}
