// Carrying samples into the arena and out of it, and values from place to place.
#pragma once
#include "step.h"

namespace synaptree {

// A value in the arena. Element (channel, row, column) of sample `lane` lies, in floats from `at`, at
// channel * plane + row * pitch + column * lanes + lane.
struct Place {
    int64_t at;  // bytes from the arena's start to the first element that is no border
    int32_t channels, height, width, lanes;
    int64_t plane, pitch;
};

// Bytes from the arena's start to behind the last element of a place.
int64_t extent(const Place& place);

// Several values of one shape, as runs of floats without a gap: `planes` times `rows` runs of `length`, those of the
// last plane of `last`.
struct Runs {
    int32_t planes, rows;
    int64_t length, last;
};

// Where the runs of one of these values lie.
struct Lines {
    int64_t at, plane, pitch;
};

// The longest runs that all the places share, of at most eight, and where they lie. With `merge` a run may go over
// several channels, with `through` over the zeros between the rows: for what gives 0 for 0.
Runs runs(const Place* places, int count, Lines* lines, bool merge, bool through);

struct Move {
    Place place;
};

// Features that one chunk of a Move of several lanes carries.
constexpr int64_t FEATURES = 256;

struct Copy {
    Runs runs;
    Lines x, y;
};

// y[(py * stride_w + px) * x.channels + c, i, j] = x[c, i * stride_h + py - top, j * stride_w + px - left]
struct Split {
    Place x, y;
    int32_t stride_h, stride_w, top, left;
};

SYNAPTREE_PER_ISA(Kernel enter_kernel())        // a Move, for several lanes
SYNAPTREE_PER_ISA(Kernel leave_kernel())        // a Move, for several lanes
SYNAPTREE_PER_ISA(Kernel enter_one_kernel())    // a Copy whose x is what the caller gave
SYNAPTREE_PER_ISA(Kernel leave_one_kernel())    // a Copy whose y is what the caller wants
SYNAPTREE_PER_ISA(Kernel copy_kernel())         // a Copy
SYNAPTREE_PER_ISA(Kernel split_kernel())        // a Split

}  // namespace synaptree
