// Sparse linear layers on one sample: y = clamp(bias + W x), the inputs looked up in registers.
#pragma once
#include "step.h"

namespace synaptree {

// Rows stand in groups of 16, one to a lane; groups in blocks, whose sums stay in the nearest cache; columns in tiles,
// which registers hold. In a look, sixteen rows of one group take one connection each. The looks of a block and a tile
// come in fours: first those where all four add to the same group, then those of two and two, then those of single
// looks; each of these parts is filled up to whole fours with looks without connections.
//
// Of the byte for look b of a four, the low 5 bits are the input in its half, quarter or eighth of the tile. The bits
// that go before them stand at the top of the byte for look b - 1 (of b = 0: 3): rotated by 8 b, the word has the one
// at the bottom and the others at the top. Where only kept weights are stored, the topmost says whether there is one.
struct Lookup {
    int64_t x, y;  // bytes in the arena
    int32_t rows, tiles, groups;  // groups of a block
    float low, high;
    const float* bias;            // of every row, then zeros up to whole blocks
    const int32_t* order;         // row i is output order[i]; null where that is i
    const int64_t* fours;         // [blocks * tiles * SPANS + 1] the first four of every part
    const uint16_t* sums;         // [fours * 4] where a look adds to, in floats of its block
    const uint8_t* index;         // [fours][16 rows][4 looks]
    const float* values;          // [fours * 4][16], or the kept ones alone
    const int64_t* kept;          // [blocks] the first kept value of every block; null where all are stored
};

// Width of a tile in columns: 32, 64 or 128. Null where registers cannot look up.
SYNAPTREE_PER_ISA(Kernel lookup_kernel(int32_t width, bool kept))

// The same layer from compressed rows, for every instruction set. A chunk is CHUNK_ROWS rows.
struct Compressed {
    int64_t x, y;
    int32_t rows;
    float low, high;
    const float* bias;
    const int32_t* order;   // null where row i is output i
    const int64_t* starts;  // [rows + 1]
    const int32_t* columns;
    const float* values;
};

constexpr int32_t SPANS = 3;         // parts: 4, 2 and 1 looks for one group
constexpr int32_t CHUNK_ROWS = 128;
constexpr int32_t MOST_GROUPS = 64;  // of a block

SYNAPTREE_PER_ISA(Kernel compressed_kernel())

}  // namespace synaptree
