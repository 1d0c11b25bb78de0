#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <optional>

#include "lookup.h"
#include "lookup_int8.h"
#include "steps.h"

namespace synaptree {
using namespace nb::literals;

template <class T> using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Order = std::optional<Vector<int32_t>>;

static void demand(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

// Positions, none twice and none negative; returns how far they reach.
static int64_t reach_of(const Order& order, int64_t rows) {
    if (!order) return rows;
    demand(int64_t(order->size()) == rows, "order has one position for every row");
    std::vector<int32_t> sorted(order->data(), order->data() + rows);
    std::sort(sorted.begin(), sorted.end());
    demand(sorted.empty() || sorted.front() >= 0, "a position of an output is not negative");
    demand(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end(), "no two rows share an output");
    return sorted.empty() ? 0 : int64_t(sorted.back()) + 1;
}

static void demand_rising(const Vector<int64_t>& starts, int64_t end, const char* what) {
    const int64_t *first = starts.data(), *last = first + starts.size();
    demand(first < last && *first == 0 && std::is_sorted(first, last) && last[-1] <= end, what);
}

static void demand_columns(const Vector<int32_t>& columns, int32_t width) {
    const auto within = [&](int32_t column) { return column >= 0 && column < width; };
    demand(std::all_of(columns.data(), columns.data() + columns.size(), within), "a column lies within the input");
}

// What every way to look up has: parts of fours, and where each look adds to. Returns the number of looks.
static int64_t looks_of(const Vector<int64_t>& fours, const Vector<uint16_t>& sums, int64_t parts, int32_t groups) {
    demand(int64_t(fours.size()) == parts + 1, "every block, tile and span has a first four");
    demand_rising(fours, int64_t(sums.size()) / 4, "the fours rise, within the sums");
    const int64_t looks = fours.data()[parts] * 4;
    const auto within = [&](uint16_t sum) { return sum % 16 == 0 && sum <= groups * 16; };
    demand(int64_t(sums.size()) == looks && std::all_of(sums.data(), sums.data() + looks, within),
           "every look adds to a group of its block");
    return looks;
}

static int64_t blocks_of(int64_t rows, int64_t groups) { return (rows + groups * 16 - 1) / (groups * 16); }

template <class T> static const T* pointer(const std::optional<Vector<T>>& array) {
    return array ? array->data() : nullptr;
}

template <class... Arrays> static std::vector<nb::object> keep(const Arrays&... arrays) {
    return {nb::cast(arrays)...};
}

static void demand_place(int64_t x, int64_t y) {
    demand(x >= 0 && y >= 0 && x % 4 == 0 && y % 4 == 0, "a value lies in the arena, at whole floats");
}

// The kept values of a block begin at kept[block]; there are as many as its index has bits that say so.
static void demand_kept(const Lookup& task, int64_t blocks, int64_t values) {
    for (int64_t block = 0; block < blocks; block++) {
        const uint8_t* first = task.index + 64 * task.fours[block * task.tiles * SPANS];
        const uint8_t* last = task.index + 64 * task.fours[(block + 1) * task.tiles * SPANS];
        const int64_t count = std::count_if(first, last, [](uint8_t byte) { return byte >= 128; });
        demand(task.kept[block] >= 0 && task.kept[block] + count <= values, "the index names too many values");
    }
}

static Step lookup(const std::string& isa, int64_t x, int64_t y, int32_t width, int32_t rows, int32_t tiles,
                   int32_t groups, float low, float high, Vector<float> bias, Order order, Vector<int64_t> fours,
                   Vector<uint16_t> sums, Vector<uint8_t> index, Vector<float> values,
                   std::optional<Vector<int64_t>> kept) {
    const Kernel kernel = SYNAPTREE_PICK(isa_named(isa), lookup_kernel(width, kept.has_value()));
    demand(kernel, "registers look up in tiles of 32, 64 or 128 inputs, with AVX-512");
    demand_place(x, y);
    demand(rows > 0 && tiles > 0 && groups > 0 && groups <= MOST_GROUPS,
           "rows, tiles and groups are positive, groups at most 64");
    const int64_t blocks = blocks_of(rows, groups), looks = looks_of(fours, sums, blocks * tiles * SPANS, groups);
    demand(int64_t(bias.size()) == blocks * groups * 16, "bias fills whole blocks");
    demand(int64_t(index.size()) == looks * 16, "every look has an index");
    const int64_t reach = reach_of(order, rows);
    const Lookup task{x, y, rows, tiles, groups, low, high, bias.data(), pointer(order), fours.data(), sums.data(),
                      index.data(), values.data(), pointer(kept)};
    if (kept) {
        demand(int64_t(kept->size()) == blocks, "every block has a first value");
        demand_kept(task, blocks, int64_t(values.size()));
    } else {
        demand(int64_t(values.size()) == looks * 16, "there is a value for every place of a look");
    }
    const int64_t bytes = std::max(x + int64_t(tiles) * width * 4, y + reach * 4);
    return step(kernel, task, int32_t(blocks), bytes, keep(bias, order, fours, sums, index, values, kept));
}

static Step compressed(const std::string& isa, int64_t x, int64_t y, int32_t rows, int32_t width, float low, float high,
                       Vector<float> bias, Order order, Vector<int64_t> starts, Vector<int32_t> columns,
                       Vector<float> values) {
    demand_place(x, y);
    demand(rows > 0 && width > 0, "there are rows and columns");
    demand(int64_t(bias.size()) == rows && int64_t(starts.size()) == int64_t(rows) + 1, "rows have a bias and a start");
    demand(columns.size() == values.size(), "every connection has a column and a value");
    demand_rising(starts, int64_t(values.size()), "the starts rise, within the values");
    demand_columns(columns, width);
    const int64_t bytes = std::max(x + int64_t(width) * 4, y + reach_of(order, rows) * 4);
    const Compressed task{x, y, rows, low, high, bias.data(), pointer(order), starts.data(), columns.data(),
                          values.data()};
    return step(SYNAPTREE_PICK(isa_named(isa), compressed_kernel()), task, (rows + CHUNK_ROWS - 1) / CHUNK_ROWS, bytes,
                keep(bias, order, starts, columns, values));
}

// ---- bytes

// What both ways to store a layer share, and its arrays.
struct Layer {
    LayerInt8 task;
    int64_t filled;  // rows that its arrays have
    int64_t reach;   // of its outputs
    std::vector<nb::object> arrays;
};

static Layer layer_int8(RowsAt x, RowsAt y, bool to_bytes, int32_t rows, int32_t samples, float scale, int64_t scale_at,
                        float inverse, float low, float high, Vector<float> bias, Vector<float> scales,
                        Vector<int32_t> excess, Order order) {
    demand(rows > 0 && samples > 0, "there are rows and samples");
    demand(x.at >= 0 && x.pitch >= 0 && y.at >= 0 && (to_bytes || y.at % 4 == 0), "a value lies in the arena");
    demand(scale_at < 0 || scale_at % 4 == 0, "a scale lies at a whole float");
    const int64_t filled = int64_t(bias.size()), reach = reach_of(order, rows);
    demand(int64_t(scales.size()) == filled && int64_t(excess.size()) == filled, "rows have a scale and an excess");
    demand(y.pitch >= reach, "the outputs of a sample end before those of the next");
    const LayerInt8 task{x,   y,    to_bytes,    rows,          samples,       scale,         scale_at, inverse,
                         low, high, bias.data(), scales.data(), excess.data(), pointer(order)};
    return {task, filled, reach, keep(bias, scales, excess, order)};
}

// The end of what a layer touches that reads `width` bytes of a sample.
static int64_t end_of(const Layer& layer, int64_t width) {
    const LayerInt8& task = layer.task;
    const int64_t last = task.samples - 1;
    const int64_t y = task.y.at + (last * task.y.pitch + layer.reach) * (task.to_bytes ? 1 : 4);
    return std::max({task.x.at + last * task.x.pitch + width, y, task.scale_at + 4});
}

static std::vector<nb::object> operator+(std::vector<nb::object> some, const std::vector<nb::object>& others) {
    some.insert(some.end(), others.begin(), others.end());
    return some;
}

static Step lookup_int8(const std::string& isa, const Layer& layer, int32_t width, int32_t tiles, int32_t groups,
                        Vector<int64_t> fours, Vector<uint16_t> sums, Vector<uint8_t> index, Vector<int8_t> values) {
    const Kernel kernel = SYNAPTREE_PICK(isa_named(isa), lookup_int8_kernel(width));
    demand(kernel, "registers look up in tiles of 64, 128 or 256 bytes, with AVX-512");
    demand(tiles > 0 && groups > 0 && groups <= MOST_GROUPS_INT8, "tiles and groups are positive, groups at most 32");
    const int64_t blocks = blocks_of(layer.task.rows, groups);
    const int64_t looks = looks_of(fours, sums, blocks * tiles * SPANS, groups);
    demand(layer.filled == blocks * groups * 16, "the rows fill whole blocks");
    demand(int64_t(index.size()) == looks * 64 && int64_t(values.size()) == looks * 64, "a look has 64 of each");
    const LookupInt8 task{layer.task, tiles, groups, fours.data(), sums.data(), index.data(), values.data()};
    return step(kernel, task, int32_t(blocks), end_of(layer, int64_t(tiles) * width),
                layer.arrays + keep(fours, sums, index, values));
}

static Step compressed_int8(const std::string& isa, const Layer& layer, int32_t width, Vector<int64_t> starts,
                            Vector<int32_t> columns, Vector<int8_t> values) {
    const int32_t rows = layer.task.rows, chunks = (rows + 15) / 16;
    demand(width > 0 && layer.filled == int64_t(chunks) * 16, "there are columns, and the rows fill whole chunks");
    demand(int64_t(starts.size()) == int64_t(rows) + 1, "every row has a start");
    demand(columns.size() == values.size(), "every connection has a column and a value");
    demand_rising(starts, int64_t(values.size()), "the starts rise, within the values");
    demand_columns(columns, width);
    const CompressedInt8 task{layer.task, starts.data(), columns.data(), values.data()};
    return step(SYNAPTREE_PICK(isa_named(isa), compressed_int8_kernel()), task, chunks, end_of(layer, width),
                layer.arrays + keep(starts, columns, values));
}

static void bind(nb::module_& m) {
    m.def("lookup", lookup, "isa"_a, nb::kw_only(), "x"_a, "y"_a, "width"_a, "rows"_a, "tiles"_a, "groups"_a, "low"_a,
          "high"_a, "bias"_a.noconvert(), "order"_a.noconvert().none(), "fours"_a.noconvert(), "sums"_a.noconvert(),
          "index"_a.noconvert(), "values"_a.noconvert(), "kept"_a.noconvert().none());
    m.def("compressed", compressed, "isa"_a, nb::kw_only(), "x"_a, "y"_a, "rows"_a, "width"_a, "low"_a, "high"_a,
          "bias"_a.noconvert(), "order"_a.noconvert().none(), "starts"_a.noconvert(), "columns"_a.noconvert(),
          "values"_a.noconvert());
    nb::class_<Layer>(m, "LayerInt8")
        .def(
            "__init__",
            [](Layer* self, int64_t x, int64_t x_pitch, int64_t y, int64_t y_pitch, bool to_bytes, int32_t rows,
               int32_t samples, float scale, int64_t scale_at, float inverse, float low, float high, Vector<float> bias,
               Vector<float> scales, Vector<int32_t> excess, Order order) {
                new (self) Layer(layer_int8({x, x_pitch}, {y, y_pitch}, to_bytes, rows, samples, scale, scale_at,
                                            inverse, low, high, bias, scales, excess, order));
            },
            nb::kw_only(), "x"_a, "x_pitch"_a, "y"_a, "y_pitch"_a, "to_bytes"_a, "rows"_a, "samples"_a, "scale"_a,
            "scale_at"_a, "inverse"_a, "low"_a, "high"_a, "bias"_a.noconvert(), "scales"_a.noconvert(),
            "excess"_a.noconvert(), "order"_a.noconvert().none());
    m.def("lookup_int8", lookup_int8, "isa"_a, "layer"_a, nb::kw_only(), "width"_a, "tiles"_a, "groups"_a,
          "fours"_a.noconvert(), "sums"_a.noconvert(), "index"_a.noconvert(), "values"_a.noconvert());
    m.def("compressed_int8", compressed_int8, "isa"_a, "layer"_a, nb::kw_only(), "width"_a, "starts"_a.noconvert(),
          "columns"_a.noconvert(), "values"_a.noconvert());
}

static const Binding binding(bind);

}  // namespace synaptree
