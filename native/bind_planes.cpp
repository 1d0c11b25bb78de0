#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <optional>

#include "extents.h"
#include "planes.h"

namespace synaptree {
using namespace nb::literals;

static constexpr int32_t MANY = 1 << 20;

namespace {

// One of the ways to compute the convolution, and what it wants of the task.
struct Way {
    Kernel kernel;
    int64_t chunks, groups, lists;  // of kernels: so many groups of so many lists
    int32_t taps;
    Margin read;  // of x
};

}  // namespace

static void want(bool good, const char* what) {
    if (!good) throw std::invalid_argument(what);
}

static int64_t tiles(int32_t image, int32_t tile) { return (int64_t(image) + tile - 1) / tile; }

static Way tiles_way(Isa isa, const Planes& task, int32_t rows, int32_t columns) {
    const Place& y = task.y;
    const TileKernel tile = SYNAPTREE_PICK(isa, tile_kernel(rows, columns, y.lanes));
    want(tile.kernel, "there is no such tile");
    want(rows <= y.height && columns <= y.width, "a tile is at most as large as the image");
    want(y.lanes % tile.lanes == 0, "tiles want lanes in whole registers");
    const bool apart = y.height % rows == 0 && y.width % columns == 0;
    want(apart || task.parts == 1, "tiles that overlap want 1 part");  // another's sums so far would be overwritten
    const int64_t chunks = y.lanes / tile.lanes * tiles(y.height, rows) * tiles(y.width, columns) * task.ranges;
    const bool whole = rows == y.height && columns == y.width;
    return {tile.kernel, chunks, task.parts, y.channels, 9, whole ? Margin{} : Margin{1, 1, 1, 1}};
}

static Way runs_way(Isa isa, const Planes& task, int32_t rows) {
    const Place& y = task.y;
    const Kernel kernel = SYNAPTREE_PICK(isa, run_kernel(rows));
    want(kernel && rows <= y.height, "runs have 1, 2, 4, 8 or 16 rows, at most those of the image");
    want(y.lanes == 1, "runs want 1 lane");
    const bool apart = y.height % rows == 0 && (y.width < 16 || y.width % 16 == 0);
    want(apart || task.parts == 1, "runs that overlap want 1 part");
    const Margin read{1, 1, 1, std::max(16, y.width) + 1 - y.width};
    return {kernel, tiles(y.height, rows) * tiles(y.width, 16) * task.ranges, task.parts, y.channels, 9, read};
}

static Way held_way(Isa isa, const Planes& task, int32_t side) {
    const Place& y = task.y;
    const Kernel kernel = SYNAPTREE_PICK(isa, held_kernel(side));
    want(kernel && y.height <= side && y.width <= side, "held planes have at most 4 x 4 or 8 x 8 pixels");
    want(y.lanes == 1 && task.parts == 1, "held planes want 1 lane and 1 part");
    want(tiles(y.channels, task.ranges) * side * side <= HELD_SUMS, "a range has more outputs than sums are held");
    return {kernel, task.ranges, task.ranges, task.x.channels, 9, {}};
}

static Way unfolded_way(Isa isa, const Planes& task) {
    const Place& y = task.y;
    want(y.height == 2 && y.width == 2, "only planes of 2 x 2 are unfolded");
    want(y.lanes == 1 && task.parts == 1, "unfolded planes want 1 lane and 1 part");
    want(task.x.pitch < 15, "unfolded planes want both rows in one register");
    return {SYNAPTREE_PICK(isa, unfolded_kernel()), task.ranges, 1, y.channels, 16, {0, 0, 0, 14}};
}

static Way way_named(const std::string& name, Isa isa, const Planes& task, int32_t rows, int32_t columns) {
    if (name == "tiles") return tiles_way(isa, task, rows, columns);
    if (name == "runs") return runs_way(isa, task, rows);
    if (name == "held") return held_way(isa, task, rows);
    if (name == "unfolded") return unfolded_way(isa, task);
    throw std::invalid_argument("there is no way '" + name + "'. There are: tiles, runs, held, unfolded");
}

static void check_shapes(const Planes& task) {
    const Place &x = task.x, &y = task.y;
    want(x.height == y.height && x.width == y.width && x.lanes == y.lanes,
         "x and y want the same height, width and lanes");
    want(task.parts >= 1 && task.parts <= x.channels, "parts are 1 to the channels of x");
    want(task.ranges >= 1 && task.ranges <= y.channels, "ranges are 1 to the channels of y");
    want(std::max({x.channels, y.channels, y.height, y.width, y.lanes}) <= MANY, "x or y is too large");
}

// A kernel of the held way names an output of its range, all others a channel of x.
static void check_sources(const Planes& task, const Way& way, bool held, size_t kernels) {
    lists(task.start, size_t(way.groups * (way.lists + 1)), int64_t(kernels), "start");
    if (!held) return all_within(task.source, kernels, 0, task.x.channels, "source");
    for (int32_t range = 0; range < task.ranges; range++) {
        const int32_t* start = task.start + range * (way.lists + 1);
        const int64_t outputs = task.first_output(range + 1) - task.first_output(range);
        all_within(task.source + start[0], size_t(start[way.lists] - start[0]), 0, outputs, "source");
    }
}

static Step planes(const std::string& isa, const std::string& name, const Place& x, const Place& y, nb::object start,
                   nb::object source, nb::object weight, nb::object bias, float low, float high,
                   std::optional<Place> residual, int32_t rows, int32_t columns, int32_t parts, int32_t ranges) {
    Planes task{x, y, residual.value_or(Place{}), nullptr, nullptr, nullptr, nullptr, low, high, parts, ranges};
    reach(x, "x");
    int64_t bytes = reach(y, "y");
    check_shapes(task);
    const Way way = way_named(name, isa_named(isa), task, rows, columns);
    want(way.chunks <= MANY, "too many chunks");
    Margin whole_registers;
    whole_registers.right = name == "tiles" ? 0 : way.read.right;
    bytes = std::max({bytes, reach(x, "x", way.read), reach(y, "y", whole_registers)});
    if (residual) {
        same_shape(*residual, y, "residual");
        bytes = std::max(bytes, reach(*residual, "residual", whole_registers));
    }
    const size_t kernels = nb::len(source);
    const auto [starts, start_copy] = frozen(start, size_t(way.groups * (way.lists + 1)), "start");
    const auto [sources, source_copy] = frozen(source, kernels, "source");
    task.start = starts;
    task.source = sources;
    task.weight = elements<float>(weight, kernels * size_t(way.taps), "weight");
    task.bias = elements<float>(bias, size_t(y.channels), "bias");
    check_sources(task, way, name == "held", kernels);
    return step(way.kernel, task, int32_t(way.chunks), bytes, {start_copy, source_copy, weight, bias});
}

static void bind(nb::module_& m) {
    m.def("planes", planes, nb::kw_only(), "isa"_a, "way"_a, "x"_a, "y"_a, "start"_a, "source"_a, "weight"_a, "bias"_a,
          "low"_a, "high"_a, "residual"_a = nb::none(), "rows"_a = 1, "columns"_a = 1, "parts"_a = 1, "ranges"_a = 1);
}

static const Binding binding(bind);

}  // namespace synaptree
