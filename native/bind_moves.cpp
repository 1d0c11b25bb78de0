#include "moves.h"
#include "steps.h"

namespace synaptree {
using namespace nb::literals;

static int64_t end_of(const Place& place) {
    const int64_t floats = (place.channels - 1) * place.plane + (place.height - 1) * place.pitch + int64_t(place.width) * place.lanes;
    return place.at + 4 * floats;
}

static void bind(nb::module_& m) {
    nb::class_<Place>(m, "Place")
        .def(
            "__init__",
            [](Place* self, int64_t at, int32_t channels, int32_t height, int32_t width, int32_t lanes, int64_t plane, int64_t pitch) {
                new (self) Place{at, channels, height, width, lanes, plane, pitch};
            },
            nb::kw_only(), "at"_a, "channels"_a, "height"_a = 1, "width"_a = 1, "lanes"_a = 1, "plane"_a, "pitch"_a = 0);
    m.def(
        "enter", [](const std::string& isa, const Place& place) {
            return step(SYNAPTREE_PICK(isa_named(isa), enter_kernel()), Move{place}, place.channels, end_of(place), {});
        }, "isa"_a, "place"_a);
    m.def(
        "leave", [](const std::string& isa, const Place& place) {
            return step(SYNAPTREE_PICK(isa_named(isa), leave_kernel()), Move{place}, place.channels, end_of(place), {});
        }, "isa"_a, "place"_a);
}

static const Binding binding(bind);

}  // namespace synaptree
