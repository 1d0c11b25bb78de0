#include "outputs.h"

#include "simd.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 64")

namespace synaptree::SYNAPTREE_ISA {
namespace {

// Without it the compiler loads the same weights again for each pixel.
#if defined(SYNAPTREE_avx512)
#define STAY(value) asm("" : "+v"(value))
#else
#define STAY(value) (void)0
#endif

struct Tile {
    int32_t first, count;  // pixels, of which those beyond the image are computed and not kept
    int32_t block;
    const float* weight;
};

// PIXELS x VECTORS sums; FLIGHT entries at once where these are too few to keep the multipliers busy.
template <int PIXELS, int VECTORS> struct Sums {
    static constexpr int FLIGHT = PIXELS * VECTORS >= 6 ? 1 : PIXELS * VECTORS >= 3 ? 2 : 4;
    Vec at[PIXELS][VECTORS];

    INLINE void add(Vec (&sum)[PIXELS][VECTORS], const float* const (&x)[PIXELS], int32_t offset, const float* weight) {
        Vec w[VECTORS];
        UNROLL for (int v = 0; v < VECTORS; v++) {
            Vec loaded = load(weight + LANES * v);
            if constexpr (PIXELS > 1) STAY(loaded);
            w[v] = loaded;
        }
        UNROLL for (int p = 0; p < PIXELS; p++) {
            Vec pixel = splat(x[p][offset]);
            STAY(pixel);
            UNROLL for (int v = 0; v < VECTORS; v++) sum[p][v] += w[v] * pixel;
        }
    }

    __attribute__((always_inline))
    void add_entries(const Outputs& task, const Tile& tile, const float* const (&x)[PIXELS]) {
        const float* weight = tile.weight;
        int32_t j = task.start[tile.block];
        const int32_t last = task.start[tile.block + 1];
        if constexpr (FLIGHT > 1) {
            Vec more[FLIGHT][PIXELS][VECTORS] = {};
            for (; j + FLIGHT <= last; j += FLIGHT, weight += FLIGHT * VECTORS * LANES)
                UNROLL for (int f = 0; f < FLIGHT; f++)
                    add(more[f], x, task.offset[j + f], weight + f * VECTORS * LANES);
            UNROLL for (int f = 0; f < FLIGHT; f++)
                UNROLL for (int p = 0; p < PIXELS; p++)
                    UNROLL for (int v = 0; v < VECTORS; v++) at[p][v] += more[f][p][v];
        }
        for (; j < last; j++, weight += VECTORS * LANES) add(at, x, task.offset[j], weight);
    }
};

// Sums lie output after output; planes want pixel after pixel.
template <int PIXELS, int VECTORS>
INLINE void put(const Outputs& task, const Frame& frame, const Tile& tile, Sums<PIXELS, VECTORS>& sums) {
    const bool clamped = task.residual.channels == 0;
    float turned[PIXELS][VECTORS * LANES];
    UNROLL for (int p = 0; p < PIXELS; p++)
        UNROLL for (int v = 0; v < VECTORS; v++)
            store(turned[p] + LANES * v, clamped ? clamp(sums.at[p][v], task.low, task.high) : sums.at[p][v]);
    const int32_t first = LANES * task.registers[tile.block], left = task.y.channels - first;
    const int32_t outputs = left < VECTORS * LANES ? left : VECTORS * LANES;
    for (int32_t p = 0; p < tile.count; p++) {
        const int32_t row = (tile.first + p) / task.y.width, column = (tile.first + p) % task.y.width;
        float* y = at<float>(frame, task.y.at) + first * task.y.plane + row * task.y.pitch + column;
        if (clamped) {
            for (int32_t o = 0; o < outputs; o++) y[o * task.y.plane] = turned[p][o];
            continue;
        }
        const Place& place = task.residual;
        const float* residual = at<const float>(frame, place.at) + first * place.plane + row * place.pitch + column;
        for (int32_t o = 0; o < outputs; o++) {
            float value = turned[p][o] + residual[o * place.plane];
            value = value < task.low ? task.low : value;
            y[o * task.y.plane] = value > task.high ? task.high : value;
        }
    }
}

template <int PIXELS, int VECTORS> void compute(const Outputs& task, const Frame& frame, const Tile& tile) {
    const float* x[PIXELS];
    for (int p = 0; p < PIXELS; p++) {
        const int32_t pixel = tile.first + (p < tile.count ? p : tile.count - 1);
        const int32_t row = pixel / task.y.width, column = pixel % task.y.width;
        x[p] = at<const float>(frame, task.x.at) + int64_t(row) * task.stride_down * task.x.pitch +
               int64_t(column) * task.stride_right;
    }
    Sums<PIXELS, VECTORS> sums;
    const float* bias = task.bias + LANES * int64_t(task.registers[tile.block]);
    UNROLL for (int p = 0; p < PIXELS; p++)
        UNROLL for (int v = 0; v < VECTORS; v++) sums.at[p][v] = load(bias + LANES * v);
    sums.add_entries(task, tile, x);
    put(task, frame, tile, sums);
}

using Compute = void (*)(const Outputs&, const Frame&, const Tile&);

// Kernels for blocks of 1 to MOST registers.
template <int PIXELS, int MOST> struct Blocks {
    static Compute of(int32_t vectors) {
        if (vectors == MOST) return compute<PIXELS, MOST>;
        if constexpr (MOST > 1) return Blocks<PIXELS, MOST - 1>::of(vectors);
        return nullptr;
    }
};

// Chunks: blocks x tiles of pixels; all tiles of a block follow one another, because its weights are the most to read.
template <int PIXELS, int MOST> void chunks(const void* what, const Frame& frame, int32_t begin, int32_t end) {
    const Outputs& task = *static_cast<const Outputs*>(what);
    const int32_t pixels = task.y.height * task.y.width, tiles = (pixels + PIXELS - 1) / PIXELS;
    const float* weight = task.weight;
    int32_t block = 0;
    for (int32_t chunk = begin; chunk < end; chunk++) {
        for (; block < chunk / tiles; block++)
            weight += LANES * int64_t(task.start[block + 1] - task.start[block]) *
                      (task.registers[block + 1] - task.registers[block]);
        const int32_t first = chunk % tiles * PIXELS, count = pixels - first < PIXELS ? pixels - first : PIXELS;
        Blocks<PIXELS, MOST>::of(task.registers[block + 1] - task.registers[block])(
            task, frame, {first, count, block, weight});
    }
}

}  // namespace

Kernel outputs_kernel(int32_t pixels, int32_t vectors) {
    const auto fits = [=](int32_t p, int32_t most) { return pixels == p && vectors >= 1 && vectors <= most; };
    return fits(1, 8) ? chunks<1, 8> : fits(4, 4) ? chunks<4, 4> : fits(6, 4) ? chunks<6, 4> : fits(8, 3) ? chunks<8, 3>
           : nullptr;
}

}  // namespace synaptree::SYNAPTREE_ISA
