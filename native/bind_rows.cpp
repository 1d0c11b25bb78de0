#include <nanobind/stl/string.h>

#include <algorithm>
#include <limits>

#include "rows.h"
#include "steps.h"

namespace synaptree {
using namespace nb::literals;

namespace {

constexpr int64_t FAR = int64_t(1) << 40;  // no arena is so large, and sums of a few such numbers do not overflow

constexpr int64_t FAR_BYTES = int64_t(1) << 20;  // of offsets and values that are fetched ahead of their use

void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

bool near(int64_t number) { return number > -FAR && number < FAR; }

// Floats that are touched, [least, most).
struct Span {
    int64_t least = std::numeric_limits<int64_t>::max(), most = std::numeric_limits<int64_t>::min();
    void add(int64_t from, int64_t floats) {
        least = std::min(least, from);
        most = std::max(most, from + floats);
    }
};

// Bytes of the arena's start that hold it.
int64_t bytes_of(int64_t at, const Span& span, int64_t least_byte, int64_t most_byte) {
    require(near(at) && at % 4 == 0, "a value starts at a multiple of 4 bytes");
    if (span.most < span.least) return 0;
    require(at + 4 * span.least + least_byte >= 0, "a tile or an offset lies before the arena's start");
    return at + 4 * span.most + most_byte;
}

void check_blocks(const Rows& task, int64_t blocks, int64_t visits, int64_t entries, int64_t outputs) {
    require(task.blocks[0].visit == 0 && task.blocks[0].entry == 0, "the first block starts at visit 0 and entry 0");
    const Block end = task.blocks[blocks];
    require(end.visit == visits && end.entry == entries, "the last block ends with the arrays");
    for (int64_t b = 0; b < blocks; b++) {
        const Block block = task.blocks[b], next = task.blocks[b + 1];
        require(block.visit <= next.visit && next.visit <= visits, "blocks follow one another");
        int64_t sum = block.entry;
        for (int64_t v = block.visit; v < next.visit; v++) {
            const Visit& visit = task.visits[v];
            require(visit.entries >= 0, "a visit has 0 entries or more");
            require(visit.live >= 1 && visit.live <= task.rows, "a visit has 1 to `rows` live rows");
            require(visit.output >= 0 && visit.output <= outputs - visit.live, "a visit's outputs must have a bias");
            sum += visit.entries;
        }
        require(sum == next.entry, "the entries of a block's visits fill the block");
    }
}

// Bytes of the arena that the step touches.
int64_t check_tiles(
    const Rows& task, int64_t tiles, int64_t masks, int64_t entries, int64_t outputs, int32_t most_vectors) {
    Span x, y, residual;
    for (int64_t i = 0; i < tiles; i++) {
        const Tile& tile = task.tiles[i];
        require(tile.vectors >= 1 && tile.vectors <= most_vectors, "a tile has too many vectors, or none");
        require(tile.masks >= 0 && tile.masks <= masks - tile.vectors, "a tile has a mask for each vector");
        require(near(tile.x) && near(tile.y) && near(tile.residual), "a tile is too far away");
        x.add(tile.x, (tile.vectors - 1) * task.x_step + 16);
        y.add(tile.y, (tile.vectors - 1) * task.y_step + 16 + (outputs - 1) * task.y_plane);
        const int64_t last = (tile.vectors - 1) * task.residual_step + (outputs - 1) * task.residual_plane;
        residual.add(tile.residual, last + 16);
    }
    const auto [least, most] = std::minmax_element(task.offsets, task.offsets + entries);
    int64_t bytes = bytes_of(task.y, y, 0, 0);
    if (entries) bytes = std::max(bytes, bytes_of(task.x, x, *least, *most));
    if (task.residual >= 0) bytes = std::max(bytes, bytes_of(task.residual, residual, 0, 0));
    return bytes;
}

Step rows(const std::string& isa_name, Array<float> values, Array<int32_t> offsets, Array<int32_t> visits,
          Array<int64_t> blocks, Array<int64_t> tiles, Array<uint16_t> masks, Array<float> bias, int64_t x, int64_t y,
          int64_t residual, int64_t x_step, int64_t y_step, int64_t residual_step, int64_t y_plane,
          int64_t residual_plane, int32_t unroll, int32_t parts, float low, float high) {
    require(values.ndim() == 2 && offsets.ndim() == 1 && values.shape(0) == offsets.shape(0),
            "values are entries x rows, offsets entries");
    require(visits.ndim() == 2 && visits.shape(1) == 3, "visits are (output, live, entries)");
    require(blocks.ndim() == 2 && blocks.shape(1) == 2 && blocks.shape(0) >= 2, "blocks are (visit, entry) and an end");
    require(tiles.ndim() == 2 && tiles.shape(1) == 5 && tiles.shape(0) >= 1,
            "tiles are (x, y, residual, vectors, masks)");
    require(masks.ndim() == 1 && bias.ndim() == 1 && bias.shape(0) >= 1, "masks and bias are flat, neither empty");
    const Isa isa = isa_named(isa_name);
    const int32_t rows = int32_t(std::min<size_t>(values.shape(1), 99));
    const int32_t most_vectors = SYNAPTREE_PICK(isa, rows_most_vectors(rows));
    require(most_vectors > 0, "a group has 1, 2, 4, 6 or 8 rows, as many as there are registers for");
    const int64_t count = int64_t(blocks.shape(0)) - 1, n_tiles = int64_t(tiles.shape(0));
    const int64_t entries = int64_t(offsets.shape(0)), outputs = int64_t(bias.shape(0));
    require(parts >= 1 && count % parts == 0, "blocks are ranges x parts");
    require(n_tiles * (count / parts) <= std::numeric_limits<int32_t>::max(), "too many tiles");
    for (const int64_t step : {x_step, y_step, residual_step, y_plane, residual_plane})
        require(step >= 0 && step < (int64_t(1) << 31), "a step between floats is too large or negative");
    const Rows task{values.data(), offsets.data(), reinterpret_cast<const Visit*>(visits.data()),
                    reinterpret_cast<const Block*>(blocks.data()), reinterpret_cast<const Tile*>(tiles.data()),
                    masks.data(), bias.data(), x, y, residual, x_step, y_step, residual_step, y_plane, residual_plane,
                    rows, unroll, parts, int32_t(count / parts), low, high, entries * (rows + 1) * 4 > FAR_BYTES};
    check_blocks(task, count, int64_t(visits.shape(0)), entries, outputs);
    const int64_t bytes = check_tiles(task, n_tiles, int64_t(masks.shape(0)), entries, outputs, most_vectors);
    return step(SYNAPTREE_PICK(isa, rows_kernel()), task, int32_t(n_tiles) * task.ranges, bytes,
                {values.cast(), offsets.cast(), visits.cast(), blocks.cast(), tiles.cast(), masks.cast(), bias.cast()});
}

void bind(nb::module_& m) {
    m.def("rows", rows, "isa"_a, nb::kw_only(), "values"_a.noconvert(), "offsets"_a.noconvert(),
          "visits"_a.noconvert(), "blocks"_a.noconvert(), "tiles"_a.noconvert(), "masks"_a.noconvert(),
          "bias"_a.noconvert(), "x"_a, "y"_a, "residual"_a, "x_step"_a, "y_step"_a, "residual_step"_a, "y_plane"_a,
          "residual_plane"_a, "unroll"_a, "parts"_a, "low"_a, "high"_a);
    m.def("rows_most_vectors", [](const std::string& isa, int32_t rows) {
        return SYNAPTREE_PICK(isa_named(isa), rows_most_vectors(rows));
    }, "isa"_a, "rows"_a);
}

const Binding binding(bind);

}  // namespace
}  // namespace synaptree
