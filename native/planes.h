// Convolution of 3x3, stride 1 and padding 1, whose weights are zero by whole kernels.
#pragma once
#include "moves.h"

namespace synaptree {

// What all ways to compute it share. A tile is the pixels whose sums stay in registers.
struct Planes {
    Place x, y, residual;  // a residual of no channels is none
    // Kernels in the order of their use, list after list. A list is the kernels of an output that read the channels of
    // one part; where inputs are held in registers it is the kernels of a channel that add to the outputs of one range.
    const int32_t* start;
    const int32_t* source;  // for each kernel its channel of x; where inputs are held its output, counted in the range
    const float* weight;    // for each kernel 3 x 3; or 4 x 4, unfolded
    const float* bias;
    float low, high;
    int32_t parts;   // of the channels of x: all outputs add those of a part before the next begins
    int32_t ranges;  // of outputs
    int32_t first_output(int32_t range) const { return int32_t(int64_t(range) * y.channels / ranges); }
};

// A kernel, and what it wants of the task; no kernel where there is no such tile.
struct TileKernel {
    Kernel kernel;
    int32_t lanes;  // samples that a tile holds
};

// the most floats of sums that are kept apart from y while inputs stay in registers
constexpr int32_t HELD_SUMS = 8192;

SYNAPTREE_PER_ISA(TileKernel tile_kernel(int32_t rows, int32_t columns, int32_t lanes))
SYNAPTREE_PER_ISA(Kernel run_kernel(int32_t rows))
SYNAPTREE_PER_ISA(Kernel held_kernel(int32_t side))
SYNAPTREE_PER_ISA(Kernel unfolded_kernel())

}  // namespace synaptree
