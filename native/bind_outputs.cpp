#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <optional>

#include "extents.h"
#include "outputs.h"

namespace synaptree {
using namespace nb::literals;

static constexpr int32_t MANY = 1 << 20;

static void want(bool good, const char* what) {
    if (!good) throw std::invalid_argument(what);
}

static int32_t widest_block(const Outputs& task, size_t blocks) {
    int32_t widest = 0;
    for (size_t b = 0; b < blocks; b++) {
        const int32_t vectors = task.registers[b + 1] - task.registers[b];
        want(vectors >= 1 && vectors <= MOST_VECTORS, "a block has 1 to 8 registers");
        widest = std::max(widest, vectors);
    }
    return widest;
}

static int64_t count_weights(const Outputs& task, size_t blocks) {
    int64_t count = 0;
    for (size_t b = 0; b < blocks; b++)
        count += 16 * int64_t(task.start[b + 1] - task.start[b]) * (task.registers[b + 1] - task.registers[b]);
    return count;
}

// Bytes from the arena's start to behind the last element of x that is read.
static int64_t end_of_reads(const Outputs& task, size_t entries) {
    if (!entries) return 0;
    const auto [low, high] = std::minmax_element(task.offset, task.offset + entries);
    const int64_t down = (task.y.height - 1) * int64_t(task.stride_down);
    const int64_t right = (task.y.width - 1) * int64_t(task.stride_right);
    want(task.x.at + 4 * int64_t(*low) >= 0, "an entry lies before the arena");
    return task.x.at + 4 * (down * task.x.pitch + right + *high + 1);
}

static Step outputs(const std::string& isa, const Place& x, const Place& y, nb::object registers, nb::object start,
                    nb::object offset, nb::object weight, nb::object bias, float low, float high,
                    std::optional<Place> residual, int32_t pixels, int32_t stride_down, int32_t stride_right) {
    Outputs task{x, y, residual.value_or(Place{}), nullptr, nullptr, nullptr, nullptr, nullptr, low, high,
                 stride_down, stride_right};
    int64_t bytes = std::max(reach(x, "x"), reach(y, "y"));
    want(x.lanes == 1 && y.lanes == 1, "x and y want 1 lane");
    want(stride_down >= 1 && stride_right >= 1 && stride_down <= MANY && stride_right <= MANY,
         "strides are at least 1");
    want(y.channels <= MANY && int64_t(y.height) * y.width <= MANY, "y is too large");
    if (residual) {
        same_shape(*residual, y, "residual");
        bytes = std::max(bytes, reach(*residual, "residual"));
    }
    const size_t edges = nb::len(registers), entries = nb::len(offset);
    want(edges >= 2, "registers: where each block starts, and the end");
    const auto [registers_at, registers_copy] = frozen(registers, edges, "registers");
    const auto [starts, start_copy] = frozen(start, edges, "start");
    const auto [offsets, offset_copy] = frozen(offset, entries, "offset");
    task.registers = registers_at;
    task.start = starts;
    task.offset = offsets;
    const int32_t whole = (y.channels + 15) / 16;
    lists(task.registers, edges, whole, "registers");
    lists(task.start, edges, int64_t(entries), "start");
    const Kernel kernel = SYNAPTREE_PICK(isa_named(isa), outputs_kernel(pixels, widest_block(task, edges - 1)));
    want(kernel, "there are tiles of 1, 4, 6 or 8 pixels with at most 8, 4, 4 or 3 registers");
    task.weight = elements<float>(weight, size_t(count_weights(task, edges - 1)), "weight");
    task.bias = elements<float>(bias, size_t(16 * whole), "bias");
    bytes = std::max(bytes, end_of_reads(task, entries));
    const int64_t chunks = int64_t(edges - 1) * ((int64_t(y.height) * y.width + pixels - 1) / pixels);
    want(chunks <= int64_t(MANY) * 64, "too many chunks");
    return step(kernel, task, int32_t(chunks), bytes, {registers_copy, start_copy, offset_copy, weight, bias});
}

static void bind(nb::module_& m) {
    m.def("outputs", outputs, nb::kw_only(), "isa"_a, "x"_a, "y"_a, "registers"_a, "start"_a, "offset"_a, "weight"_a,
          "bias"_a, "low"_a, "high"_a, "residual"_a = nb::none(), "pixels"_a = 1, "stride_down"_a = 1,
          "stride_right"_a = 1);
}

static const Binding binding(bind);

}  // namespace synaptree
