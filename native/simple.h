// What lies between the layers: activations, sums, pools, softmax, shortcuts.
#pragma once
#include "moves.h"

namespace synaptree {

// y = clamp(x[0] + ... + x[count - 1])
struct Sum {
    Runs runs;
    Lines y, x[8];
    int32_t count;
    float low, high;
};

// y = clamp(scale x + shift), or scale x where x < 0 if there is no shift. A parameter to a channel; where the channels
// lie side by side, `along`, a parameter to an element.
struct Scaling {
    Runs runs;
    Lines x, y;
    const float *scale, *shift;
    bool along;
    float low, high;
};

// Windows of one axis: element o of the output covers `counts` elements of the input from `starts` on.
struct Windows {
    const int32_t *starts, *counts;
    const float* shares;  // factors of a mean
    int32_t dilation;
    // Outputs [first, last) cover `count` elements each, `stride` further from one to the next.
    int32_t first, last, count, stride;
};

struct Pool {
    Place x, y;
    Windows rows, columns;
    float low, high;
};

struct Softmax {
    Place x, y;
    bool log;
};

// y[c, i, j] = clamp(scale[c] x[c - offset, i stride, j stride] + z[c, i, j]), x being 0 outside of its channels
struct Shortcut {
    Place x, y, z;
    const float* scale;
    int32_t offset, stride;
    bool sum;
    float low, high;
};

SYNAPTREE_PER_ISA(Kernel sum_kernel())
SYNAPTREE_PER_ISA(Kernel affine_kernel())
SYNAPTREE_PER_ISA(Kernel leaky_kernel())
SYNAPTREE_PER_ISA(Kernel max_pool_kernel())
SYNAPTREE_PER_ISA(Kernel avg_pool_kernel())
SYNAPTREE_PER_ISA(Kernel softmax_kernel())        // a chunk to a row of pixels
SYNAPTREE_PER_ISA(Kernel softmax_along_kernel())  // channels side by side
SYNAPTREE_PER_ISA(Kernel shortcut_kernel())

}  // namespace synaptree
