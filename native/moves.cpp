#include "moves.h"

#include "registers.h"

namespace synaptree::SYNAPTREE_ISA {
namespace {

constexpr int LANES = 16;  // samples and features of a block, a cache line of each

alignas(64) const float ZEROS[LANES] = {};

#if defined(SYNAPTREE_avx512)

// Four floats of each of four rows, one row to a quarter of the register: quarters straight from memory leave the one
// port that shuffles with half of the work.
INLINE __m512 quarters(const float* const* rows, int i, int column) {
    __m512 v = _mm512_maskz_broadcast_f32x4(0xffff, _mm_loadu_ps(rows[i] + column));
    v = _mm512_mask_broadcast_f32x4(v, 0x00f0, _mm_loadu_ps(rows[i + 4] + column));
    v = _mm512_mask_broadcast_f32x4(v, 0x0f00, _mm_loadu_ps(rows[i + 8] + column));
    return _mm512_mask_broadcast_f32x4(v, 0xf000, _mm_loadu_ps(rows[i + 12] + column));
}

// The lower, or upper, halves of each quarter of two registers, floats or pairs of floats in turn.
INLINE __m512 low(__m512 a, __m512 b) { return _mm512_maskz_unpacklo_ps(0xffff, a, b); }
INLINE __m512 high(__m512 a, __m512 b) { return _mm512_maskz_unpackhi_ps(0xffff, a, b); }
INLINE Register low_pairs(__m512 a, __m512 b) {
    return (Register)_mm512_maskz_unpacklo_pd(0xff, _mm512_castps_pd(a), _mm512_castps_pd(b));
}
INLINE Register high_pairs(__m512 a, __m512 b) {
    return (Register)_mm512_maskz_unpackhi_pd(0xff, _mm512_castps_pd(a), _mm512_castps_pd(b));
}

// Calls put(j, column) with column[i] = rows[i][j] for all j below 16.
template <class Put> INLINE void transpose(const float* const* rows, const Put& put) {
#pragma GCC unroll 4
    for (int j = 0; j < LANES; j += 4) {
        const __m512 a = quarters(rows, 0, j), b = quarters(rows, 1, j);
        const __m512 c = quarters(rows, 2, j), d = quarters(rows, 3, j);
        put(j, low_pairs(low(a, b), low(c, d)));
        put(j + 1, high_pairs(low(a, b), low(c, d)));
        put(j + 2, low_pairs(high(a, b), high(c, d)));
        put(j + 3, high_pairs(high(a, b), high(c, d)));
    }
}

#else

typedef float Four __attribute__((vector_size(16)));

struct Column {
    Four parts[4];
};

INLINE void store(float* p, const Column& column) { std::memcpy(p, column.parts, sizeof column.parts); }

INLINE void store_first(float* p, const Column& column, int64_t n) {
    float all[LANES];
    store(all, column);
    registers_of(n, [&](int64_t i, auto part) { part.write(p + i, part.read(all + i)); });
}

INLINE Four four(const float* p) {
    Four v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// Calls put(j, column) with column[i] = rows[i][j] for all j below 16.
template <class Put> INLINE void transpose(const float* const* rows, const Put& put) {
    for (int j = 0; j < LANES; j += 4) {
        Column columns[4];
        for (int i = 0; i < 4; i++) {
            const Four a = four(rows[4 * i] + j), b = four(rows[4 * i + 1] + j), c = four(rows[4 * i + 2] + j),
                       d = four(rows[4 * i + 3] + j);
            const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
            const Four AB = __builtin_shufflevector(a, b, 2, 6, 3, 7), CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
            columns[0].parts[i] = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
            columns[1].parts[i] = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
            columns[2].parts[i] = __builtin_shufflevector(AB, CD, 0, 1, 4, 5);
            columns[3].parts[i] = __builtin_shufflevector(AB, CD, 2, 3, 6, 7);
        }
        for (int i = 0; i < 4; i++) put(j + i, columns[i]);
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

    // Where the next n elements lie.
    INLINE void next(int64_t n, int64_t* pixels) {
        if (column + LANES < place.width) {
            for (int i = 0; i < LANES; i++) pixels[i] = pixel + int64_t(i) * place.lanes;
            column += int32_t(n);
            pixel += n * place.lanes;
            return;
        }
        for (int64_t i = 0; i < n; i++) {
            pixels[i] = pixel;
            step();
        }
    }

    INLINE void step() {
        pixel += place.lanes;
        if (++column < place.width) return;
        column = 0;
        pixel += place.pitch - int64_t(place.width) * place.lanes;
        if (++row < place.height) return;
        row = 0;
        pixel += place.plane - place.height * place.pitch;
    }
};

// Calls block(feature, n, pixels) for every sixteen features of chunks [first, last), `pixels` being where they lie.
// Blocks begin where the caller's array reaches a new cache line: where samples lie a power of two apart a line has
// left the cache before it is asked for again.
template <class Block>
INLINE void blocks_of(const Place& place, const float* array, int32_t first, int32_t last,
                                                     const Block& block) {
    const int64_t features = int64_t(place.channels) * place.height * place.width;
    const int64_t back = int64_t(reinterpret_cast<uintptr_t>(array) / sizeof(float) % LANES);
    const int64_t begin = first * FEATURES - back, end = last * FEATURES - back;
    Walk walk(place, begin > 0 ? begin : 0);
    for (int64_t f = begin; f < end && f < features; f += LANES) {
        const int64_t from = f > 0 ? f : 0, to = f + LANES < features ? f + LANES : features;
        if (from == to) continue;
        int64_t pixels[LANES];
        walk.next(to - from, pixels);
        block(from, to - from, pixels);
    }
}

void enter(const void* task, const Frame& frame, int32_t first, int32_t last) {
    const Place& place = static_cast<const Move*>(task)->place;
    const int64_t features = int64_t(place.channels) * place.height * place.width;
    for (int32_t lane = 0; lane < place.lanes; lane += LANES) {
        float* to = at<float>(frame, place.at) + lane;
        const float* samples[LANES];
        int64_t present[LANES];  // features are counted in those only
        for (int i = 0; i < LANES; i++) {
            present[i] = lane + i < frame.samples ? -1 : 0;
            samples[i] = present[i] ? frame.x + (lane + i) * features : ZEROS;
        }
        blocks_of(place, frame.x, first, last, [&](int64_t feature, int64_t n, const int64_t* pixels) {
            const float* rows[LANES];
            for (int i = 0; i < LANES; i++) rows[i] = samples[i] + (feature & present[i]);
            if (n == LANES) {
                transpose(rows, [&](int j, const auto& v) { store(to + pixels[j], v); });
                return;
            }
            float copies[LANES][LANES];
            for (int i = 0; i < LANES; i++) {
                registers_of(n, [&](int64_t j, auto part) { part.write(copies[i] + j, part.read(rows[i] + j)); });
                rows[i] = copies[i];
            }
            transpose(rows, [&](int j, const auto& v) {
                if (j < n) store(to + pixels[j], v);
            });
        });
    }
}

void leave(const void* task, const Frame& frame, int32_t first, int32_t last) {
    const Place& place = static_cast<const Move*>(task)->place;
    const int64_t features = int64_t(place.channels) * place.height * place.width;
    const int64_t samples = frame.samples < place.lanes ? frame.samples : place.lanes;
    for (int32_t lane = 0; lane < samples; lane += LANES) {
        const float* from = at<const float>(frame, place.at) + lane;
        float* sample = frame.y + lane * features;
        blocks_of(place, frame.y, first, last, [&](int64_t feature, int64_t n, const int64_t* pixels) {
            const float* rows[LANES];
            for (int i = 0; i < LANES; i++) rows[i] = i < n ? from + pixels[i] : ZEROS;
            float* to = sample + feature;
            if (n == LANES && lane + LANES <= samples) {
                transpose(rows, [&](int j, const auto& v) { store(to + j * features, v); });
                return;
            }
            transpose(rows, [&](int j, const auto& v) {
                if (lane + j >= samples) return;
                if (n == LANES)
                    store(to + j * features, v);
                else
                    store_first(to + j * features, v, n);
            });
        });
    }
}

INLINE void copy_runs(const Copy& task, const float* x, float* y, int32_t first, int32_t last) {
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

// Steps [low, high) of `count` from `start` on are neither below 0 nor beyond `size`.
struct Inside {
    int64_t low, high;
    Inside(int64_t start, int64_t stride, int64_t size, int64_t count) {
        low = start < 0 ? (-start + stride - 1) / stride : 0;
        high = start < size ? (size - start + stride - 1) / stride : 0;
        if (high > count) high = count;
        if (low > high) low = high;
    }
};

INLINE void clear(float* y, int64_t length) {
    registers_of(length, [&](int64_t j, auto part) { part.write(y + j, Register{}); });
}

// Every stride-th float of x goes to columns [low, high) of a row; `stride` is 0 where it is known only at run time.
template <int stride>
INLINE void thin_row(const float* x, float* y, const Inside& columns, int64_t width, int64_t given) {
    const int64_t length = columns.high - columns.low;
    if (width <= WIDTH) {
        First{width}.write(y, Register{});
    } else {
        clear(y, columns.low);
        clear(y + columns.high, width - columns.high);
    }
    if constexpr (stride > 0) {
        float* to = y + columns.low;
        const auto put = [&](int64_t j, auto part) { part.write(to + j, load_every<stride>(x + j * stride)); };
        if (length <= WIDTH)
            put(0, First{length});
        else
            registers_of(length, put);
    } else {
        for (int64_t j = 0; j < length; j++) y[columns.low + j] = x[j * given];
    }
}

template <int stride> void split_plane(const Split& split, const float* x, float* y, int32_t py, int32_t px) {
    const int64_t top = py - split.top, left = px - split.left;
    const Inside rows(top, split.stride_h, split.x.height, split.y.height);
    const Inside columns(left, split.stride_w, split.x.width, split.y.width);
    for (int64_t i = 0; i < split.y.height; i++, y += split.y.pitch) {
        if (i < rows.low || i >= rows.high || columns.low == columns.high) {
            clear(y, split.y.width);
            continue;
        }
        const float* from = x + (i * split.stride_h + top) * split.x.pitch + columns.low * split.stride_w + left;
        thin_row<stride>(from, y, columns, split.y.width, split.stride_w);
    }
}

void split(const void* task, const Frame& frame, int32_t first, int32_t last) {
    const Split& split = *static_cast<const Split*>(task);
    for (int32_t c = first; c < last; c++) {
        const int32_t phase = c / split.x.channels, py = phase / split.stride_w, px = phase % split.stride_w;
        const float* x = at<const float>(frame, split.x.at) + (c % split.x.channels) * split.x.plane;
        float* y = at<float>(frame, split.y.at) + c * split.y.plane;
        if (split.stride_w == 1)
            split_plane<1>(split, x, y, py, px);
        else if (split.stride_w == 2)
            split_plane<2>(split, x, y, py, px);
        else if (split.stride_w == 4)
            split_plane<4>(split, x, y, py, px);
        else
            split_plane<0>(split, x, y, py, px);
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
