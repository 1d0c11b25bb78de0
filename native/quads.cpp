#include "quads.h"

#include <algorithm>

#include "simd.h"

#if defined(SYNAPTREE_avx512)
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 16")

namespace synaptree::SYNAPTREE_ISA {
namespace {

constexpr int LINE = 64;  // bytes of a register: sixteen samples of four inputs

// ---- transposing

// The lower, or upper, halves of each lane of two registers, numbers or pairs of numbers in turn.
INLINE __m512i low(__m512i a, __m512i b) { return _mm512_maskz_unpacklo_epi32(0xffff, a, b); }
INLINE __m512i high(__m512i a, __m512i b) { return _mm512_maskz_unpackhi_epi32(0xffff, a, b); }
INLINE __m512i low_pairs(__m512i a, __m512i b) { return _mm512_maskz_unpacklo_epi64(0xff, a, b); }
INLINE __m512i high_pairs(__m512i a, __m512i b) { return _mm512_maskz_unpackhi_epi64(0xff, a, b); }

// Four registers, each four lanes of four numbers: every lane by itself is transposed.
INLINE void transpose(__m512i (&rows)[4]) {
    const __m512i left = low(rows[0], rows[1]), right = low(rows[2], rows[3]);
    const __m512i left_high = high(rows[0], rows[1]), right_high = high(rows[2], rows[3]);
    rows[0] = low_pairs(left, right);
    rows[1] = high_pairs(left, right);
    rows[2] = low_pairs(left_high, right_high);
    rows[3] = high_pairs(left_high, right_high);
}

// Sixteen bytes of every fourth of the samples that there are, one sample to a lane.
INLINE __m512i every_fourth(const uint8_t* x, int64_t pitch, int32_t samples) {
    __m512i all = _mm512_setzero_si512();
    UNROLLED for (int lane = 0; lane < 4; lane++)
        if (4 * lane < samples) {
            const __m128i* from = reinterpret_cast<const __m128i*>(x + 4 * lane * pitch);
            all = _mm512_mask_broadcast_i32x4(all, __mmask16(0xf << 4 * lane), _mm_loadu_si128(from));
        }
    return all;
}

// Copies a block of inputs, sixteen at a time, to where samples stand side by side.
void side_by_side(const Quads& task, const Frame& frame, int32_t first, int32_t samples, uint8_t* to) {
    const RowsAt& from = task.layer.x;
    const int32_t last = std::min(first + task.block_quads, task.quads);
    const int64_t quad = int64_t(task.vectors) * LINE;
    for (int32_t sample = 0; sample < samples; sample += LANES)
        for (int32_t q = first; q < last; q += 4) {
            const uint8_t* x = at<const uint8_t>(frame, from.at) + sample * from.pitch + q * 4;
            uint8_t* y = to + (q - first) * quad + sample * 4;
            __m512i four[4];
            UNROLLED for (int s = 0; s < 4; s++)
                four[s] = every_fourth(x + s * from.pitch, from.pitch, samples - sample - s);
            transpose(four);
            UNROLLED for (int i = 0; i < 4; i++) _mm512_store_si512(y + i * quad, four[i]);
        }
}

// ---- sums

// Keeps a sum in its register: compilers else move it back and forth within the loop.
INLINE void pin(__m512i& sum) { asm("" : "+v"(sum)); }

template <int VECTORS> INLINE void add(__m512i (&sums)[VECTORS], const uint8_t* quad, int32_t weights) {
    const __m512i four = _mm512_set1_epi32(weights);
    UNROLLED for (int v = 0; v < VECTORS; v++) {
        sums[v] = _mm512_dpbusd_epi32(sums[v], _mm512_load_si512(quad + v * LINE), four);
        pin(sums[v]);
    }
}

// Two sets of sums: one alone would leave the multipliers waiting for it.
template <int VECTORS>
INLINE void row_of_block(const Quads& task, const uint8_t* x, int32_t* kept, int32_t block, int32_t row) {
    const int64_t* starts = task.starts + int64_t(block) * task.layer.rows + row;
    __m512i sums[VECTORS], others[VECTORS];
    UNROLLED for (int v = 0; v < VECTORS; v++) {
        sums[v] = block ? _mm512_load_si512(kept + v * LANES) : _mm512_set1_epi32(-task.layer.excess[row]);
        others[v] = _mm512_setzero_si512();
    }
    for (int64_t i = starts[0]; i < starts[1]; i += 2) {
        add(sums, x + task.offsets[i], task.weights[i]);
        add(others, x + task.offsets[i + 1], task.weights[i + 1]);
    }
    UNROLLED for (int v = 0; v < VECTORS; v++)
        _mm512_store_si512(kept + v * LANES, _mm512_add_epi32(sums[v], others[v]));
}

// ---- outputs

// Sixteen samples of a row.
INLINE Vec outputs_of(const LayerInt8& layer, const int32_t* sums, int32_t row, float scale) {
    Bits sum;
    std::memcpy(&sum, sums, sizeof sum);
    const Vec scales = splat(scale * layer.scales[row]), bias = splat(layer.bias[row]);
    return clamp(__builtin_convertvector(sum, Vec) * scales + bias, layer.low, layer.high);
}

INLINE __m512i byte_of(const LayerInt8& layer, Vec outputs) {
    const Vec v = clamp(outputs * splat(layer.inverse), -128.0f, 127.0f);
    const __m512i rounded = _mm512_maskz_cvtps_epi32(0xffff, __m512(v));
    return _mm512_and_si512(_mm512_add_epi32(rounded, _mm512_set1_epi32(128)), _mm512_set1_epi32(255));
}

// Which of sixteen rows there are.
INLINE __mmask16 there_of(const LayerInt8& layer, int32_t row) {
    return __mmask16((1u << std::min(layer.rows - row, 16)) - 1);
}

template <int PARTS> INLINE __m512i lanes(__m512i a, __m512i b) {
    return _mm512_maskz_shuffle_i32x4(0xffff, a, b, PARTS);
}

INLINE void transpose_all(__m512i (&rows)[4][4]) {
    UNROLLED for (int r = 0; r < 4; r++) transpose(rows[r]);
    UNROLLED for (int i = 0; i < 4; i++) {  // lane s of rows[r][i]: rows 4 r to 4 r + 3 of sample 4 s + i
        const __m512i first = lanes<0x44>(rows[0][i], rows[1][i]), last = lanes<0xee>(rows[0][i], rows[1][i]);
        const __m512i more = lanes<0x44>(rows[2][i], rows[3][i]), most = lanes<0xee>(rows[2][i], rows[3][i]);
        rows[0][i] = lanes<0x88>(first, more);
        rows[1][i] = lanes<0xdd>(first, more);
        rows[2][i] = lanes<0x88>(last, most);
        rows[3][i] = lanes<0xdd>(last, most);
    }
}

// Sixteen rows of up to sixteen samples; `pitch` numbers from the sums of a row to the next.
void put_floats(const LayerInt8& layer, const int32_t* sums, int64_t pitch, float* y, int32_t row, int32_t samples,
                float scale) {
    __m512i rows[4][4];
    UNROLLED for (int r = 0; r < 16; r++)
        rows[r / 4][r % 4] = __m512i(outputs_of(layer, sums + r * pitch, row + r, scale));
    transpose_all(rows);
    const __mmask16 there = there_of(layer, row);
    UNROLLED for (int s = 0; s < 16; s++)
        if (s < samples) _mm512_mask_storeu_epi32(y + s * layer.y.pitch + row, there, rows[s / 4][s % 4]);
}

void put_bytes(const LayerInt8& layer, const int32_t* sums, int64_t pitch, uint8_t* y, int32_t row, int32_t samples,
               float scale) {
    __m512i quads[4];
    UNROLLED for (int q = 0; q < 4; q++) {
        quads[q] = _mm512_setzero_si512();
        UNROLLED for (int r = 0; r < 4; r++) {
            const Vec outputs = outputs_of(layer, sums + (4 * q + r) * pitch, row + 4 * q + r, scale);
            quads[q] = _mm512_or_si512(quads[q], _mm512_maskz_slli_epi32(0xffff, byte_of(layer, outputs), 8 * r));
        }
    }
    transpose(quads);
    alignas(64) __m128i of[4][4];  // sample 4 i + j: [j][i]
    UNROLLED for (int j = 0; j < 4; j++) _mm512_store_si512(of[j], quads[j]);
    const __mmask16 there = there_of(layer, row);
    for (int s = 0; s < samples; s++) _mm_mask_storeu_epi8(y + s * layer.y.pitch + row, there, of[s % 4][s / 4]);
}

void put(const Quads& task, const Frame& frame, const int32_t* sums, int32_t row, int32_t samples) {
    const LayerInt8& layer = task.layer;
    const float scale = layer.scale_at < 0 ? layer.scale : *at<const float>(frame, layer.scale_at);
    const int64_t pitch = int64_t(task.vectors) * LANES;
    for (int32_t sample = 0; sample < samples; sample += LANES) {
        const int64_t y = sample * layer.y.pitch;
        const int32_t left = std::min(samples - sample, LANES);
        if (layer.to_bytes)
            put_bytes(layer, sums + sample, pitch, at<uint8_t>(frame, layer.y.at) + y, row, left, scale);
        else
            put_floats(layer, sums + sample, pitch, at<float>(frame, layer.y.at) + y, row, left, scale);
    }
}

template <int VECTORS> void run(const Quads& task, const Frame& frame, int32_t first, int32_t last, int32_t samples) {
    alignas(64) uint8_t x[QUADS_BLOCK_BYTES];
    for (int32_t block = 0, quad = 0; quad < task.quads; block++, quad += task.block_quads) {
        side_by_side(task, frame, quad, samples, x);
        for (int32_t row = first * LANES; row < last * LANES; row += LANES) {
            int32_t* sums = at<int32_t>(frame, task.sums) + int64_t(row) * task.vectors * LANES;
            for (int32_t r = 0; r < LANES && row + r < task.layer.rows; r++)
                row_of_block<VECTORS>(task, x, sums + r * task.vectors * LANES, block, row + r);
            if (quad + task.block_quads >= task.quads) put(task, frame, sums, row, samples);
        }
    }
}

void quads(const void* given, const Frame& frame, int32_t first, int32_t last) {
    const Quads& task = *static_cast<const Quads*>(given);
    const int32_t samples = int32_t(std::min<int64_t>(frame.samples, task.layer.samples));
    switch ((samples + LANES - 1) / LANES) {
        case 1: return run<1>(task, frame, first, last, samples);
        case 2: return run<2>(task, frame, first, last, samples);
        case 3: return run<3>(task, frame, first, last, samples);
        case 4: return run<4>(task, frame, first, last, samples);
    }
}

}  // namespace

Kernel quads_kernel() { return quads; }

}  // namespace synaptree::SYNAPTREE_ISA

#else

namespace synaptree::SYNAPTREE_ISA {

Kernel quads_kernel() { return nullptr; }

}  // namespace synaptree::SYNAPTREE_ISA

#endif
