// Sixteen floats as one value: one register of AVX-512, two of AVX2, four of SSE and NEON.
// For files of kernels only: what it defines differs from one instruction set to the next, hence the namespace.
#pragma once
#include <cstdint>
#include <cstring>

#ifndef SYNAPTREE_ISA
#error "a file of kernels is compiled with SYNAPTREE_ISA set to generic, avx2 or avx512"
#endif

namespace synaptree::SYNAPTREE_ISA {

constexpr int LANES = 16;
typedef float Vec __attribute__((vector_size(64)));
typedef int32_t Bits __attribute__((vector_size(64)));

static inline __attribute__((always_inline)) Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

static inline __attribute__((always_inline)) void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

static inline __attribute__((always_inline)) Vec splat(float value) { return value - Vec{}; }

// min(max(v, low), high); what is not a number stays so
static inline __attribute__((always_inline)) Vec clamp(Vec v, float low, float high) {
    const Vec least = splat(low), most = splat(high);
    v = v < least ? least : v;
    return v > most ? most : v;
}

}  // namespace synaptree::SYNAPTREE_ISA
