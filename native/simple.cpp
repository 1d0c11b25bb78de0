#include "simple.h"

#include "registers.h"

namespace synaptree::SYNAPTREE_ISA {
namespace {

constexpr float INFINITE = __builtin_inff();

INLINE Register as_floats(Bits bits) {
    Register v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}

INLINE Bits as_bits(Register v) {
    Bits bits;
    std::memcpy(&bits, &v, sizeof bits);
    return bits;
}

// ---- activations and sums

template <int count> INLINE void sum_run(const Sum& task, const float* const* x, float* y, int64_t length) {
    registers_of(length, [&](int64_t i, auto part) {
        Register v = part.read(x[0] + i);
        for (int k = 1; k < (count ? count : task.count); k++) v += part.read(x[k] + i);
        part.write(y + i, clamp(v, task.low, task.high));
    });
}

void sum(const void* given, const Frame& frame, int32_t first, int32_t last) {
    const Sum& task = *static_cast<const Sum*>(given);
    for (int32_t c = first; c < last; c++)
        for (int32_t row = 0; row < task.runs.rows; row++) {
            const float* x[8];
            for (int k = 0; k < task.count; k++)
                x[k] = at<const float>(frame, task.x[k].at) + c * task.x[k].plane + row * task.x[k].pitch;
            float* y = at<float>(frame, task.y.at) + c * task.y.plane + row * task.y.pitch;
            const int64_t length = c + 1 < task.runs.planes ? task.runs.length : task.runs.last;
            if (task.count == 1)
                sum_run<1>(task, x, y, length);
            else if (task.count == 2)
                sum_run<2>(task, x, y, length);
            else
                sum_run<0>(task, x, y, length);
        }
}

// Calls apply(v, scale, shift) on every register of a value.
template <class Apply>
INLINE void scale_runs(const Scaling& task, const Frame& frame, int32_t first, int32_t last, const Apply& apply) {
    for (int32_t c = first; c < last; c++)
        for (int32_t row = 0; row < task.runs.rows; row++) {
            const float* x = at<const float>(frame, task.x.at) + c * task.x.plane + row * task.x.pitch;
            float* y = at<float>(frame, task.y.at) + c * task.y.plane + row * task.y.pitch;
            const int64_t length = c + 1 < task.runs.planes ? task.runs.length : task.runs.last;
            if (task.along) {
                const float *scale = task.scale + c * task.x.plane, *shift = task.shift + c * task.x.plane;
                registers_of(length, [&](int64_t i, auto part) {
                    part.write(y + i, apply(part.read(x + i), part.read(scale + i), part.read(shift + i)));
                });
            } else {
                const Register scale = splat(task.scale[c]), shift = splat(task.shift[c]);
                registers_of(length, [&](int64_t i, auto part) {
                    part.write(y + i, apply(part.read(x + i), scale, shift));
                });
            }
        }
}

void affine(const void* given, const Frame& frame, int32_t first, int32_t last) {
    const Scaling& task = *static_cast<const Scaling*>(given);
    scale_runs(task, frame, first, last, [&](Register v, Register scale, Register shift) {
        return clamp(v * scale + shift, task.low, task.high);
    });
}

void leaky(const void* given, const Frame& frame, int32_t first, int32_t last) {
    const Scaling& task = *static_cast<const Scaling*>(given);
    scale_runs(task, frame, first, last, [](Register v, Register slope, Register) { return v < 0.0f ? v * slope : v; });
}

// ---- pools

struct Largest {
    static constexpr float NEUTRAL = -INFINITE;
    // what is not a number wins, as the larger or as the one that came before
    static INLINE Register both(Register best, Register v) {
        const Register larger = v > best ? v : best;
#if defined(SYNAPTREE_avx512)
        return v == v ? larger : v;
#else
        return as_floats(as_bits(larger) | (v != v));  // all bits set are no number either, and blending is slow here
#endif
    }
    static INLINE float both(float best, float v) { return v > best || v != v ? v : best; }
    static INLINE Register done(Register best, float) { return best; }
};

struct Mean {
    static constexpr float NEUTRAL = 0.0f;
    static INLINE Register both(Register sum, Register v) { return sum + v; }
    static INLINE float both(float sum, float v) { return sum + v; }
    static INLINE Register done(Register sum, float share) { return sum * splat(share); }
};

// One plane of a pool.
struct Plane {
    const Pool& task;
    const float* x;
    float* y;

    const float* window(int32_t row, int32_t column) const {
        return x + task.rows.starts[row] * task.x.pitch + int64_t(task.columns.starts[column]) * task.x.lanes;
    }
    float share(int32_t row, int32_t column) const { return task.rows.shares[row] * task.columns.shares[column]; }
};

// All of a window, its elements of a row `right` apart; `width` is 0 where it is known only at run time.
template <class Kind, int width, class Load>
INLINE Register reduce(const float* p, int32_t rows, int64_t down, int32_t columns, int64_t right, const Load& load) {
    Register v = splat(Kind::NEUTRAL);
    for (; rows > 0; rows--, p += down) {
        if constexpr (width > 0) {
#pragma GCC unroll 4
            for (int j = 0; j < width; j++) v = Kind::both(v, load(p + j * right));
        } else {
            for (int32_t j = 0; j < columns; j++) v = Kind::both(v, load(p + j * right));
        }
    }
    return v;
}

// The usual windows are two or three wide.
template <class Kind, class Load>
INLINE Register reduce(const float* p, int32_t rows, int64_t down, int32_t columns, int64_t right, const Load& load) {
    if (columns == 2) return reduce<Kind, 2>(p, rows, down, columns, right, load);
    if (columns == 3) return reduce<Kind, 3>(p, rows, down, columns, right, load);
    return reduce<Kind, 0>(p, rows, down, columns, right, load);
}

template <class Kind> INLINE void pool_lanes(const Plane& plane, int32_t row, int32_t column) {
    const Pool& task = plane.task;
    const float* window = plane.window(row, column);
    const int64_t down = task.rows.dilation * task.x.pitch, right = int64_t(task.columns.dilation) * task.x.lanes;
    const float share = plane.share(row, column);
    float* y = plane.y + row * task.y.pitch + int64_t(column) * task.y.lanes;
    for (int32_t lane = 0; lane < task.x.lanes; lane += WIDTH) {
        const Register v = reduce<Kind>(window + lane, task.rows.counts[row], down, task.columns.counts[column], right,
                                   [](const float* p) { return load(p); });
        store(y + lane, clamp(Kind::done(v, share), task.low, task.high));
    }
}

template <class Kind> INLINE float across(Register v) {
    float all[WIDTH];
    store(all, v);
    for (int half = WIDTH / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) all[i] = Kind::both(all[i], all[i + half]);
    return all[0];
}

// One output of one sample: registers along the rows of its window where they are long.
template <class Kind> INLINE void pool_one(const Plane& plane, int32_t row, int32_t column) {
    const Pool& task = plane.task;
    const float* p = plane.window(row, column);
    const int64_t down = task.rows.dilation * task.x.pitch, right = task.columns.dilation;
    const int32_t height = task.rows.counts[row], width = task.columns.counts[column];
    float found = Kind::NEUTRAL;
    if (width > 4 && right == 1) {
        Register v = splat(Kind::NEUTRAL);
        for (int32_t i = 0; i < height; i++, p += down)
            registers_of(width, [&](int64_t j, auto part) { v = Kind::both(v, part.read(p + j, Kind::NEUTRAL)); });
        found = across<Kind>(v);
    } else {
        for (int32_t i = 0; i < height; i++, p += down)
            for (int32_t j = 0; j < width; j++) found = Kind::both(found, p[j * right]);
    }
    const Register done = Kind::done(splat(found), plane.share(row, column));
    store_first(plane.y + row * task.y.pitch + column, clamp(done, task.low, task.high), 1);
}

// Sixteen outputs of one sample at a time, where their windows are alike; returns the first column that is left.
template <class Kind, int stride> INLINE void pool_alike(const Plane& plane, int32_t row) {
    const Pool& task = plane.task;
    const Windows& columns = task.columns;
    const int64_t down = task.rows.dilation * task.x.pitch;
    const float* window = plane.window(row, columns.first);
    const float share = plane.share(row, columns.first);
    float* y = plane.y + row * task.y.pitch + columns.first;
    registers_of(columns.last - columns.first, [&](int64_t o, auto part) {
        const Register v = reduce<Kind>(window + o * stride, task.rows.counts[row], down, columns.count,
                                        columns.dilation, [](const float* p) { return load_every<stride>(p); });
        part.write(y + o, clamp(Kind::done(v, share), task.low, task.high));
    });
}

template <class Kind> INLINE void pool_row(const Plane& plane, int32_t row) {
    const Windows& columns = plane.task.columns;
    for (int32_t column = 0; column < columns.first; column++) pool_one<Kind>(plane, row, column);
    for (int32_t column = columns.last; column < plane.task.y.width; column++) pool_one<Kind>(plane, row, column);
    if (columns.first == columns.last) return;
    if (columns.stride == 1) pool_alike<Kind, 1>(plane, row);
    if (columns.stride == 2) pool_alike<Kind, 2>(plane, row);
    if (columns.stride == 4) pool_alike<Kind, 4>(plane, row);
}

template <class Kind> void pool(const void* given, const Frame& frame, int32_t first, int32_t last) {
    const Pool& task = *static_cast<const Pool*>(given);
    for (int32_t c = first; c < last; c++) {
        const Plane plane{task, at<const float>(frame, task.x.at) + c * task.x.plane,
                          at<float>(frame, task.y.at) + c * task.y.plane};
        for (int32_t row = 0; row < task.y.height; row++) {
            if (task.x.lanes == 1) {
                pool_row<Kind>(plane, row);
                continue;
            }
            for (int32_t column = 0; column < task.y.width; column++) pool_lanes<Kind>(plane, row, column);
        }
    }
}

// ---- softmax

// e to the x for x <= 0, as 2^n e^r with n whole and |r| <= log(2) / 2. The power is applied in two halves, since
// that of a denormal result has no float.
INLINE Register exponential(Register x) {
    x = x < -105.0f ? splat(-105.0f) : x;
    const Register round = splat(12582912.0f);  // 1.5 2^23: from here on floats are whole numbers
    const Register shifted = x * 1.44269504f + round, n = shifted - round;
    const Bits whole = as_bits(shifted) - as_bits(round), half = whole >> 1, rest = whole - half;
    Register r = x - n * 0.693359375f;  // log(2) in two parts, the first short enough for an exact product
    r = r - n * -2.12194440e-4f;
    Register p = r * 1.9841270e-4f + 1.3888889e-3f;  // the Taylor series to the seventh power
    p = p * r + 8.3333333e-3f;
    p = p * r + 4.1666667e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    return p * as_floats((half + 127) << 23) * as_floats((rest + 127) << 23);
}

// The logarithm of s >= 1, as n log(2) + log(m) with m between sqrt(1/2) and sqrt(2).
INLINE Register logarithm(Register s) {
    const Bits above = as_bits(s) - 0x3f3504f3;  // that of sqrt(1/2)
    const Bits n = above >> 23;
    const Register m = as_floats((above & 0x007fffff) + 0x3f3504f3), t = (m - 1.0f) / (m + 1.0f), q = t * t;
    Register p = q * 0.22222222f + 0.28571429f;  // log(m) = 2 artanh(t)
    p = p * q + 0.4f;
    p = p * q + 0.66666667f;
    p = p * q * t + 2.0f * t;
    const Register count = __builtin_convertvector(n, Register);
    const Register found = count * 0.693359375f + (count * -2.12194440e-4f + p);
    return s == s ? found : s;
}

// One register of pixels: their channels lie `plane` apart.
template <class Part> INLINE void softmax_pixels(const Softmax& task, const float* x, float* y, Part part) {
    Register most = part.read(x), sum{};
    for (int32_t c = 1; c < task.x.channels; c++) {
        const Register v = part.read(x + c * task.x.plane);
        most = v > most ? v : most;
    }
    for (int32_t c = 0; c < task.x.channels; c++) {
        const Register less = part.read(x + c * task.x.plane) - most, power = exponential(less);
        sum += power;
        part.write(y + c * task.y.plane, task.log ? less : power);
    }
    const Register factor = 1.0f / sum, logs = logarithm(sum);
    for (int32_t c = 0; c < task.x.channels; c++) {
        float* p = y + c * task.y.plane;
        const Register v = part.read(p);
        part.write(p, task.log ? v - logs : v * factor);
    }
}

void softmax(const void* given, const Frame& frame, int32_t first, int32_t last) {
    const Softmax& task = *static_cast<const Softmax*>(given);
    for (int32_t row = first; row < last; row++) {
        const float* x = at<const float>(frame, task.x.at) + row * task.x.pitch;
        float* y = at<float>(frame, task.y.at) + row * task.y.pitch;
        registers_of(int64_t(task.x.width) * task.x.lanes, [&](int64_t i, auto part) {
            softmax_pixels(task, x + i, y + i, part);
        });
    }
}

void softmax_along(const void* given, const Frame& frame, int32_t, int32_t) {
    const Softmax& task = *static_cast<const Softmax*>(given);
    const float* x = at<const float>(frame, task.x.at);
    float* y = at<float>(frame, task.y.at);
    Register most = splat(-INFINITE), sum{};
    registers_of(task.x.channels, [&](int64_t i, auto part) {
        most = Largest::both(most, part.read(x + i, -INFINITE));
    });
    most = splat(across<Largest>(most));
    registers_of(task.x.channels, [&](int64_t i, auto part) {
        const Register less = part.read(x + i, -INFINITE) - most, power = exponential(less);
        sum += power;
        part.write(y + i, task.log ? less : power);
    });
    sum = splat(across<Mean>(sum));
    const Register factor = 1.0f / sum, logs = logarithm(sum);
    registers_of(task.x.channels, [&](int64_t i, auto part) {
        const Register v = part.read(y + i);
        part.write(y + i, task.log ? v - logs : v * factor);
    });
}

// ---- shortcut

// Calls put(i, part, v) for every register of an output row, v being every stride-th pixel of a row of x.
template <class Put>
INLINE void every_pixel(const Shortcut& task, const float* x, const Put& put) {
    const int64_t length = int64_t(task.y.width) * task.y.lanes, lanes = task.y.lanes;
    if (task.stride == 1)
        registers_of(length, [&](int64_t i, auto part) { put(i, part, part.read(x + i)); });
    else if (lanes > 1)
        for (int64_t i = 0; i < length; i += WIDTH)
            put(i, Whole{}, load(x + (i / lanes) * task.stride * lanes + i % lanes));
    else if (task.stride == 2)
        registers_of(length, [&](int64_t i, auto part) { put(i, part, load_every<2>(x + 2 * i)); });
    else
        for (int64_t i = 0; i < length; i++) put(i, First{1}, splat(x[i * task.stride]));
}

void shortcut(const void* given, const Frame& frame, int32_t first, int32_t last) {
    const Shortcut& task = *static_cast<const Shortcut*>(given);
    const Place &x = task.x, &y = task.y, &z = task.z;
    for (int32_t c = first; c < last; c++) {
        const int32_t source = c - task.offset;
        const bool inside = source >= 0 && source < x.channels;
        const Register scale = splat(task.scale[c]);
        for (int32_t row = 0; row < y.height; row++) {
            const float* from = at<const float>(frame, x.at) + source * x.plane + int64_t(row) * task.stride * x.pitch;
            const float* plus = at<const float>(frame, z.at) + c * z.plane + row * z.pitch;
            float* to = at<float>(frame, y.at) + c * y.plane + row * y.pitch;
            const auto put = [&](int64_t i, auto part, Register v) {
                if (task.sum) v += part.read(plus + i);
                part.write(to + i, clamp(v, task.low, task.high));
            };
            if (inside)
                every_pixel(task, from, [&](int64_t i, auto part, Register v) { put(i, part, v * scale); });
            else
                registers_of(int64_t(y.width) * y.lanes, [&](int64_t i, auto part) { put(i, part, Register{}); });
        }
    }
}

}  // namespace

Kernel sum_kernel() { return sum; }
Kernel affine_kernel() { return affine; }
Kernel leaky_kernel() { return leaky; }
Kernel max_pool_kernel() { return pool<Largest>; }
Kernel avg_pool_kernel() { return pool<Mean>; }
Kernel softmax_kernel() { return softmax; }
Kernel softmax_along_kernel() { return softmax_along; }
Kernel shortcut_kernel() { return shortcut; }

}  // namespace synaptree::SYNAPTREE_ISA
