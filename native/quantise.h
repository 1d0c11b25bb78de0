// Between floats and bytes: u = round(x / scale) + 128, and floats of whole rows to the caller.
#pragma once
#include "step.h"

namespace synaptree {

// Where rows of a value lie, a row to a sample: bytes from the arena's start, and elements from a row to the next.
struct RowsAt {
    int64_t at, pitch;
};

struct Quantise {
    RowsAt from;       // floats; the caller's own where `from.at` is negative
    RowsAt to;         // bytes
    int32_t features, samples;
    float scale;       // used where `scale_at` is negative
    int64_t scale_at;  // else: where to leave the scale, max |x| / 127 over all samples
};

struct LeaveRows {
    RowsAt from;
    int32_t features, samples;
};

SYNAPTREE_PER_ISA(Kernel quantise_kernel())
SYNAPTREE_PER_ISA(Kernel leave_rows_kernel())

}  // namespace synaptree
