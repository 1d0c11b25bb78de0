// Floats to bytes, for files of kernels only.
#pragma once
#include "simd.h"

namespace synaptree::SYNAPTREE_ISA {

typedef uint8_t Bytes __attribute__((vector_size(16)));

// round(v) + 128, halves to even, at least 0 and at most 255; what is not a number becomes some byte.
// A float of 1.5 * 2^23 counts in ones: adding it rounds, and leaves the integer in the low bits.
static inline __attribute__((always_inline)) void store_rounded(uint8_t* to, Vec v) {
    const Vec rounded = clamp(v, -128.0f, 127.0f) + splat(12582912.0f + 128.0f);
    Bits bits;
    std::memcpy(&bits, &rounded, sizeof bits);
    const Bytes bytes = __builtin_convertvector(bits & 255, Bytes);
    std::memcpy(to, &bytes, sizeof bytes);
}

}  // namespace synaptree::SYNAPTREE_ISA
