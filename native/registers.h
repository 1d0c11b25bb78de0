// One register as the machine has it: 16 floats of AVX-512, 8 of AVX2, 4 of SSE and NEON. For kernels that go along
// rows of any length: what is left where whole registers no longer fit is neither read nor written beyond its end.
// For files of kernels only, in place of simd.h: compilers take vectors wider than a register apart, float by float.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(SYNAPTREE_avx512) || defined(SYNAPTREE_avx2)
#include <immintrin.h>
#endif

#ifndef SYNAPTREE_ISA
#error "a file of kernels is compiled with SYNAPTREE_ISA set to generic, avx2 or avx512"
#endif

#define INLINE inline __attribute__((always_inline))

namespace synaptree::SYNAPTREE_ISA {

#if defined(SYNAPTREE_avx512)
constexpr int WIDTH = 16;
#elif defined(SYNAPTREE_avx2)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
typedef float Register __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Bits __attribute__((vector_size(4 * WIDTH)));

static INLINE Register load(const float* p) {
    Register v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

static INLINE void store(float* p, Register v) { std::memcpy(p, &v, sizeof v); }

static INLINE Register splat(float value) { return value - Register{}; }

// min(max(v, low), high); what is not a number stays so
static INLINE Register clamp(Register v, float low, float high) {
    const Register least = splat(low), most = splat(high);
    v = v < least ? least : v;
    return v > most ? most : v;
}

#if defined(SYNAPTREE_avx2)
static INLINE __m256i mask_of(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(int32_t(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif

// The first n floats of a register, n of 0 to WIDTH; the others are `rest`.
static INLINE Register load_first(const float* p, int64_t n, float rest = 0.0f) {
#if defined(SYNAPTREE_avx512)
    return (Register)_mm512_mask_loadu_ps(_mm512_set1_ps(rest), __mmask16((1u << n) - 1), p);
#elif defined(SYNAPTREE_avx2)
    const __m256i mask = mask_of(n);
    return (Register)_mm256_blendv_ps(_mm256_set1_ps(rest), _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask));
#else
    Register v = splat(rest);
    for (int i = 0; i < WIDTH; i++)
        if (i < n) v[i] = p[i];
    return v;
#endif
}

static INLINE void store_first(float* p, Register v, int64_t n) {
#if defined(SYNAPTREE_avx512)
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
#elif defined(SYNAPTREE_avx2)
    _mm256_maskstore_ps(p, mask_of(n), (__m256)v);
#else
    for (int i = 0; i < WIDTH; i++)
        if (i < n) p[i] = v[i];
#endif
}

// A whole register of a row, and what is left of it: a kernel is written once for both.
struct Whole {
    static INLINE Register read(const float* p, float = 0.0f) { return load(p); }
    static INLINE void write(float* p, Register v) { store(p, v); }
};

struct First {
    int64_t n;
    INLINE Register read(const float* p, float rest = 0.0f) const {
        return load_first(p, n, rest);
    }
    INLINE void write(float* p, Register v) const { store_first(p, v, n); }
};

// Calls body(i, part) for every register's worth of a row, `part` being Whole or First.
template <class Body> static INLINE void registers_of(int64_t length, const Body& body) {
    int64_t i = 0;
    for (; i + WIDTH <= length; i += WIDTH) body(i, Whole{});
    if (i < length) body(i, First{length - i});
}

// Every second float of two registers.
static INLINE Register even(Register a, Register b) {
#if defined(SYNAPTREE_avx512)
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
#elif defined(SYNAPTREE_avx2)
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
#else
    return __builtin_shufflevector(a, b, 0, 2, 4, 6);
#endif
}

// A register of floats that lie `stride` apart, of 1, 2 or 4; reads whole registers, stride of them.
template <int stride> static INLINE Register load_every(const float* p) {
    if constexpr (stride == 1)
        return load(p);
    else
        return even(load_every<stride / 2>(p), load_every<stride / 2>(p + WIDTH * stride / 2));
}

}  // namespace synaptree::SYNAPTREE_ISA
