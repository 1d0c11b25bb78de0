#include <nanobind/stl/string.h>

#include <algorithm>

#include "quantise.h"
#include "steps.h"

namespace synaptree {
using namespace nb::literals;

static const char* FLOATS = "the floats lie in the arena, a row behind the other";

static int64_t end_of(const RowsAt& rows, int64_t features, int64_t samples, int64_t size, const char* what) {
    if (rows.at < 0 || rows.at % size || features <= 0 || samples <= 0 || rows.pitch < features)
        throw std::invalid_argument(what);
    return rows.at + ((samples - 1) * rows.pitch + features) * size;
}

static Step quantise(const std::string& isa, int64_t from, int64_t from_pitch, int64_t to, int64_t to_pitch,
                     int32_t features, int32_t samples, float scale, int64_t scale_at) {
    const Quantise task{{from, from_pitch}, {to, to_pitch}, features, samples, scale, scale_at};
    int64_t bytes = end_of(task.to, features, samples, 1, "the bytes lie in the arena, a row behind the other");
    if (from >= 0)
        bytes = std::max(bytes, end_of(task.from, features, samples, 4, FLOATS));
    else if (from_pitch != features)
        throw std::invalid_argument("rows of the caller lie close together");
    if (scale_at >= 0 ? scale_at % 4 != 0 : !(scale > 0))
        throw std::invalid_argument("a scale is positive, its place a whole float");
    bytes = std::max(bytes, scale_at + 4);
    const int32_t chunks = scale_at >= 0 ? 1 : samples;
    const int64_t reads = from < 0 ? features : 0;
    return outward(step(SYNAPTREE_PICK(isa_named(isa), quantise_kernel()), task, chunks, bytes, {}), reads, 0, samples);
}

static Step leave_rows(const std::string& isa, int64_t from, int64_t from_pitch, int32_t features, int32_t samples) {
    const LeaveRows task{{from, from_pitch}, features, samples};
    const int64_t bytes = end_of(task.from, features, samples, 4, FLOATS);
    return outward(step(SYNAPTREE_PICK(isa_named(isa), leave_rows_kernel()), task, samples, bytes, {}), 0, features, samples);
}

static void bind(nb::module_& m) {
    m.def("quantise", quantise, "isa"_a, nb::kw_only(), "from_"_a, "from_pitch"_a, "to"_a, "to_pitch"_a, "features"_a,
          "samples"_a, "scale"_a, "scale_at"_a);
    m.def("leave_rows", leave_rows, "isa"_a, nb::kw_only(), "from_"_a, "from_pitch"_a, "features"_a, "samples"_a);
}

static const Binding binding(bind);

}  // namespace synaptree
