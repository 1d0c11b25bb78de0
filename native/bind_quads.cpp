#include <nanobind/stl/string.h>

#include <algorithm>

#include "quads.h"
#include "steps.h"

namespace synaptree {
using namespace nb::literals;

namespace {

constexpr int64_t LINE = 64;
constexpr int32_t CHUNK = 16;

template <class T> using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void demand(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

int32_t whole(int64_t count, int64_t of) { return int32_t((count + of - 1) / of); }

// Every row of every block has an even number of quads, which lie within the block.
void demand_quads(const Quads& task, int64_t starts, int64_t entries, int64_t weights) {
    const int64_t rows = task.layer.rows, blocks = whole(task.quads, task.block_quads), quad = task.vectors * LINE;
    const int64_t *first = task.starts, *last = first + starts;
    demand(starts == blocks * rows + 1 && *first == 0 && std::is_sorted(first, last), "the starts rise from 0");
    demand(last[-1] == entries && weights == entries, "every quad has an offset and weights");
    demand(std::all_of(first, last, [](int64_t start) { return start % 2 == 0; }), "quads come in pairs");
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t end = std::min<int64_t>(task.block_quads, task.quads - block * task.block_quads) * quad;
        const auto within = [&](uint16_t offset) { return offset % quad == 0 && offset < end; };
        const uint16_t* offsets = task.offsets;
        demand(std::all_of(offsets + first[block * rows], offsets + first[(block + 1) * rows], within),
               "a quad lies within its block");
    }
}

// The end of all that the step touches.
int64_t end_of(const Quads& task) {
    const LayerInt8& layer = task.layer;
    const int64_t last = layer.samples - 1, rows = int64_t(whole(layer.rows, CHUNK)) * CHUNK;
    const int64_t x = layer.x.at + last * layer.x.pitch + int64_t(whole(task.quads, 4)) * 16;
    const int64_t y = layer.y.at + (last * layer.y.pitch + layer.rows) * (layer.to_bytes ? 1 : 4);
    return std::max({x, y, task.sums + rows * task.vectors * LINE, layer.scale_at + 4});
}

Step quads(const std::string& isa, int64_t x, int64_t x_pitch, int64_t sums, int64_t y, int64_t y_pitch, bool to_bytes,
           int32_t rows, int32_t inputs, int32_t samples, int32_t vectors, float scale, int64_t scale_at, float inverse,
           float low, float high, Vector<float> bias, Vector<float> scales, Vector<int32_t> excess, int32_t block_quads,
           Vector<int64_t> starts, Vector<uint16_t> offsets, Vector<int32_t> weights) {
    demand(vectors >= 1 && vectors <= 4, "1 to 4 registers hold the samples");
    demand(samples >= 1 && samples <= vectors * 16, "a register holds up to 16 samples");
    demand(rows > 0 && inputs > 0, "there are rows and inputs");
    demand(block_quads > 0 && block_quads % 4 == 0 && block_quads <= QUADS_BLOCK_BYTES / (vectors * LINE),
           "a block is 4 quads or a multiple of them, at most 32 KiB");
    demand(x >= 0 && x_pitch >= 0, "the inputs lie in the arena");
    demand(sums >= 0 && sums % LINE == 0, "sums lie at whole lines of the arena");
    demand(y >= 0 && (to_bytes || y % 4 == 0) && y_pitch >= rows, "rows of outputs lie in the arena, apart");
    demand(scale_at < 0 || scale_at % 4 == 0, "a scale lies at a whole float");
    const int32_t chunks = whole(rows, CHUNK);
    const size_t filled = size_t(chunks) * CHUNK;
    demand(bias.size() == filled && scales.size() == filled && excess.size() == filled, "the rows fill whole chunks");
    const LayerInt8 layer{{x, x_pitch}, {y, y_pitch}, to_bytes, rows, samples, scale, scale_at, inverse, low, high,
                          bias.data(), scales.data(), excess.data(), nullptr};
    const Quads task{layer,          sums,           vectors, whole(inputs, 4), block_quads, starts.data(),
                     offsets.data(), weights.data()};
    demand_quads(task, int64_t(starts.size()), int64_t(offsets.size()), int64_t(weights.size()));
    const Kernel kernel = SYNAPTREE_PICK(isa_named(isa), quads_kernel());
    return step(kernel, task, chunks, end_of(task),
                {nb::cast(bias), nb::cast(scales), nb::cast(excess), nb::cast(starts), nb::cast(offsets),
                 nb::cast(weights)});
}

void bind(nb::module_& m) {
    m.def("quads", quads, "isa"_a, nb::kw_only(), "x"_a, "x_pitch"_a, "sums"_a, "y"_a, "y_pitch"_a, "to_bytes"_a,
          "rows"_a, "inputs"_a, "samples"_a, "vectors"_a, "scale"_a, "scale_at"_a, "inverse"_a, "low"_a, "high"_a,
          "bias"_a.noconvert(), "scales"_a.noconvert(), "excess"_a.noconvert(), "block_quads"_a,
          "starts"_a.noconvert(), "offsets"_a.noconvert(), "weights"_a.noconvert());
}

const Binding binding(bind);

}  // namespace
}  // namespace synaptree
