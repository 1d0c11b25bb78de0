// What is left of a row when whole registers no longer fit; nothing behind its end is read or written.
// For files of kernels only, like simd.h.
#pragma once
#include "simd.h"

#if defined(SYNAPTREE_avx512) || defined(SYNAPTREE_avx2)
#include <immintrin.h>
#endif

namespace synaptree::SYNAPTREE_ISA {

#if defined(SYNAPTREE_avx2)
// A mask of the first n of sixteen, n of 1 to 15, in two halves.
struct Mask {
    __m256i halves[2];
    explicit inline __attribute__((always_inline)) Mask(int64_t n) {
        const __m256i count = _mm256_set1_epi32(int32_t(n));
        halves[0] = _mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        halves[1] = _mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15));
    }
};
#endif

// The first n of sixteen floats, n of 1 to 15; the others are `rest`.
static inline __attribute__((always_inline)) Vec load_first(const float* p, int64_t n, float rest = 0.0f) {
#if defined(SYNAPTREE_avx512)
    return (Vec)_mm512_mask_loadu_ps(_mm512_set1_ps(rest), __mmask16((1u << n) - 1), p);
#elif defined(SYNAPTREE_avx2)
    const Mask mask(n);
    Vec v;
    for (int i = 0; i < 2; i++) {
        const __m256 half = _mm256_blendv_ps(_mm256_set1_ps(rest), _mm256_maskload_ps(p + 8 * i, mask.halves[i]),
                                             _mm256_castsi256_ps(mask.halves[i]));
        std::memcpy((char*)&v + 32 * i, &half, 32);
    }
    return v;
#else
    float all[LANES];
    for (int i = 0; i < LANES; i++) all[i] = rest;
    for (int i = 0; i < n; i++) all[i] = p[i];
    return load(all);
#endif
}

static inline __attribute__((always_inline)) void store_first(float* p, Vec v, int64_t n) {
#if defined(SYNAPTREE_avx512)
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
#elif defined(SYNAPTREE_avx2)
    const Mask mask(n);
    for (int i = 0; i < 2; i++) {
        __m256 half;
        std::memcpy(&half, (const char*)&v + 32 * i, 32);
        _mm256_maskstore_ps(p + 8 * i, mask.halves[i], half);
    }
#else
    float all[LANES];
    store(all, v);
    for (int i = 0; i < n; i++) p[i] = all[i];
#endif
}

// A whole register of a row, and what is left of it: the same kernel is written once for both.
struct Whole {
    static inline __attribute__((always_inline)) Vec read(const float* p, float = 0.0f) { return load(p); }
    static inline __attribute__((always_inline)) void write(float* p, Vec v) { store(p, v); }
};

struct First {
    int64_t n;
    inline __attribute__((always_inline)) Vec read(const float* p, float rest = 0.0f) const {
        return load_first(p, n, rest);
    }
    inline __attribute__((always_inline)) void write(float* p, Vec v) const { store_first(p, v, n); }
};

// Calls body(i, part) for every register's worth of a row, `part` being Whole or First.
template <class Body> static inline __attribute__((always_inline)) void registers_of(int64_t length, const Body& body) {
    int64_t i = 0;
    for (; i + LANES <= length; i += LANES) body(i, Whole{});
    if (i < length) body(i, First{length - i});
}

// Sixteen floats, `stride` apart, of 1, 2 or 4; reads whole registers.
template <int stride> static inline __attribute__((always_inline)) Vec load_every(const float* p) {
    if constexpr (stride == 1) {
        return load(p);
    } else {
#if defined(SYNAPTREE_avx512)
        const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        const Vec low = load_every<stride / 2>(p), high = load_every<stride / 2>(p + LANES * stride / 2);
        return (Vec)_mm512_permutex2var_ps((__m512)low, even, (__m512)high);
#else
        Vec v;
        for (int i = 0; i < LANES; i++) v[i] = p[i * stride];
        return v;
#endif
    }
}

}  // namespace synaptree::SYNAPTREE_ISA
