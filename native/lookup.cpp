#include "lookup.h"

#include "simd.h"

#if defined(SYNAPTREE_avx2) || defined(SYNAPTREE_avx512)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

namespace synaptree::SYNAPTREE_ISA {
namespace {

INLINE float clamp_one(float value, float low, float high) {
    value = value < low ? low : value;
    return value > high ? high : value;
}

// ---- compressed rows

float scattered_dot(const float* x, const int32_t* columns, const float* values, int64_t count) {
    float sums[4] = {};
    int64_t i = 0;
    for (; i + 4 <= count; i += 4)
        for (int j = 0; j < 4; j++) sums[j] += values[i + j] * x[columns[i + j]];
    for (; i < count; i++) sums[i & 3] += values[i] * x[columns[i]];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

#if defined(SYNAPTREE_avx2) || defined(SYNAPTREE_avx512)
INLINE __m256 gather_dot(const float* x, const int32_t* columns, const float* values, __m256 sum) {
    const __m256i where = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(columns));
    return _mm256_fmadd_ps(_mm256_i32gather_ps(x, where, 4), _mm256_loadu_ps(values), sum);
}

float row_dot(const float* x, const int32_t* columns, const float* values, int64_t count) {
    __m256 even = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        even = gather_dot(x, columns + i, values + i, even);
        odd = gather_dot(x, columns + i + 8, values + i + 8, odd);
    }
    if (i + 8 <= count) {
        even = gather_dot(x, columns + i, values + i, even);
        i += 8;
    }
    even = _mm256_add_ps(even, odd);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(even), _mm256_extractf128_ps(even, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    const float whole = _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
    return whole + scattered_dot(x, columns + i, values + i, count - i);
}
#else
float row_dot(const float* x, const int32_t* columns, const float* values, int64_t count) {
    return scattered_dot(x, columns, values, count);
}
#endif

void compressed(const void* given, const Frame& frame, int32_t first, int32_t last) {
    const Compressed& task = *static_cast<const Compressed*>(given);
    const float* x = at<const float>(frame, task.x);
    float* y = at<float>(frame, task.y);
    const int32_t end = last * CHUNK_ROWS < task.rows ? last * CHUNK_ROWS : task.rows;
    for (int32_t row = first * CHUNK_ROWS; row < end; row++) {
        const int64_t start = task.starts[row];
        const float sum = row_dot(x, task.columns + start, task.values + start, task.starts[row + 1] - start);
        y[task.order ? task.order[row] : row] = clamp_one(task.bias[row] + sum, task.low, task.high);
    }
}

// ---- look-up

#if defined(SYNAPTREE_avx512)

// Each stream is fetched this many bytes before its turn: what the machine fetches by itself comes too late.
constexpr int64_t AHEAD = 4096;

INLINE void fetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0); }

// The inputs of sixteen rows from a tile in REGISTERS registers; the top bits of `high` say which half, quarter, ...
template <int REGISTERS> INLINE __m512 pick(const __m512* tile, __m512i low, __m512i high) {
    if constexpr (REGISTERS == 2) {
        return _mm512_permutex2var_ps(tile[0], low, tile[1]);
    } else {
        const __m512i rest = _mm512_add_epi32(high, high);
        const __m512 left = pick<REGISTERS / 2>(tile, low, rest);
        const __m512 right = pick<REGISTERS / 2>(tile + REGISTERS / 2, low, rest);
        return _mm512_mask_blend_ps(_mm512_movepi32_mask(high), left, right);
    }
}

template <int LOOK, int REGISTERS, bool KEPT>
INLINE __m512 look(const __m512* tile, __m512i four, const float*& values, __m512 sum) {
    const __m512i bits = _mm512_mask_ror_epi32(four, 0xffff, four, 8 * LOOK);
    if constexpr (KEPT) {
        const __mmask16 some = _mm512_movepi32_mask(bits);
        const __m512 inputs = pick<REGISTERS>(tile, bits, _mm512_add_epi32(bits, bits));
        const __m512 weights = _mm512_maskz_expandloadu_ps(some, values);
        if constexpr (LOOK % 2 == 0) fetch(values + AHEAD / sizeof(float));  // two looks read about one line
        values += __builtin_popcount(some);
        return _mm512_mask3_fmadd_ps(inputs, weights, sum, some);
    } else {
        const __m512 inputs = pick<REGISTERS>(tile, bits, bits);
        const __m512 weights = _mm512_loadu_ps(values);
        fetch(values + AHEAD / sizeof(float));
        values += LANES;
        return _mm512_fmadd_ps(inputs, weights, sum);
    }
}

// One after the other, SPAN looks add to the same sums, which stay in a register meanwhile.
template <int SPAN, int REGISTERS, bool KEPT>
INLINE void four_looks(const __m512* tile, const uint8_t* index, const uint16_t* where, const float*& values,
                       float* sums) {
    const __m512i four = _mm512_loadu_si512(index);
    fetch(index + AHEAD / 4);
    __m512 sum = _mm512_load_ps(sums + where[0]);
    sum = look<0, REGISTERS, KEPT>(tile, four, values, sum);
    if constexpr (SPAN == 1) {
        _mm512_store_ps(sums + where[0], sum);
        sum = _mm512_load_ps(sums + where[1]);
    }
    sum = look<1, REGISTERS, KEPT>(tile, four, values, sum);
    if constexpr (SPAN < 4) {
        _mm512_store_ps(sums + where[SPAN == 2 ? 0 : 1], sum);
        sum = _mm512_load_ps(sums + where[2]);
    }
    sum = look<2, REGISTERS, KEPT>(tile, four, values, sum);
    if constexpr (SPAN == 1) {
        _mm512_store_ps(sums + where[2], sum);
        sum = _mm512_load_ps(sums + where[3]);
    }
    sum = look<3, REGISTERS, KEPT>(tile, four, values, sum);
    _mm512_store_ps(sums + where[4 - SPAN], sum);
}

void finish(const Lookup& task, const float* sums, int32_t first_row, float* y) {
    const int32_t left = task.rows - first_row;
    const int32_t rows = left < task.groups * LANES ? left : task.groups * LANES;
    if (task.order) {
        for (int32_t i = 0; i < rows; i++) y[task.order[first_row + i]] = clamp_one(sums[i], task.low, task.high);
        return;
    }
    int32_t i = 0;
    for (; i + LANES <= rows; i += LANES) store(y + first_row + i, clamp(load(sums + i), task.low, task.high));
    for (; i < rows; i++) y[first_row + i] = clamp_one(sums[i], task.low, task.high);
}

template <int REGISTERS, bool KEPT> void look_up(const void* given, const Frame& frame, int32_t first, int32_t last) {
    const Lookup& task = *static_cast<const Lookup*>(given);
    const float* x = at<const float>(frame, task.x);
    alignas(64) float sums[(MOST_GROUPS + 1) * LANES];  // one group more, for looks without connections
    for (int32_t block = first; block < last; block++) {
        const int32_t first_row = block * task.groups * LANES;
        std::memcpy(sums, task.bias + first_row, size_t(task.groups) * LANES * sizeof(float));
        std::memset(sums + task.groups * LANES, 0, LANES * sizeof(float));
        const int64_t* fours = task.fours + int64_t(block) * task.tiles * SPANS;
        const float* values = task.values + (KEPT ? task.kept[block] : fours[0] * 4 * LANES);
        for (int32_t t = 0; t < task.tiles; t++, fours += SPANS) {
            __m512 tile[REGISTERS];
            for (int r = 0; r < REGISTERS; r++) tile[r] = _mm512_loadu_ps(x + (int64_t(t) * REGISTERS + r) * LANES);
            const uint8_t* index = task.index;
            const uint16_t* where = task.sums;
            int64_t f = fours[0];
            for (; f < fours[1]; f++) four_looks<4, REGISTERS, KEPT>(tile, index + f * 64, where + f * 4, values, sums);
            for (; f < fours[2]; f++) four_looks<2, REGISTERS, KEPT>(tile, index + f * 64, where + f * 4, values, sums);
            for (; f < fours[3]; f++) four_looks<1, REGISTERS, KEPT>(tile, index + f * 64, where + f * 4, values, sums);
        }
        finish(task, sums, first_row, at<float>(frame, task.y));
    }
}

template <bool KEPT> Kernel of_width(int32_t width) {
    return width == 32 ? look_up<2, KEPT> : width == 64 ? look_up<4, KEPT> : width == 128 ? look_up<8, KEPT> : nullptr;
}

#endif

}  // namespace

Kernel compressed_kernel() { return compressed; }

#if defined(SYNAPTREE_avx512)
Kernel lookup_kernel(int32_t width, bool kept) { return kept ? of_width<true>(width) : of_width<false>(width); }
#else
Kernel lookup_kernel(int32_t, bool) { return nullptr; }
#endif

}  // namespace synaptree::SYNAPTREE_ISA
