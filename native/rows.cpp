#include "rows.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace synaptree::SYNAPTREE_ISA {
namespace {

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 32")

// A register as the machine has it, so that sums stay where they are: a wider type than that may live in memory.
#if defined(SYNAPTREE_avx512)
constexpr int WIDTH = 16, REGISTERS = 32;
#elif defined(SYNAPTREE_avx2)
constexpr int WIDTH = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int WIDTH = 4, REGISTERS = 32;
#else
constexpr int WIDTH = 4, REGISTERS = 16;
#endif
constexpr int LANES = 16;
constexpr int AHEAD = 512;  // floats: the machine by itself fetches no weights beyond a page
constexpr int PIECES = LANES / WIDTH;
constexpr int VECTORS = REGISTERS / PIECES;  // of sixteen floats
typedef float Reg __attribute__((vector_size(4 * WIDTH)));

INLINE Reg load(const float* from) {
    Reg reg;
    std::memcpy(&reg, from, sizeof reg);
    return reg;
}

INLINE Reg splat(float value) { return value - Reg{}; }

// Keeps the compiler from reading the same operand from memory once per product.
INLINE void pin(Reg& reg) {
#if defined(SYNAPTREE_avx512)
    asm("" : "+v"(reg));
#elif defined(__x86_64__)
    asm("" : "+x"(reg));
#elif defined(__aarch64__)
    asm("" : "+w"(reg));
#else
    (void)reg;
#endif
}

// Keeps the compiler from holding one address for each register of x.
INLINE void pin(const char*& address) {
#if defined(__GNUC__)
    asm("" : "+r"(address));
#else
    (void)address;
#endif
}

INLINE void store(float* to, const Reg* reg) {
    UNROLLED for (int p = 0; p < PIECES; p++) std::memcpy(to + p * WIDTH, &reg[p], sizeof *reg);
}

INLINE void store_masked(float* to, const Reg* reg, uint32_t mask) {
#if defined(SYNAPTREE_avx512)
    _mm512_mask_storeu_ps(to, __mmask16(mask), __m512(reg[0]));
#elif defined(SYNAPTREE_avx2)
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    UNROLLED for (int p = 0; p < PIECES; p++) {
        const __m256i kept = _mm256_and_si256(_mm256_set1_epi32(int(mask >> (WIDTH * p))), bit);
        _mm256_maskstore_ps(to + WIDTH * p, _mm256_cmpeq_epi32(kept, bit), __m256(reg[p]));
    }
#else
    float all[LANES];
    store(all, reg);
    for (int lane = 0; lane < LANES; lane++)
        if (mask >> lane & 1) to[lane] = all[lane];
#endif
}

// R rows, T registers of sixteen floats, U entries in flight. APART: the registers of x do not follow one another.
template <int R, int T, int U, bool APART> struct Body {
    static constexpr int N = T * PIECES;
    typedef Reg Sums[U][R][N];

    // What visits have in common, by value: stores into y could change the task, as far as the compiler knows.
    struct Here {
        const char* x;
        float* y;
        const float *bias, *residual;
        const uint16_t* masks;
        int64_t x_step, y_step, residual_step, y_plane, residual_plane;
        const float *low, *high;  // read when needed, or they would hold two registers all the time
        bool whole;  // every float of the tile is stored
    };

    INLINE int64_t piece(int64_t step, int n) { return n / PIECES * step + n % PIECES * WIDTH; }

    INLINE void add(Sums& sums, int u, const char* bytes, int64_t step, const float* values) {
        pin(bytes);
        const float* x = reinterpret_cast<const float*>(bytes);
        Reg in[N];
        UNROLLED for (int n = 0; n < N; n++) {
            in[n] = load(x + (APART ? piece(step, n) : n * WIDTH));
            if (R > 1) pin(in[n]);
        }
        UNROLLED for (int r = 0; r < R; r++) {
            Reg value = splat(values[r]);
            if (N > 1) pin(value);
            UNROLLED for (int n = 0; n < N; n++) sums[u][r][n] += value * in[n];
        }
    }

    template <int COUNT>
    INLINE void add_some(Sums& sums, const Here& here, const int32_t*& offsets, const float*& values) {
        UNROLLED for (int u = 0; u < COUNT; u++) add(sums, u, here.x + offsets[u], here.x_step, values + u * R);
        if (R >= 4) __builtin_prefetch(values + AHEAD);  // fewer rows have no time for it here
        offsets += COUNT;
        values += COUNT * R;
    }

    INLINE void add_all(
        Sums& sums, const Here& here, const int32_t*& offsets, const float*& values, int32_t entries) {
        for (int32_t turns = entries / U; turns > 0; turns--) add_some<U>(sums, here, offsets, values);
        if (U > 2 && entries & 2) add_some<(U > 2 ? 2 : 1)>(sums, here, offsets, values);
        if (U > 1 && entries & 1) add_some<1>(sums, here, offsets, values);
    }

    // What the next visits need, a line for every sixteen entries of this one.
    INLINE void fetch(const int32_t* offsets, const float* values, int32_t entries) {
        for (int32_t e = 0; e < entries; e += 16) {
            __builtin_prefetch(offsets + AHEAD + e);
            UNROLLED for (int r = 0; r < R; r++) __builtin_prefetch(values + AHEAD + e * R + 16 * r);
        }
    }

    INLINE void begin(Sums& sums, const Here& here, const Visit& visit) {
        UNROLLED for (int r = 0; r < R; r++) {
            const int64_t output = visit.output + (r < visit.live ? r : 0);
            const Reg bias = splat(here.bias[output]);
            UNROLLED for (int n = 0; n < N; n++) sums[0][r][n] = bias;
            if (!here.residual) continue;
            const float* from = here.residual + output * here.residual_plane;
            UNROLLED for (int n = 0; n < N; n++) sums[0][r][n] += load(from + piece(here.residual_step, n));
        }
    }

    INLINE void resume(Sums& sums, const Here& here, const Visit& visit) {
        UNROLLED for (int r = 0; r < R; r++) {
            const float* from = here.y + (visit.output + (r < visit.live ? r : 0)) * here.y_plane;
            UNROLLED for (int n = 0; n < N; n++) sums[0][r][n] = load(from + piece(here.y_step, n));
        }
    }

    INLINE void bound(Sums& sums, const Here& here) {
        const Reg low = splat(*here.low), high = splat(*here.high);
        UNROLLED for (int r = 0; r < R; r++)
            UNROLLED for (int n = 0; n < N; n++) {
                Reg& sum = sums[0][r][n];
                sum = sum < low ? low : sum;
                sum = sum > high ? high : sum;
            }
    }

    INLINE void end(Sums& sums, const Here& here, const Visit& visit) {
        float* to = here.y + visit.output * here.y_plane;
        UNROLLED for (int r = 0; r < R; r++, to += here.y_plane) {
            if (r > 0 && r >= visit.live) return;
            UNROLLED for (int t = 0; t < T; t++)
                if (here.whole)
                    store(to + t * here.y_step, &sums[0][r][t * PIECES]);
                else
                    store_masked(to + t * here.y_step, &sums[0][r][t * PIECES], here.masks[t]);
        }
    }

    INLINE void join(Sums& sums) {
        UNROLLED for (int u = 1; u < U; u++)
            UNROLLED for (int r = 0; r < R; r++)
                UNROLLED for (int n = 0; n < N; n++) sums[0][r][n] += sums[u][r][n];
    }

    INLINE Here here_of(const Rows& task, const Frame& frame, const Tile& tile) {
        const uint16_t* masks = task.masks + tile.masks;
        uint16_t all = 0xffff;
        for (int t = 0; t < T; t++) all &= masks[t];
        return {frame.arena + task.x + 4 * tile.x, at<float>(frame, task.y) + tile.y, task.bias,
                task.residual < 0 ? nullptr : at<const float>(frame, task.residual) + tile.residual, masks, task.x_step,
                task.y_step, task.residual_step, task.y_plane, task.residual_plane, &task.low, &task.high,
                all == 0xffff};
    }

    static void run(const Rows& task, const Frame& frame, const Tile& tile, int32_t range) {
        const Here here = here_of(task, frame, tile);
        const int32_t parts = task.parts;
        const Block* blocks = task.blocks + int64_t(range) * parts;
        const int32_t* offsets = task.offsets + blocks[0].entry;
        const float* values = task.values + blocks[0].entry * R;
        const Visit* visits = task.visits;
        const bool far = task.far;
        for (int32_t part = 0; part < parts; part++) {
            const Visit* last = visits + blocks[part + 1].visit;
            for (const Visit* next = visits + blocks[part].visit; next < last; next++) {
                const Visit visit = *next;
                if (R < 4 && far) fetch(offsets, values, visit.entries);
                Sums sums{};
                if (part == 0)
                    begin(sums, here, visit);
                else
                    resume(sums, here, visit);
                add_all(sums, here, offsets, values, visit.entries);
                join(sums);
                if (part == parts - 1) bound(sums, here);
                end(sums, here, visit);
            }
        }
    }
};

using Run = void (*)(const Rows& task, const Frame& frame, const Tile& tile, int32_t range);

// Sums, one register of x for each of them where rows share it, and a weight.
constexpr int most_vectors(int rows) {
    const int most = (VECTORS - 1) / (rows + (rows > 1));
    return most > 8 ? 8 : most;
}

// Two or four entries in flight where one alone would leave the multipliers waiting for its sums.
template <int R, int T, bool APART> Run run_of(int32_t unroll) {
    constexpr int most = VECTORS * 3 / 4;
    constexpr bool four = R * T <= 4 && 4 * R * T <= most, two = R * T <= 8 && 2 * R * T <= most;
    if constexpr (four)
        if (unroll >= 4) return Body<R, T, 4, APART>::run;
    if constexpr (two)
        if (unroll >= 2) return Body<R, T, 2, APART>::run;
    return Body<R, T, 1, APART>::run;
}

template <int R, int T = 1> Run run_of(const Rows& task, int64_t vectors) {
    if constexpr (T < most_vectors(R))
        if (vectors > T) return run_of<R, T + 1>(task, vectors);
    if constexpr (T > most_vectors(R))
        return nullptr;
    else
        return T == 1 || task.x_step == LANES ? run_of<R, T, false>(task.unroll) : run_of<R, T, true>(task.unroll);
}

Run run_of(const Rows& task, int64_t vectors) {
    switch (task.rows) {
        case 2: return run_of<2>(task, vectors);
        case 4: return run_of<4>(task, vectors);
        case 6: return run_of<6>(task, vectors);
        case 8: return run_of<8>(task, vectors);
        default: return run_of<1>(task, vectors);
    }
}

void rows(const void* task_, const Frame& frame, int32_t first, int32_t last) {
    const Rows& task = *static_cast<const Rows*>(task_);
    for (int32_t chunk = first; chunk < last; chunk++) {
        const Tile& tile = task.tiles[chunk / task.ranges];
        run_of(task, tile.vectors)(task, frame, tile, chunk % task.ranges);
    }
}

}  // namespace

Kernel rows_kernel() { return rows; }

int32_t rows_most_vectors(int32_t rows) {
    return rows == 1 || rows == 2 || rows == 4 || rows == 6 || rows == 8 ? most_vectors(rows) : 0;
}

}  // namespace synaptree::SYNAPTREE_ISA
