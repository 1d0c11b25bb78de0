// Convolution and linear layers of one sample whose registers hold 16 outputs: what is left where zeros do not pay.
#pragma once
#include "moves.h"

namespace synaptree {

// Outputs lie in registers of 16, the last one filled up; a block is the registers that are added to together. An entry
// of a block is an element of x, relative to the pixel, with one weight for each of the block's outputs.
struct Outputs {
    Place x, y, residual;      // a residual of no channels is none
    const int32_t* registers;  // blocks + 1: where each block's registers start
    const int32_t* start;      // blocks + 1: where its entries start
    const int32_t* offset;     // for each entry, in floats from the pixel
    const float* weight;       // entry after entry, 16 for each register of the block
    const float* bias;         // 16 for each register
    float low, high;
    int32_t stride_down, stride_right;  // of x, in elements, from an output pixel to the next
};

constexpr int MOST_VECTORS = 8;  // registers of a block

// The kernel for tiles of so many pixels and blocks of at most so many registers; none where there is no such kernel.
SYNAPTREE_PER_ISA(Kernel outputs_kernel(int32_t pixels, int32_t vectors))

}  // namespace synaptree
