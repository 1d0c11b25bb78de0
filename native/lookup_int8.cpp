#include "lookup_int8.h"

#include "lookup.h"
#include "rounding.h"
#include "simd.h"

#if defined(SYNAPTREE_avx512)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

namespace synaptree::SYNAPTREE_ISA {
namespace {

int32_t samples_of(const Frame& frame, const LayerInt8& layer) {
    return frame.samples < layer.samples ? int32_t(frame.samples) : layer.samples;
}

float scale_of(const Frame& frame, const LayerInt8& layer) {
    return layer.scale_at < 0 ? layer.scale : *at<const float>(frame, layer.scale_at);
}

template <class T> INLINE void put(const LayerInt8& layer, T* y, const T* outputs, int32_t row) {
    const int32_t left = layer.rows - row, count = left < LANES ? left : LANES;
    if (layer.order)
        for (int32_t i = 0; i < count; i++) y[layer.order[row + i]] = outputs[i];
    else if (count == LANES)
        std::memcpy(y + row, outputs, LANES * sizeof(T));  // of a size that the compiler knows
    else
        std::memcpy(y + row, outputs, size_t(count) * sizeof(T));
}

// From the sums of sixteen rows, the first of them `row`, to the outputs of a sample.
INLINE void finish(const LayerInt8& layer, const Frame& frame, const int32_t* sums, int32_t row, int32_t sample,
                   float scale) {
    Bits sum, excess;
    std::memcpy(&sum, sums, sizeof sum);
    std::memcpy(&excess, layer.excess + row, sizeof excess);
    const Vec scales = splat(scale) * load(layer.scales + row), bias = load(layer.bias + row);
    const Vec v = clamp(__builtin_convertvector(sum - excess, Vec) * scales + bias, layer.low, layer.high);
    if (layer.to_bytes) {
        uint8_t outputs[LANES];
        store_rounded(outputs, v * splat(layer.inverse));
        put(layer, at<uint8_t>(frame, layer.y.at) + sample * layer.y.pitch, outputs, row);
    } else {
        float outputs[LANES];
        store(outputs, v);
        put(layer, at<float>(frame, layer.y.at) + sample * layer.y.pitch, outputs, row);
    }
}

// ---- compressed rows

int32_t row_sum(const CompressedInt8& task, const uint8_t* x, int32_t row) {
    int32_t sum = 0;
    for (int64_t i = task.starts[row]; i < task.starts[row + 1]; i++)
        sum += task.values[i] * int32_t(x[task.columns[i]]);
    return sum;
}

void compressed(const void* given, const Frame& frame, int32_t first, int32_t last) {
    const CompressedInt8& task = *static_cast<const CompressedInt8*>(given);
    const LayerInt8& layer = task.layer;
    const int32_t samples = samples_of(frame, layer);
    const float scale = scale_of(frame, layer);
    for (int32_t row = first * LANES; row < last * LANES; row += LANES)
        for (int32_t sample = 0; sample < samples; sample++) {
            const uint8_t* x = at<const uint8_t>(frame, layer.x.at) + sample * layer.x.pitch;
            int32_t sums[LANES] = {};
            for (int32_t i = 0; i < LANES && row + i < layer.rows; i++) sums[i] = row_sum(task, x, row + i);
            finish(layer, frame, sums, row, sample, scale);
        }
}

// ---- look-up

#if defined(SYNAPTREE_avx512)

constexpr int LINE = 64;         // bytes of a register
constexpr int64_t AHEAD = 4096;  // each stream is fetched this many bytes before its turn

INLINE void fetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0); }

template <int REGISTERS> INLINE __m512i pick(const __m512i* tile, __m512i which) {
    if constexpr (REGISTERS == 1) return _mm512_mask_permutexvar_epi8(which, ~0ull, which, tile[0]);
    if constexpr (REGISTERS == 2) return _mm512_permutex2var_epi8(tile[0], which, tile[1]);
    if constexpr (REGISTERS == 4) {
        const __m512i left = pick<2>(tile, which), right = pick<2>(tile + 2, which);
        return _mm512_mask_blend_epi8(_mm512_movepi8_mask(which), left, right);
    }
}

// Some samples at once: every index and weight is read once for all of them.
template <int REGISTERS, int SAMPLES, int SPAN>
INLINE void looks(const __m512i (*tile)[REGISTERS], const uint8_t* index, const int8_t* values, int32_t* sums) {
    __m512i sum[SAMPLES];
#pragma GCC unroll 8
    for (int s = 0; s < SAMPLES; s++) sum[s] = _mm512_load_si512(sums + s * LANES);
#pragma GCC unroll 4
    for (int look = 0; look < SPAN; look++) {
        const __m512i which = _mm512_loadu_si512(index + look * LINE);
        const __m512i weights = _mm512_loadu_si512(values + look * LINE);
        if constexpr (SAMPLES == 1) {  // with more, looks take longer than fetching
            fetch(index + look * LINE + AHEAD);
            fetch(values + look * LINE + AHEAD);
        }
#pragma GCC unroll 8
        for (int s = 0; s < SAMPLES; s++)
            sum[s] = _mm512_dpbusd_epi32(sum[s], pick<REGISTERS>(tile[s], which), weights);
    }
#pragma GCC unroll 8
    for (int s = 0; s < SAMPLES; s++) _mm512_store_si512(sums + s * LANES, sum[s]);
}

template <int REGISTERS, int SAMPLES, int SPAN>
INLINE void part(const LookupInt8& task, const __m512i (*tile)[REGISTERS], int64_t first, int64_t last, int32_t* sums) {
    for (int64_t look = first * 4; look < last * 4; look += SPAN)
        looks<REGISTERS, SAMPLES, SPAN>(tile, task.index + look * LINE, task.values + look * LINE,
                                        sums + task.sums[look] * SAMPLES);
}

template <int REGISTERS, int SAMPLES>
void some_samples(const LookupInt8& task, const Frame& frame, int32_t block, int32_t sample) {
    const LayerInt8& layer = task.layer;
    const uint8_t* x = at<const uint8_t>(frame, layer.x.at) + sample * layer.x.pitch;
    // one group more, for looks without connections
    alignas(64) int32_t sums[(MOST_GROUPS_INT8 + 1) * SAMPLES * LANES];
    std::memset(sums, 0, size_t(task.groups + 1) * SAMPLES * LANES * sizeof(int32_t));
    const int64_t* fours = task.fours + int64_t(block) * task.tiles * SPANS;
    for (int32_t t = 0; t < task.tiles; t++, fours += SPANS) {
        __m512i tile[SAMPLES][REGISTERS];
#pragma GCC unroll 8
        for (int s = 0; s < SAMPLES; s++)
#pragma GCC unroll 4
            for (int r = 0; r < REGISTERS; r++)
                tile[s][r] = _mm512_loadu_si512(x + s * layer.x.pitch + (int64_t(t) * REGISTERS + r) * LINE);
        part<REGISTERS, SAMPLES, 4>(task, tile, fours[0], fours[1], sums);
        part<REGISTERS, SAMPLES, 2>(task, tile, fours[1], fours[2], sums);
        part<REGISTERS, SAMPLES, 1>(task, tile, fours[2], fours[3], sums);
    }
    const float scale = scale_of(frame, layer);
    for (int32_t group = 0; group < task.groups; group++) {
        const int32_t row = (block * task.groups + group) * LANES;
        if (row >= layer.rows) return;
        for (int32_t s = 0; s < SAMPLES; s++)
            finish(layer, frame, sums + (group * SAMPLES + s) * LANES, row, sample + s, scale);
    }
}

template <int REGISTERS> void look_up(const void* given, const Frame& frame, int32_t first, int32_t last) {
    const LookupInt8& task = *static_cast<const LookupInt8*>(given);
    const int32_t samples = samples_of(frame, task.layer);
    for (int32_t block = first; block < last; block++) {
        int32_t sample = 0;
        if constexpr (REGISTERS < 4)  // eight tiles of four registers are more than there are
            for (; sample + 8 <= samples; sample += 8) some_samples<REGISTERS, 8>(task, frame, block, sample);
        for (; sample + 4 <= samples; sample += 4) some_samples<REGISTERS, 4>(task, frame, block, sample);
        for (; sample + 2 <= samples; sample += 2) some_samples<REGISTERS, 2>(task, frame, block, sample);
        for (; sample < samples; sample++) some_samples<REGISTERS, 1>(task, frame, block, sample);
    }
}

#endif

}  // namespace

Kernel compressed_int8_kernel() { return compressed; }

#if defined(SYNAPTREE_avx512)
Kernel lookup_int8_kernel(int32_t width) {
    return width == 64 ? look_up<1> : width == 128 ? look_up<2> : width == 256 ? look_up<4> : nullptr;
}
#else
Kernel lookup_int8_kernel(int32_t) { return nullptr; }
#endif

}  // namespace synaptree::SYNAPTREE_ISA
