#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include <algorithm>

#include "simple.h"
#include "steps.h"

namespace synaptree {
using namespace nb::literals;

namespace {

void want(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

bool alike(const Place& a, const Place& b) {
    return a.channels == b.channels && a.height == b.height && a.width == b.width && a.lanes == b.lanes;
}

// A copy of so many numbers, which nobody can change after they have been checked.
template <class T> const T* kept(const Array<T>& array, int64_t count, std::vector<nb::object>& keep) {
    want(array.ndim() == 1 && int64_t(array.shape(0)) == count, "wanted one number per channel, row or column");
    keep.push_back(nb::bytes(array.data(), size_t(count) * sizeof(T)));
    return static_cast<const T*>(static_cast<nb::bytes&>(keep.back()).data());
}

Step sum_step(const std::string& isa, const std::vector<const Place*>& xs, const Place& y, float low, float high) {
    want(!xs.empty() && xs.size() <= 8, "sum: wanted one to eight values");
    Place places[9] = {y};
    Lines lines[9];
    int64_t end = extent(y);
    for (size_t i = 0; i < xs.size(); i++) {
        want(xs[i] && alike(*xs[i], y), "sum: wanted values of one shape and as many lanes");
        places[i + 1] = *xs[i];
        end = std::max(end, extent(*xs[i]));
    }
    Sum task{};
    task.runs = runs(places, int(xs.size()) + 1, lines, true, low <= 0 && high >= 0);
    task.y = lines[0];
    std::copy(lines + 1, lines + 1 + xs.size(), task.x);
    task.count = int32_t(xs.size());
    task.low = low;
    task.high = high;
    return step(SYNAPTREE_PICK(isa_named(isa), sum_kernel()), task, task.runs.planes, end, {});
}

bool side_by_side(const Place& place) {
    return place.height == 1 && place.width == 1 && place.lanes == 1 && place.plane == 1;
}

// `through`: what gives 0 for 0 may run over the borders between rows.
Step scaling_step(Kernel kernel, const Place& x, const Place& y, const Array<float>& scale, const Array<float>& shift,
                  float low, float high, bool through) {
    want(alike(x, y), "wanted values of one shape and as many lanes");
    std::vector<nb::object> keep;
    Scaling task{};
    const Place places[] = {x, y};
    Lines lines[2];
    task.along = side_by_side(x) && side_by_side(y);
    task.runs = runs(places, 2, lines, task.along, through);
    task.x = lines[0];
    task.y = lines[1];
    task.scale = kept(scale, x.channels, keep);
    task.shift = kept(shift, x.channels, keep);
    task.low = low;
    task.high = high;
    return step(kernel, task, task.runs.planes, std::max(extent(x), extent(y)), std::move(keep));
}

Step affine_step(const std::string& isa, const Place& x, const Place& y, const Array<float>& scale,
                 const Array<float>& shift, float low, float high) {
    return scaling_step(SYNAPTREE_PICK(isa_named(isa), affine_kernel()), x, y, scale, shift, low, high, false);
}

Step leaky_step(const std::string& isa, const Place& x, const Place& y, const Array<float>& slope) {
    return scaling_step(SYNAPTREE_PICK(isa_named(isa), leaky_kernel()), x, y, slope, slope, 0, 0, true);
}

// The longest run of windows of the largest size that follow one another evenly.
void find_alike(Windows& windows, int32_t outputs) {
    const int32_t* counts = windows.counts;
    windows.count = *std::max_element(counts, counts + outputs);
    windows.first = int32_t(std::max_element(counts, counts + outputs) - counts);
    windows.last = windows.first + 1;
    windows.stride = 1;
    if (windows.last < outputs && counts[windows.last] == windows.count)
        windows.stride = windows.starts[windows.last] - windows.starts[windows.first];
    while (windows.last < outputs && counts[windows.last] == windows.count &&
           windows.starts[windows.last] - windows.starts[windows.last - 1] == windows.stride)
        windows.last++;
    const bool quick = windows.stride == 1 || windows.stride == 2 || windows.stride == 4;
    if (!quick || windows.last - windows.first < 3) windows.last = windows.first = 0;
}

Windows windows_of(const Array<int32_t>& starts, const Array<int32_t>& counts, const Array<float>& shares,
                   int32_t dilation, int32_t inputs, int32_t outputs, std::vector<nb::object>& keep) {
    want(dilation >= 1, "pool: wanted a dilation of at least 1");
    Windows windows{};
    windows.starts = kept(starts, outputs, keep);
    windows.counts = kept(counts, outputs, keep);
    windows.shares = kept(shares, outputs, keep);
    windows.dilation = dilation;
    for (int32_t o = 0; o < outputs; o++) {
        const int64_t start = windows.starts[o], count = windows.counts[o];
        const int64_t last = start + (std::max<int64_t>(count, 1) - 1) * dilation;
        want(start >= 0 && count >= 0 && last < inputs, "pool: a window reaches out of the value");
    }
    find_alike(windows, outputs);
    return windows;
}

Step pool_step(const std::string& isa, const std::string& kind, const Place& x, const Place& y,
               const Array<int32_t>& row_starts, const Array<int32_t>& row_counts, const Array<float>& row_shares,
               const Array<int32_t>& column_starts, const Array<int32_t>& column_counts,
               const Array<float>& column_shares, std::pair<int, int> dilation, float low, float high) {
    want(kind == "max" || kind == "avg", "pool: wanted kind max or avg");
    want(x.channels == y.channels && x.lanes == y.lanes, "pool: wanted as many channels and lanes");
    std::vector<nb::object> keep;
    const auto [down, right] = dilation;
    const Windows rows = windows_of(row_starts, row_counts, row_shares, down, x.height, y.height, keep);
    const Windows columns = windows_of(column_starts, column_counts, column_shares, right, x.width, y.width, keep);
    const Isa wanted = isa_named(isa);
    const Kernel largest = SYNAPTREE_PICK(wanted, max_pool_kernel()), mean = SYNAPTREE_PICK(wanted, avg_pool_kernel());
    constexpr int64_t registers = 4 * 64;  // read from the last element on
    const int64_t end = std::max(extent(x) + registers, extent(y));
    return step(kind == "max" ? largest : mean, Pool{x, y, rows, columns, low, high}, y.channels, end, std::move(keep));
}

Step softmax_step(const std::string& isa, const Place& x, const Place& y, bool log) {
    want(alike(x, y), "softmax: wanted values of one shape and as many lanes");
    const Isa wanted = isa_named(isa);
    const bool along = side_by_side(x) && side_by_side(y);
    const Kernel beside = SYNAPTREE_PICK(wanted, softmax_along_kernel());
    const Kernel apart = SYNAPTREE_PICK(wanted, softmax_kernel());
    return step(along ? beside : apart, Softmax{x, y, log}, along ? 1 : x.height, std::max(extent(x), extent(y)), {});
}

Step shortcut_step(const std::string& isa, const Place& x, const Place& y, const Array<float>& scale, int offset,
                   int stride, std::optional<Place> z, float low, float high) {
    const auto thinned = [&](int32_t size) { return (int64_t(size) + stride - 1) / stride; };
    want(stride >= 1 && x.lanes == y.lanes && y.height == thinned(x.height) && y.width == thinned(x.width),
         "shortcut: wanted every stride-th row and column of x, and as many lanes");
    want(offset > -(1 << 30) && offset < (1 << 30), "shortcut: no such offset");
    want(!z || alike(*z, y), "shortcut: wanted a sum of values of one shape and as many lanes");
    std::vector<nb::object> keep;
    const Shortcut task{x, y, z.value_or(y), kept(scale, y.channels, keep), offset, stride, bool(z), low, high};
    constexpr int64_t registers = 2 * 64;  // read from the last element on
    const int64_t end = std::max({extent(x) + registers, extent(y), extent(task.z)});
    return step(SYNAPTREE_PICK(isa_named(isa), shortcut_kernel()), task, y.channels, end, std::move(keep));
}

void bind(nb::module_& m) {
    m.def("sum", sum_step, "isa"_a, "x"_a, "y"_a, "low"_a, "high"_a);
    m.def("affine", affine_step, "isa"_a, "x"_a, "y"_a, "scale"_a, "shift"_a, "low"_a, "high"_a);
    m.def("leaky", leaky_step, "isa"_a, "x"_a, "y"_a, "slope"_a);
    m.def("pool", pool_step, "isa"_a, "kind"_a, "x"_a, "y"_a, "row_starts"_a, "row_counts"_a, "row_shares"_a,
          "column_starts"_a, "column_counts"_a, "column_shares"_a, "dilation"_a, "low"_a, "high"_a);
    m.def("softmax", softmax_step, "isa"_a, "x"_a, "y"_a, "log"_a);
    m.def("shortcut", shortcut_step, "isa"_a, "x"_a, "y"_a, "scale"_a, "offset"_a, "stride"_a, "z"_a.none(), "low"_a,
          "high"_a);
}

const Binding binding(bind);

}  // namespace
}  // namespace synaptree
