// Carrying samples into the arena and out of it.
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

struct Move {
    Place place;
};

SYNAPTREE_PER_ISA(Kernel enter_kernel())
SYNAPTREE_PER_ISA(Kernel leave_kernel())

}  // namespace synaptree
