// What a network is made of when it runs: steps that read and write one arena.
#pragma once
#include <cstdint>

namespace synaptree {

// Where a step runs. Everything between the first and the last step of a network lies in the arena.
struct Frame {
    char* arena;      // 64-byte aligned
    const float* x;   // samples x features, as the caller gave them
    float* y;         // samples x outputs, as the caller wants them
    int64_t samples;  // of this block, at most the lanes of the network
};

// Runs chunks [first, last) of a task. Chunks write apart from one another, so threads may share them out.
using Kernel = void (*)(const void* task, const Frame& frame, int32_t first, int32_t last);

template <class T> T* at(const Frame& frame, int64_t bytes) { return reinterpret_cast<T*>(frame.arena + bytes); }

enum class Isa { generic, avx2, avx512 };

// Every file of kernels is compiled once per instruction set, inside a namespace of that name.
#if defined(__x86_64__) || defined(_M_X64)
#define SYNAPTREE_PER_ISA(declaration)   \
    namespace generic { declaration; } \
    namespace avx2 { declaration; }    \
    namespace avx512 { declaration; }
#define SYNAPTREE_PICK(isa, call) \
    ((isa) == Isa::avx512 ? avx512::call : (isa) == Isa::avx2 ? avx2::call : generic::call)
#else
#define SYNAPTREE_PER_ISA(declaration) \
    namespace generic { declaration; }
#define SYNAPTREE_PICK(isa, call) (generic::call)
#endif

}  // namespace synaptree
