// Sparse linear layers on bytes: y = clamp(bias + scale (W u - 128 sum W)), W in whole numbers with a scale per row.
#pragma once
#include "quantise.h"
#include "step.h"

namespace synaptree {

// What both ways to store such a layer share. Arrays of rows are filled up with zeros to whole blocks.
struct LayerInt8 {
    RowsAt x, y;       // x in bytes; y in bytes or floats
    bool to_bytes;
    int32_t rows, samples;
    float scale;       // of x, used where `scale_at` is negative
    int64_t scale_at;  // else: where it stands
    float inverse;     // one over the scale of y, where y is bytes
    float low, high;
    const float* bias;
    const float* scales;    // of the rows of W
    const int32_t* excess;  // 128 times the sum of a row of W
    const int32_t* order;   // row i is output order[i]; null where that is i
};

// As in lookup.h, but in a look a row takes four connections, and a byte of the index holds its whole input.
struct LookupInt8 {
    LayerInt8 layer;
    int32_t tiles, groups;  // groups of a block
    const int64_t* fours;   // [blocks * tiles * SPANS + 1]
    const uint16_t* sums;   // [fours * 4] where a look adds to, in sums of its block
    const uint8_t* index;   // [fours * 4][16 rows][4]
    const int8_t* values;   // the same
};

// Width of a tile in bytes: 64, 128 or 256. Null where registers cannot look up.
SYNAPTREE_PER_ISA(Kernel lookup_int8_kernel(int32_t width))

// The same layer from compressed rows, for every instruction set. A chunk is 16 rows.
struct CompressedInt8 {
    LayerInt8 layer;
    const int64_t* starts;  // [rows + 1]
    const int32_t* columns;
    const int8_t* values;
};

SYNAPTREE_PER_ISA(Kernel compressed_int8_kernel())

constexpr int32_t MOST_GROUPS_INT8 = 32;  // of a block

}  // namespace synaptree
