// Layers as rows of (offset, weight): each output is a sum over places that are fixed steps away from its own.
#pragma once
#include "step.h"

namespace synaptree {

// Up to eight registers of sixteen floats beside each other, for which all outputs are worked out before the next ones.
// In floats from the starts of x, y and residual.
struct Tile {
    int64_t x, y, residual;
    int64_t vectors;
    int64_t masks;  // index of the mask of its first register
};

// One group of rows meets one part of x.
struct Visit {
    int32_t output;   // its first one
    int32_t live;     // rows of the group that exist
    int32_t entries;
};

// Where the visits of a part, and their entries, begin.
struct Block {
    int64_t visit, entry;
};

// y[o] = clamp(bias[o] + residual[o] + sum of value * x[offset]) for groups of `rows` outputs that share offsets.
struct Rows {
    const float* values;     // entries x rows
    const int32_t* offsets;  // bytes from the tile's x
    const Visit* visits;
    const Block* blocks;  // ranges x parts
    const Tile* tiles;
    const uint16_t* masks;  // of each register, the floats that are stored
    const float* bias;
    int64_t x, y, residual;  // bytes from the arena's start; residual is negative where there is none
    int64_t x_step, y_step, residual_step;  // floats from a register of a tile to the next
    int64_t y_plane, residual_plane;        // floats from an output to the next
    int32_t rows, unroll;                   // rows of a group, entries in flight
    int32_t parts, ranges;                  // of x; of outputs
    float low, high;
    bool far;  // more entries than a second cache holds
};

// Its chunks are tiles x ranges.
SYNAPTREE_PER_ISA(Kernel rows_kernel())

// The most registers a tile may have for groups of so many rows, 0 where the machine has no room for such groups.
SYNAPTREE_PER_ISA(int32_t rows_most_vectors(int32_t rows))

}  // namespace synaptree
