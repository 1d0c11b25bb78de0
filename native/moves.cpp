#include "moves.h"

#include "tails.h"

namespace synaptree::SYNAPTREE_ISA {
namespace {

alignas(64) const float ZEROS[LANES] = {};

#if defined(SYNAPTREE_avx512)

// Four floats of each of four rows, one row to a quarter of the register: quarters straight from memory leave the one
// port that shuffles with half of the work.
inline __attribute__((always_inline)) __m512 quarters(const float* const* rows, int i, int column) {
    __m512 v = _mm512_maskz_broadcast_f32x4(0xffff, _mm_loadu_ps(rows[i] + column));
    v = _mm512_mask_broadcast_f32x4(v, 0x00f0, _mm_loadu_ps(rows[i + 4] + column));
    v = _mm512_mask_broadcast_f32x4(v, 0x0f00, _mm_loadu_ps(rows[i + 8] + column));
    return _mm512_mask_broadcast_f32x4(v, 0xf000, _mm_loadu_ps(rows[i + 12] + column));
}

// The lower, or upper, halves of each quarter of two registers, floats or pairs of floats in turn.
inline __attribute__((always_inline)) __m512 low(__m512 a, __m512 b) { return _mm512_maskz_unpacklo_ps(0xffff, a, b); }
inline __attribute__((always_inline)) __m512 high(__m512 a, __m512 b) { return _mm512_maskz_unpackhi_ps(0xffff, a, b); }
inline __attribute__((always_inline)) Vec low_pairs(__m512 a, __m512 b) {
    return (Vec)_mm512_maskz_unpacklo_pd(0xff, _mm512_castps_pd(a), _mm512_castps_pd(b));
}
inline __attribute__((always_inline)) Vec high_pairs(__m512 a, __m512 b) {
    return (Vec)_mm512_maskz_unpackhi_pd(0xff, _mm512_castps_pd(a), _mm512_castps_pd(b));
}

// Calls put(j, column) with column[i] = rows[i][j] for all j below 16.
template <class Put> inline __attribute__((always_inline)) void transpose(const float* const* rows, const Put& put) {
#pragma GCC unroll 4
    for (int j = 0; j < LANES; j += 4) {
        const __m512 a = quarters(rows, 0, j), b = quarters(rows, 1, j), c = quarters(rows, 2, j), d = quarters(rows, 3, j);
        put(j, low_pairs(low(a, b), low(c, d)));
        put(j + 1, high_pairs(low(a, b), low(c, d)));
        put(j + 2, low_pairs(high(a, b), high(c, d)));
        put(j + 3, high_pairs(high(a, b), high(c, d)));
    }
}

#else

typedef float Four __attribute__((vector_size(16)));

inline __attribute__((always_inline)) Four four(const float* p) {
    Four v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// Calls put(j, column) with column[i] = rows[i][j] for all j below 16.
template <class Put> inline __attribute__((always_inline)) void transpose(const float* const* rows, const Put& put) {
    for (int j = 0; j < LANES; j += 4) {
        Four columns[4][4];
        for (int i = 0; i < 4; i++) {
            const Four a = four(rows[4 * i] + j), b = four(rows[4 * i + 1] + j), c = four(rows[4 * i + 2] + j),
                       d = four(rows[4 * i + 3] + j);
            const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
            const Four AB = __builtin_shufflevector(a, b, 2, 6, 3, 7), CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
            columns[0][i] = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
            columns[1][i] = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
            columns[2][i] = __builtin_shufflevector(AB, CD, 0, 1, 4, 5);
            columns[3][i] = __builtin_shufflevector(AB, CD, 2, 3, 6, 7);
        }
        for (int i = 0; i < 4; i++) put(j + i, load(reinterpret_cast<const float*>(columns[i])));
    }
}

#endif

// The elements of a place in the order in which the caller has the features of a sample.
struct Walk {
    const Place& place;
    int32_t row, column;
    int64_t pixel;  // floats from the first

    Walk(const Place& place, int64_t feature) : place(place) {
        const int64_t area = int64_t(place.height) * place.width, inside = feature % area;
        row = int32_t(inside / place.width);
        column = int32_t(inside % place.width);
        pixel = feature / area * place.plane + row * place.pitch + int64_t(column) * place.lanes;
    }

    inline __attribute__((always_inline)) int64_t next() {
        const int64_t here = pixel;
        pixel += place.lanes;
        if (++column == place.width) {
            column = 0;
            pixel += place.pitch - int64_t(place.width) * place.lanes;
            if (++row == place.height) {
                row = 0;
                pixel += place.plane - place.height * place.pitch;
            }
        }
        return here;
    }
};

// Calls block(feature, n, pixels) for every sixteen features of chunks [first, last), `pixels` being where they lie.
// Blocks begin where the caller's array reaches a new cache line: where samples lie a power of two apart a line has left
// the cache before it is asked for again.
template <class Block>
inline __attribute__((always_inline)) void blocks_of(const Place& place, const float* array, int32_t first, int32_t last,
                                                     const Block& block) {
    const int64_t features = int64_t(place.channels) * place.height * place.width;
    const int64_t back = int64_t(reinterpret_cast<uintptr_t>(array) / sizeof(float) % LANES);
    const int64_t begin = first * FEATURES - back, end = last * FEATURES - back;
    Walk walk(place, begin > 0 ? begin : 0);
    for (int64_t f = begin; f < end && f < features; f += LANES) {
        const int64_t from = f > 0 ? f : 0, to = f + LANES < features ? f + LANES : features;
        int64_t pixels[LANES];
        for (int64_t i = from; i < to; i++) pixels[i - from] = walk.next();
        if (from < to) block(from, to - from, pixels);
    }
}

void enter(const void* task, const Frame& frame, int32_t first, int32_t last) {
    const Place& place = static_cast<const Move*>(task)->place;
    const int64_t features = int64_t(place.channels) * place.height * place.width;
    float* to = at<float>(frame, place.at);
    blocks_of(place, frame.x, first, last, [&](int64_t feature, int64_t n, const int64_t* pixels) {
        for (int32_t lane = 0; lane < place.lanes; lane += LANES) {
            const float* rows[LANES];
            for (int i = 0; i < LANES; i++)
                rows[i] = lane + i < frame.samples ? frame.x + (lane + i) * features + feature : ZEROS;
            if (n == LANES) {
                transpose(rows, [&](int j, Vec v) { store(to + pixels[j] + lane, v); });
                continue;
            }
            float copies[LANES][LANES];
            for (int i = 0; i < LANES; i++) {
                store(copies[i], load_first(rows[i], n));
                rows[i] = copies[i];
            }
            transpose(rows, [&](int j, Vec v) {
                if (j < n) store(to + pixels[j] + lane, v);
            });
        }
    });
}

void leave(const void* task, const Frame& frame, int32_t first, int32_t last) {
    const Place& place = static_cast<const Move*>(task)->place;
    const int64_t features = int64_t(place.channels) * place.height * place.width;
    const int64_t samples = frame.samples < place.lanes ? frame.samples : place.lanes;
    const float* from = at<const float>(frame, place.at);
    blocks_of(place, frame.y, first, last, [&](int64_t feature, int64_t n, const int64_t* pixels) {
        for (int32_t lane = 0; lane < samples; lane += LANES) {
            const float* rows[LANES];
            for (int i = 0; i < LANES; i++) rows[i] = i < n ? from + pixels[i] + lane : ZEROS;
            float* to = frame.y + lane * features + feature;
            if (n == LANES && lane + LANES <= samples) {
                transpose(rows, [&](int j, Vec v) { store(to + j * features, v); });
                continue;
            }
            transpose(rows, [&](int j, Vec v) {
                if (lane + j >= samples) return;
                if (n == LANES)
                    store(to + j * features, v);
                else
                    store_first(to + j * features, v, n);
            });
        }
    });
}

inline __attribute__((always_inline)) void copy_runs(const Copy& task, const float* x, float* y, int32_t first, int32_t last) {
    for (int32_t c = first; c < last; c++)
        for (int32_t row = 0; row < task.runs.rows; row++) {
            const float* from = x + c * task.x.plane + row * task.x.pitch;
            float* to = y + c * task.y.plane + row * task.y.pitch;
            registers_of(c + 1 < task.runs.planes ? task.runs.length : task.runs.last,
                         [&](int64_t i, auto part) { part.write(to + i, part.read(from + i)); });
        }
}

void enter_one(const void* task, const Frame& frame, int32_t first, int32_t last) {
    const Copy& copy = *static_cast<const Copy*>(task);
    copy_runs(copy, frame.x, at<float>(frame, copy.y.at), first, last);
}

void leave_one(const void* task, const Frame& frame, int32_t first, int32_t last) {
    const Copy& copy = *static_cast<const Copy*>(task);
    copy_runs(copy, at<const float>(frame, copy.x.at), frame.y, first, last);
}

void copy(const void* task, const Frame& frame, int32_t first, int32_t last) {
    const Copy& copy = *static_cast<const Copy*>(task);
    copy_runs(copy, at<const float>(frame, copy.x.at), at<float>(frame, copy.y.at), first, last);
}

// Columns [low, high) of a row are every stride-th float of x, the others 0.
template <int stride>
inline __attribute__((always_inline)) void thin_row(const float* x, float* y, int64_t low, int64_t high, int64_t width) {
    registers_of(low, [&](int64_t j, auto part) { part.write(y + j, Vec{}); });
    registers_of(high - low, [&](int64_t j, auto part) { part.write(y + low + j, load_every<stride>(x + j * stride)); });
    registers_of(width - high, [&](int64_t j, auto part) { part.write(y + high + j, Vec{}); });
}

void thin_row(const float* x, float* y, int64_t low, int64_t high, int64_t width, int32_t stride) {
    if (stride == 1) return thin_row<1>(x, y, low, high, width);
    if (stride == 2) return thin_row<2>(x, y, low, high, width);
    if (stride == 4) return thin_row<4>(x, y, low, high, width);
    for (int64_t j = 0; j < width; j++) y[j] = j >= low && j < high ? x[(j - low) * stride] : 0.0f;
}

// The first of `count` steps from `start` that is not below 0, and the first that is not below `size`.
void inside(int64_t start, int64_t stride, int64_t size, int64_t count, int64_t& low, int64_t& high) {
    low = start < 0 ? (-start + stride - 1) / stride : 0;
    high = start < size ? (size - start + stride - 1) / stride : 0;
    if (low > count) low = count;
    if (high > count) high = count;
    if (high < low) high = low;
}

void split(const void* task, const Frame& frame, int32_t first, int32_t last) {
    const Split& split = *static_cast<const Split*>(task);
    const Place &x = split.x, &y = split.y;
    for (int32_t c = first; c < last; c++) {
        const int32_t phase = c / x.channels, py = phase / split.stride_w, px = phase % split.stride_w;
        const float* from = at<const float>(frame, x.at) + (c % x.channels) * x.plane;
        float* to = at<float>(frame, y.at) + c * y.plane;
        int64_t top, bottom, low, high;
        inside(py - split.top, split.stride_h, x.height, y.height, top, bottom);
        inside(px - split.left, split.stride_w, x.width, y.width, low, high);
        for (int64_t i = 0; i < y.height; i++) {
            const bool any = i >= top && i < bottom && low < high;
            const int64_t row = i * split.stride_h + py - split.top, column = low * split.stride_w + px - split.left;
            thin_row(any ? from + row * x.pitch + column : from, to + i * y.pitch, any ? low : 0, any ? high : 0, y.width,
                     split.stride_w);
        }
    }
}

}  // namespace

Kernel enter_kernel() { return enter; }
Kernel leave_kernel() { return leave; }
Kernel enter_one_kernel() { return enter_one; }
Kernel leave_one_kernel() { return leave_one; }
Kernel copy_kernel() { return copy; }
Kernel split_kernel() { return split; }

}  // namespace synaptree::SYNAPTREE_ISA
