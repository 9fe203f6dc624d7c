// Memory in huge pages: constants and scratch space are read from end to end for each chunk of galaxies, and with pages
// of 4 KiB the processor would look up a new page every few products.
#pragma once
#include <sys/mman.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

// Hands out arrays of zeros, which are freed together with it. Throws std::bad_alloc.
class Arena {
    static constexpr size_t HUGE_PAGE = size_t(2) << 20, ALIGNMENT = 256;

    struct Free {
        void operator()(char *memory) const { std::free(memory); }
    };

    std::vector<std::unique_ptr<char, Free>> regions;
    size_t used = 0, size = 0;  // bytes of the last region

  public:
    template <class T>
    T *allocate(size_t count) {
        const size_t bytes = (count * sizeof(T) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        if (used + bytes > size) {
            size = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
            used = 0;
            char *memory = static_cast<char *>(std::aligned_alloc(HUGE_PAGE, size));
            if (!memory) throw std::bad_alloc();
            regions.emplace_back(memory);
            madvise(memory, size, MADV_HUGEPAGE);  // it works without, only slower
            __builtin_memset(memory, 0, size);
        }
        char *array = regions.back().get() + used;
        used += bytes;
        return reinterpret_cast<T *>(array);
    }
};
