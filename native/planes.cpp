#include "planes.h"

#include "simd.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 64")

namespace synaptree::SYNAPTREE_ISA {
namespace {

// One register as the machine has it, and how many sums may stay in registers beside nine weights and a pixel.
#if defined(SYNAPTREE_avx512)
constexpr int WIDTH = 16, SUMS = 16;
#elif defined(SYNAPTREE_avx2)
constexpr int WIDTH = 8, SUMS = 8;
#elif defined(__aarch64__)
constexpr int WIDTH = 4, SUMS = 16;
#else
constexpr int WIDTH = 4, SUMS = 8;
#endif
typedef float Reg __attribute__((vector_size(4 * WIDTH)));

// Without it the compiler loads the same value again for each use.
#if defined(SYNAPTREE_avx512)
#define STAY(value) asm("" : "+v"(value))
#else
#define STAY(value) (void)0
#endif

template <class V> INLINE V get(const float* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class V> INLINE void put(float* p, V v) { std::memcpy(p, &v, sizeof v); }

template <class V> INLINE V all(float value) { return value - V{}; }

template <class V> INLINE V within(V v, float low, float high) {
    const V least = all<V>(low), most = all<V>(high);
    v = v < least ? least : v;
    return v > most ? most : v;
}

template <class V> struct Nine {
    V at[9];
};

template <class V> INLINE Nine<V> weights(const float* from) {
    Nine<V> w;
    UNROLL for (int i = 0; i < 9; i++) {
        V weight = all<V>(from[i]);
        STAY(weight);
        w.at[i] = weight;
    }
    return w;
}

// Where a tile of `length` starts; the last one ends with the image and may overlap the one before it.
INLINE int32_t tile_start(int32_t index, int32_t length, int32_t image) {
    const int32_t start = index * length, last = image - length;
    return start < last ? start : last;
}

INLINE int32_t tiles(int32_t image, int32_t length) { return (image + length - 1) / length; }

INLINE const float* residual_of(const Planes& task, const Frame& frame) {
    return task.residual.channels ? at<const float>(frame, task.residual.at) : nullptr;
}

// Floats from an element (0, 0, 0, lane 0) to another one.
INLINE int64_t offset(const Place& place, int32_t row, int32_t column) {
    return row * place.pitch + int64_t(column) * place.lanes;
}

// ---- tiles: a register holds one pixel of WIDTH samples ----

enum Edge { TOP = 1, BOTTOM = 2, LEFT = 4, RIGHT = 8 };

// ROWS x COLUMNS pixels of VECTORS registers each; FLIGHT kernels at once where a tile has too few sums to keep the
// multipliers busy. EDGES of the tile that are edges of the image: products with the border beyond are left out.
template <int ROWS, int COLUMNS, int VECTORS, int FLIGHT, int EDGES> struct Tile {
    struct Sums {
        Reg at[ROWS][COLUMNS][VECTORS];
    };

    template <class Do> INLINE void each(Do what) {
        UNROLL for (int row = 0; row < ROWS; row++)
            UNROLL for (int column = 0; column < COLUMNS; column++)
                UNROLL for (int v = 0; v < VECTORS; v++) what(row, column, v);
    }

    // Every pixel is loaded once and used for all its taps.
    INLINE void add(Sums& sums, const float* x, const Place& place, const float* weight) {
        constexpr int TOP_ROW = EDGES & TOP ? 0 : -1, END_ROW = EDGES & BOTTOM ? ROWS : ROWS + 1;
        constexpr int LEFT_COLUMN = EDGES & LEFT ? 0 : -1, END_COLUMN = EDGES & RIGHT ? COLUMNS : COLUMNS + 1;
        const Nine<Reg> w = weights<Reg>(weight);
        UNROLL for (int column = LEFT_COLUMN; column < END_COLUMN; column++)
            UNROLL for (int row = TOP_ROW; row < END_ROW; row++)
                UNROLL for (int v = 0; v < VECTORS; v++) {
                    Reg pixel = get<Reg>(x + offset(place, row, column) + v * WIDTH);
                    STAY(pixel);
                    UNROLL for (int tap = 0; tap < 9; tap++) {
                        const int r = row + 1 - tap / 3, c = column + 1 - tap % 3;
                        if (r >= 0 && r < ROWS && c >= 0 && c < COLUMNS) sums.at[r][c][v] += w.at[tap] * pixel;
                    }
                }
    }

    INLINE void add_list(const Planes& task, Sums& sums, const float* x, int32_t first, int32_t last) {
        int32_t j = first;
        if constexpr (FLIGHT > 1) {
            Sums more[FLIGHT] = {};
            for (; j + FLIGHT <= last; j += FLIGHT)
                UNROLL for (int f = 0; f < FLIGHT; f++)
                    add(more[f], x + task.source[j + f] * task.x.plane, task.x, task.weight + 9 * int64_t(j + f));
            UNROLL for (int f = 0; f < FLIGHT; f++)
                each([&](int row, int column, int v) { sums.at[row][column][v] += more[f].at[row][column][v]; });
        }
        for (; j < last; j++) add(sums, x + task.source[j] * task.x.plane, task.x, task.weight + 9 * int64_t(j));
    }

    static void run(const Planes& task, const float* x, float* y, const float* residual, int32_t first, int32_t last) {
        for (int32_t part = 0; part < task.parts; part++) {
            const int32_t* start = task.start + int64_t(part) * (task.y.channels + 1);
            const bool begins = part == 0, ends = part + 1 == task.parts;
            for (int32_t o = first; o < last; o++) {
                if (!begins && !ends && start[o] == start[o + 1]) continue;
                float* out = y + o * task.y.plane;
                Sums sums;
                if (begins) each([&](int row, int column, int v) { sums.at[row][column][v] = all<Reg>(task.bias[o]); });
                else each([&](int row, int column, int v) {
                    sums.at[row][column][v] = get<Reg>(out + offset(task.y, row, column) + v * WIDTH);
                });
                add_list(task, sums, x, start[o], start[o + 1]);
                if (ends) finish(task, sums, residual ? residual + o * task.residual.plane : nullptr);
                each([&](int row, int column, int v) {
                    put(out + offset(task.y, row, column) + v * WIDTH, sums.at[row][column][v]);
                });
            }
        }
    }

    INLINE void finish(const Planes& task, Sums& sums, const float* residual) {
        if (residual) each([&](int row, int column, int v) {
            sums.at[row][column][v] += get<Reg>(residual + offset(task.residual, row, column) + v * WIDTH);
        });
        each([&](int row, int column, int v) {
            sums.at[row][column][v] = within(sums.at[row][column][v], task.low, task.high);
        });
    }
};

using TileRun = void (*)(const Planes&, const float*, float*, const float*, int32_t, int32_t);

// Chunks: blocks of samples x rows of tiles x tiles in a row x ranges of outputs.
template <int ROWS, int COLUMNS, int VECTORS, int FLIGHT>
void tile_chunks(const void* what, const Frame& frame, int32_t begin, int32_t end) {
    const Planes& task = *static_cast<const Planes*>(what);
#define EDGE(edges) Tile<ROWS, COLUMNS, VECTORS, FLIGHT, edges>::run
#if defined(SYNAPTREE_avx512)
    static constexpr TileRun RUN[16] = {EDGE(0), EDGE(1), EDGE(2),  EDGE(3),  EDGE(4),  EDGE(5),  EDGE(6),  EDGE(7),
                                        EDGE(8), EDGE(9), EDGE(10), EDGE(11), EDGE(12), EDGE(13), EDGE(14), EDGE(15)};
#else  // elsewhere a tile at some edge reads the border's zeros: sixteen versions take minutes to compile
    static constexpr TileRun WITHIN = EDGE(0);
    static constexpr TileRun RUN[16] = {WITHIN, WITHIN, WITHIN, WITHIN, WITHIN, WITHIN, WITHIN, WITHIN,
                                        WITHIN, WITHIN, WITHIN, WITHIN, WITHIN, WITHIN, WITHIN, EDGE(15)};
#endif
#undef EDGE
    const int32_t height = task.y.height, width = task.y.width;
    const int32_t down = tiles(height, ROWS), across = tiles(width, COLUMNS);
    const float* residual = residual_of(task, frame);
    for (int32_t chunk = begin; chunk < end; chunk++) {
        const int32_t range = chunk % task.ranges, tile = chunk / task.ranges % (down * across);
        const int32_t lane = chunk / task.ranges / (down * across) * VECTORS * WIDTH;
        const int32_t row = tile_start(tile / across, ROWS, height), column = tile_start(tile % across, COLUMNS, width);
        const int edges = (row == 0 ? TOP : 0) | (row + ROWS == height ? BOTTOM : 0) | (column == 0 ? LEFT : 0) |
                          (column + COLUMNS == width ? RIGHT : 0);
        RUN[edges](task, at<const float>(frame, task.x.at) + offset(task.x, row, column) + lane,
                   at<float>(frame, task.y.at) + offset(task.y, row, column) + lane,
                   residual ? residual + offset(task.residual, row, column) + lane : nullptr,
                   task.first_output(range), task.first_output(range + 1));
    }
}

// As many registers a pixel as the sums allow, and kernels in flight where these are still too few.
template <int ROWS, int COLUMNS> TileKernel tile_of(int32_t lanes) {
    constexpr int MOST = SUMS / (ROWS * COLUMNS);
    if constexpr (MOST >= 4)
        if (lanes % (4 * WIDTH) == 0) return {tile_chunks<ROWS, COLUMNS, 4, MOST >= 8 ? 2 : 1>, 4 * WIDTH};
    if constexpr (MOST >= 2)
        if (lanes % (2 * WIDTH) == 0) return {tile_chunks<ROWS, COLUMNS, 2, MOST >= 8 ? 4 : 1>, 2 * WIDTH};
    return {tile_chunks<ROWS, COLUMNS, 1, MOST >= 8 ? 8 : MOST >= 4 ? 2 : 1>, WIDTH};
}

// ---- runs: a register holds 16 pixels of a row of the only sample ----

template <int ROWS> struct Run {
    static constexpr int FLIGHT = ROWS >= 8 ? 1 : 8 / ROWS;

    // The border to the left of a row and the one to its right are in memory, so shifted rows are loads. One shift
    // after the other: were it row after row, a sum's nine products would follow one another too closely.
    INLINE void add(Vec (&sum)[ROWS], const float* x, int64_t pitch, const float* weight) {
        const Nine<Vec> w = weights<Vec>(weight);
        UNROLL for (int shift = 0; shift < 3; shift++)
            UNROLL for (int row = -1; row <= ROWS; row++) {
                Vec pixels = load(x + row * pitch + shift - 1);
                STAY(pixels);
                UNROLL for (int down = 0; down < 3; down++) {
                    const int r = row + 1 - down;
                    if (r >= 0 && r < ROWS) sum[r] += w.at[3 * down + shift] * pixels;
                }
            }
    }

    INLINE void add_list(const Planes& task, Vec (&sum)[ROWS], const float* x, int32_t first, int32_t last) {
        int32_t j = first;
        if constexpr (FLIGHT > 1) {
            Vec more[FLIGHT][ROWS] = {};
            for (; j + FLIGHT <= last; j += FLIGHT)
                UNROLL for (int f = 0; f < FLIGHT; f++)
                    add(more[f], x + task.source[j + f] * task.x.plane, task.x.pitch, task.weight + 9 * int64_t(j + f));
            UNROLL for (int f = 0; f < FLIGHT; f++)
                UNROLL for (int row = 0; row < ROWS; row++) sum[row] += more[f][row];
        }
        for (; j < last; j++) add(sum, x + task.source[j] * task.x.plane, task.x.pitch, task.weight + 9 * int64_t(j));
    }

    // A row of fewer than 16 pixels must leave the border behind it as it is.
    INLINE void put_row(float* to, Vec v, int32_t width) {
        if (width >= LANES) return store(to, v);
        for (int32_t i = 0; i < width; i++) to[i] = v[i];
    }

    static void run(const Planes& task, const float* x, float* y, const float* residual, int32_t first, int32_t last) {
        for (int32_t part = 0; part < task.parts; part++) {
            const int32_t* start = task.start + int64_t(part) * (task.y.channels + 1);
            const bool begins = part == 0, ends = part + 1 == task.parts;
            for (int32_t o = first; o < last; o++) {
                if (!begins && !ends && start[o] == start[o + 1]) continue;
                float* out = y + o * task.y.plane;
                Vec sum[ROWS];
                UNROLL for (int row = 0; row < ROWS; row++)
                    sum[row] = begins ? all<Vec>(task.bias[o]) : load(out + row * task.y.pitch);
                add_list(task, sum, x, start[o], start[o + 1]);
                if (ends && residual)
                    UNROLL for (int row = 0; row < ROWS; row++)
                        sum[row] += load(residual + o * task.residual.plane + row * task.residual.pitch);
                if (ends)
                    UNROLL for (int row = 0; row < ROWS; row++) sum[row] = within(sum[row], task.low, task.high);
                UNROLL for (int row = 0; row < ROWS; row++) put_row(out + row * task.y.pitch, sum[row], task.y.width);
            }
        }
    }
};

// Chunks: rows of tiles x tiles in a row x ranges of outputs.
template <int ROWS> void run_chunks(const void* what, const Frame& frame, int32_t begin, int32_t end) {
    const Planes& task = *static_cast<const Planes*>(what);
    const int32_t across = tiles(task.y.width, LANES);
    const float* residual = residual_of(task, frame);
    for (int32_t chunk = begin; chunk < end; chunk++) {
        const int32_t range = chunk % task.ranges, tile = chunk / task.ranges;
        const int32_t row = tile_start(tile / across, ROWS, task.y.height);
        const int32_t column = task.y.width < LANES ? 0 : tile_start(tile % across, LANES, task.y.width);
        Run<ROWS>::run(task, at<const float>(frame, task.x.at) + offset(task.x, row, column),
                       at<float>(frame, task.y.at) + offset(task.y, row, column),
                       residual ? residual + offset(task.residual, row, column) : nullptr, task.first_output(range),
                       task.first_output(range + 1));
    }
}

// ---- held: all nine shifts of an input plane stay in registers while every kernel that reads it is used ----

#define LANE_BY_LANE(from)                                                                                           \
    from(0), from(1), from(2), from(3), from(4), from(5), from(6), from(7), from(8), from(9), from(10), from(11), \
        from(12), from(13), from(14), from(15)

// Which element of a register comes to `lane` when its rows of SIDE pixels move; 16 means a zero.
constexpr int shifted_from(int side, int lane, int down, int right) {
    const int row = lane / side + down, column = lane % side + right;
    return row >= 0 && row < LANES / side && column >= 0 && column < side ? row * side + column : LANES;
}

template <int SIDE, int DOWN, int RIGHTWARD> INLINE Vec shifted(Vec v) {
#define FROM(lane) shifted_from(SIDE, lane, DOWN, RIGHTWARD)
    return __builtin_shufflevector(v, Vec{}, LANE_BY_LANE(FROM));
#undef FROM
}

// The last eight elements of one register and the first eight of the next.
INLINE Vec between(Vec v, Vec next) {
#define FROM(lane) (lane + 8)
    return __builtin_shufflevector(v, next, LANE_BY_LANE(FROM));
#undef FROM
}

template <int SIDE> struct Shifts;

template <> struct Shifts<4> {  // a register is a plane of 4 x 4
    static constexpr int VECTORS = 1;
    Vec tap[9];

    INLINE Shifts of(const Vec (&plane)[1]) {
        const Vec v = plane[0];
        return {{shifted<4, -1, -1>(v), shifted<4, -1, 0>(v), shifted<4, -1, 1>(v), shifted<4, 0, -1>(v), v,
                 shifted<4, 0, 1>(v), shifted<4, 1, -1>(v), shifted<4, 1, 0>(v), shifted<4, 1, 1>(v)}};
    }

    __attribute__((always_inline)) void add(Vec (&sum)[1], const float* w) const {
        UNROLL for (int t = 0; t < 9; t++) sum[0] += all<Vec>(w[t]) * tap[t];
    }
};

// Four registers of two rows are a plane of 8 x 8; one row up or down is half a register.
template <> struct Shifts<8> {
    static constexpr int VECTORS = 4;
    Vec even[3][4], odd[3][5];

    INLINE Shifts of(const Vec (&plane)[4]) {
        Shifts s;
        UNROLL for (int i = 0; i < 4; i++) {
            s.even[0][i] = shifted<8, 0, -1>(plane[i]);
            s.even[1][i] = plane[i];
            s.even[2][i] = shifted<8, 0, 1>(plane[i]);
        }
        UNROLL for (int right = 0; right < 3; right++)
            UNROLL for (int i = 0; i < 5; i++)
                s.odd[right][i] = between(i ? s.even[right][i - 1] : Vec{}, i < 4 ? s.even[right][i] : Vec{});
        return s;
    }

    __attribute__((always_inline)) void add(Vec (&sum)[4], const float* w) const {
        UNROLL for (int tap = 0; tap < 9; tap++) {
            Vec weight = all<Vec>(w[tap]);
            STAY(weight);
            UNROLL for (int i = 0; i < 4; i++)
                sum[i] += weight * (tap < 3 ? odd[tap % 3][i] : tap < 6 ? even[tap % 3][i] : odd[tap % 3][i + 1]);
        }
    }
};

// A plane without its borders, rows SIDE floats apart; what lies beyond the image is 0 and stays so.
template <int SIDE> struct Compact {
    alignas(64) float at[SIDE * SIDE] = {};

    __attribute__((always_inline)) void fill(const float* x, const Place& place) {
        if (place.width == SIDE)
            for (int32_t row = 0; row < place.height; row++)
                std::memcpy(at + row * SIDE, x + row * place.pitch, SIDE * 4);
        else
            for (int32_t row = 0; row < place.height; row++)
                for (int32_t column = 0; column < place.width; column++)
                    at[row * SIDE + column] = x[row * place.pitch + column];
    }
};

// One output's pixels out of the sums.
template <int SIDE>
INLINE void put_plane(const Planes& task, float* y, const float* sums, const float* residual, float bias) {
    for (int32_t row = 0; row < SIDE && row < task.y.height; row++)
        for (int32_t column = 0; column < SIDE && column < task.y.width; column++) {
            float value = sums[row * SIDE + column] + bias;
            if (residual) value += residual[row * task.residual.pitch + column];
            value = value < task.low ? task.low : value;
            y[row * task.y.pitch + column] = value > task.high ? task.high : value;
        }
}

// Chunks: ranges of outputs, whose sums are kept together.
template <int SIDE> void held_chunks(const void* what, const Frame& frame, int32_t begin, int32_t end) {
    constexpr int VECTORS = Shifts<SIDE>::VECTORS, PLANE = SIDE * SIDE;
    const Planes& task = *static_cast<const Planes*>(what);
    const float* residual = residual_of(task, frame);
    alignas(64) float sums[HELD_SUMS];
    Compact<SIDE> compact;
    for (int32_t range = begin; range < end; range++) {
        const int32_t first = task.first_output(range), last = task.first_output(range + 1);
        std::memset(sums, 0, size_t(last - first) * PLANE * 4);
        const int32_t* start = task.start + int64_t(range) * (task.x.channels + 1);
        for (int32_t c = 0; c < task.x.channels; c++) {
            if (start[c] == start[c + 1]) continue;
            compact.fill(at<const float>(frame, task.x.at) + c * task.x.plane, task.x);
            Vec plane[VECTORS];
            UNROLL for (int i = 0; i < VECTORS; i++) plane[i] = load(compact.at + LANES * i);
            const Shifts<SIDE> shifts = Shifts<SIDE>::of(plane);
            for (int32_t j = start[c]; j < start[c + 1]; j++) {
                float* held = sums + task.source[j] * PLANE;
                Vec sum[VECTORS];
                UNROLL for (int i = 0; i < VECTORS; i++) sum[i] = load(held + LANES * i);
                shifts.add(sum, task.weight + 9 * int64_t(j));
                UNROLL for (int i = 0; i < VECTORS; i++) store(held + LANES * i, sum[i]);
            }
        }
        for (int32_t o = first; o < last; o++)
            put_plane<SIDE>(task, at<float>(frame, task.y.at) + o * task.y.plane, sums + (o - first) * PLANE,
                            residual ? residual + o * task.residual.plane : nullptr, task.bias[o]);
    }
}

// ---- unfolded: 2 x 2 pixels, where a kernel is a matrix of 4 x 4 and one register holds it ----

// Each of the four pixels of a plane, four times.
INLINE Vec fourfold(const float* x, int64_t pitch) {
#if defined(SYNAPTREE_avx512)
    const int32_t below = int32_t(pitch);
    const Bits from = {0, 0, 0, 0, 1, 1, 1, 1, below, below, below, below, below + 1, below + 1, below + 1, below + 1};
    return __builtin_shuffle(load(x), from);
#else
    const float a = x[0], b = x[1], c = x[pitch], d = x[pitch + 1];
    return Vec{a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d};
#endif
}

void unfolded_chunks(const void* what, const Frame& frame, int32_t begin, int32_t end) {
    constexpr int FLIGHT = 4;
    const Planes& task = *static_cast<const Planes*>(what);
    const float* residual = residual_of(task, frame);
    const float* x = at<const float>(frame, task.x.at);
    for (int32_t o = task.first_output(begin); o < task.first_output(end); o++) {
        Vec sum[FLIGHT] = {};
        int32_t j = task.start[o];
        for (; j + FLIGHT <= task.start[o + 1]; j += FLIGHT)
            UNROLL for (int f = 0; f < FLIGHT; f++)
                sum[f] += fourfold(x + task.source[j + f] * task.x.plane, task.x.pitch) *
                          load(task.weight + LANES * int64_t(j + f));
        for (; j < task.start[o + 1]; j++)
            sum[0] += fourfold(x + task.source[j] * task.x.plane, task.x.pitch) *
                      load(task.weight + LANES * int64_t(j));
        sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        float pixels[4];
        UNROLL for (int i = 0; i < 4; i++) pixels[i] = (sum[0][i] + sum[0][i + 4]) + (sum[0][i + 8] + sum[0][i + 12]);
        put_plane<2>(task, at<float>(frame, task.y.at) + o * task.y.plane, pixels,
                     residual ? residual + o * task.residual.plane : nullptr, task.bias[o]);
    }
}

}  // namespace

TileKernel tile_kernel(int32_t rows, int32_t columns, int32_t lanes) {
    const auto is = [=](int32_t r, int32_t c) { return rows == r && columns == c; };
    return is(1, 1)   ? tile_of<1, 1>(lanes)
           : is(1, 8) ? tile_of<1, 8>(lanes)
           : is(2, 2) ? tile_of<2, 2>(lanes)
           : is(2, 4) ? tile_of<2, 4>(lanes)
           : is(2, 7) ? tile_of<2, 7>(lanes)
           : is(2, 8) ? tile_of<2, 8>(lanes)
           : is(3, 3) ? tile_of<3, 3>(lanes)
           : is(4, 4) ? tile_of<4, 4>(lanes)
                      : TileKernel{nullptr, 0};
}

Kernel run_kernel(int32_t rows) {
    return rows == 16 ? run_chunks<16> : rows == 8 ? run_chunks<8> : rows == 4 ? run_chunks<4>
           : rows == 2 ? run_chunks<2> : rows == 1 ? run_chunks<1> : nullptr;
}

Kernel held_kernel(int32_t side) { return side == 4 ? held_chunks<4> : side == 8 ? held_chunks<8> : nullptr; }

Kernel unfolded_kernel() { return unfolded_chunks; }

}  // namespace synaptree::SYNAPTREE_ISA
