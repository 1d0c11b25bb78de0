// Sparse int8 linear layers on many samples at once: sixteen samples of four inputs fill a register.
#pragma once
#include "lookup_int8.h"

namespace synaptree {

// Inputs are taken in blocks, which are copied to where samples stand side by side, [quads][vectors][16 samples][4
// inputs], and stay in the nearest cache. Of every row the quads with a connection are stored: where they stand, and
// four weights. Between blocks the sums of all rows wait in the arena.
struct Quads {
    LayerInt8 layer;  // `order` is not used
    int64_t sums;     // bytes to whole numbers, [rows up to whole chunks][vectors][16 samples]
    int32_t vectors;
    int32_t quads, block_quads;  // all, and of a block
    const int64_t* starts;    // [blocks * rows + 1] of every row of a block, multiples of 2
    const uint16_t* offsets;  // bytes from the block's first quad
    const int32_t* weights;
};

constexpr int32_t QUADS_BLOCK_BYTES = 32 * 1024;  // the nearest cache holds as much, and the weights that pass by

// A chunk is 16 rows. Null where registers cannot multiply bytes.
SYNAPTREE_PER_ISA(Kernel quads_kernel())

}  // namespace synaptree
