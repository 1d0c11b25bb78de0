#include <nanobind/stl/pair.h>

#include <algorithm>

#include "moves.h"
#include "steps.h"

namespace synaptree {
using namespace nb::literals;

int64_t extent(const Place& place) {
    const int64_t last_row = (place.channels - 1) * place.plane + (place.height - 1) * place.pitch;
    return place.at + 4 * (last_row + int64_t(place.width) * place.lanes);
}

Runs runs(const Place* places, int count, Lines* lines, bool merge, bool through) {
    const Place& one = places[0];
    const auto all = [&](auto holds) { return std::all_of(places, places + count, holds); };
    const int64_t row = int64_t(one.width) * one.lanes;
    Runs found{one.channels, one.height, row, row};
    if (all([&](const Place& place) { return place.pitch == row; })) {
        found.rows = 1;
        found.length = one.height * row;
    } else if (through && one.lanes == 1 && all([&](const Place& place) { return place.pitch == one.pitch; })) {
        found.rows = 1;
        found.length = (one.height - 1) * one.pitch + row;
    }
    found.last = found.length;
    for (int i = 0; i < count; i++) lines[i] = {places[i].at, places[i].plane, places[i].pitch};
    if (merge && found.rows == 1 && all([&](const Place& place) { return place.plane == found.length; })) {
        const int64_t whole = one.channels * found.length, piece = 1024;
        found.planes = int32_t((whole + piece - 1) / piece);
        found.length = piece;
        found.last = whole - (found.planes - 1) * piece;
        for (int i = 0; i < count; i++) lines[i].plane = piece;
    }
    return found;
}

static void check(const Place& place) {
    constexpr int64_t most = int64_t(1) << 40;
    const auto within = [](int64_t value, int64_t low) { return value >= low && value < most; };
    const bool lanes = place.lanes == 1 || (place.lanes > 0 && place.lanes % 16 == 0);
    if (place.channels < 1 || place.height < 1 || place.width < 1 || !lanes || !within(place.at, 0) || place.at % 4)
        throw std::invalid_argument("a place has elements, lanes of 1 or a multiple of 16, and begins at a float");
    const __int128 row = __int128(place.width) * place.lanes, plane = (place.height - 1) * __int128(place.pitch) + row;
    const bool apart = (place.height == 1 || place.pitch >= row) && (place.channels == 1 || place.plane >= plane);
    if (!within(place.pitch, 0) || !within(place.plane, 0) || !apart)
        throw std::invalid_argument("the rows or the channels of a place overlap");
    if (place.at + 4 * ((place.channels - 1) * __int128(place.plane) + plane) >= most)
        throw std::invalid_argument("a place ends beyond any arena");
}

static bool flat(const Place& place) { return place.height == 1 && place.width == 1; }

// The features of a flat place from `first` on, as an image of so many channels.
static Place image_of(const Place& place, int64_t first, int32_t channels, const Place& like) {
    if (place.channels > 1 && place.plane != place.lanes)
        throw std::invalid_argument("wanted a flat place without borders");
    const int64_t pitch = int64_t(like.width) * place.lanes, at = place.at + 4 * first * place.plane;
    return {at, channels, like.height, like.width, place.lanes, like.height * pitch, pitch};
}

static Step copy_step(const std::string& isa, const Place& x, const Place& y, int64_t channel) {
    const char* fit = "copy: wanted a place with room for x from that channel on, and as many lanes";
    const int64_t area = int64_t(y.height) * y.width, taken = int64_t(x.height) * x.width;
    if (x.lanes != y.lanes || channel < 0 || channel > y.channels) throw std::invalid_argument(fit);
    Place from = x, to = y;
    if (flat(y) && !flat(x)) {
        if (x.channels * taken > y.channels - channel) throw std::invalid_argument(fit);
        to = image_of(y, channel, x.channels, x);
    } else {
        if (flat(x) && !flat(y)) {
            if (x.channels % area) throw std::invalid_argument(fit);
            from = image_of(x, 0, int32_t(x.channels / area), y);
        }
        if (from.height != y.height || from.width != y.width || from.channels > y.channels - channel)
            throw std::invalid_argument(fit);
        to.at += 4 * channel * y.plane;
        to.channels = from.channels;
    }
    const Place places[] = {from, to};
    Lines lines[2];
    const Runs shared = runs(places, 2, lines, true, true);
    return step(SYNAPTREE_PICK(isa_named(isa), copy_kernel()), Copy{shared, lines[0], lines[1]}, shared.planes,
                std::max(extent(from), extent(to)), {});
}

static Step split_step(const std::string& isa, const Place& x, const Place& y, std::pair<int, int> stride,
                       std::pair<int, int> padding) {
    const auto [stride_h, stride_w] = stride;
    const auto [top, left] = padding;
    const bool sane = stride_h > 0 && stride_w > 0 && stride_h < 256 && stride_w < 256 && top >= 0 && left >= 0 &&
                      top < (1 << 20) && left < (1 << 20);
    if (!sane || x.lanes != 1 || y.lanes != 1 || y.channels != int64_t(x.channels) * stride_h * stride_w)
        throw std::invalid_argument("split: wanted lanes of 1 and stride_h stride_w times the channels of x");
    constexpr int64_t registers = 4 * 64;  // read from the last element on
    return step(SYNAPTREE_PICK(isa_named(isa), split_kernel()), Split{x, y, stride_h, stride_w, top, left}, y.channels,
                std::max(extent(x) + registers, extent(y)), {});
}

// The order in which the caller has the features of one sample.
static Place dense(const Place& place) {
    const int64_t pitch = place.width;
    return {0, place.channels, place.height, place.width, 1, place.height * pitch, pitch};
}

// The same elements in longer rows, where one follows the other.
static Place unrolled(Place place) {
    constexpr int64_t longest = 1 << 30;
    const auto row = [&] { return int64_t(place.width) * place.lanes; };
    if (place.pitch == row() && int64_t(place.height) * place.width < longest) {
        place.width *= place.height;
        place.height = 1;
    }
    if (place.height == 1 && place.plane == row() && int64_t(place.channels) * place.width < longest) {
        place.width *= place.channels;
        place.channels = 1;
    }
    return place;
}

static int64_t features_of(const Place& place) { return int64_t(place.channels) * place.height * place.width; }

static int32_t chunks_of(const Place& place) {
    return int32_t((features_of(place) + 15 + FEATURES - 1) / FEATURES);  // the first may begin up to 15 features early
}

static Step enter_step(const std::string& isa, const Place& place) {
    const Isa wanted = isa_named(isa);
    if (place.lanes > 1)
        return step(SYNAPTREE_PICK(wanted, enter_kernel()), Move{unrolled(place)}, chunks_of(place), extent(place), {});
    const Place places[] = {dense(place), place};
    Lines lines[2];
    const Runs shared = runs(places, 2, lines, true, false);
    const Copy task{shared, lines[0], lines[1]};
    return step(SYNAPTREE_PICK(wanted, enter_one_kernel()), task, shared.planes, extent(place), {});
}

static Step leave_step(const std::string& isa, const Place& place) {
    const Isa wanted = isa_named(isa);
    if (place.lanes > 1)
        return step(SYNAPTREE_PICK(wanted, leave_kernel()), Move{unrolled(place)}, chunks_of(place), extent(place), {});
    const Place places[] = {place, dense(place)};
    Lines lines[2];
    const Runs shared = runs(places, 2, lines, true, false);
    const Copy task{shared, lines[0], lines[1]};
    return step(SYNAPTREE_PICK(wanted, leave_one_kernel()), task, shared.planes, extent(place), {});
}

static void bind(nb::module_& m) {
    nb::class_<Place>(m, "Place")
        .def(
            "__init__",
            [](Place* self, int64_t at, int32_t channels, int32_t height, int32_t width, int32_t lanes, int64_t plane,
               int64_t pitch) {
                const Place place{at, channels, height, width, lanes, plane, pitch};
                check(place);
                new (self) Place(place);
            },
            nb::kw_only(), "at"_a, "channels"_a, "height"_a = 1, "width"_a = 1, "lanes"_a = 1, "plane"_a,
            "pitch"_a = 0);
    m.def("enter", [](const std::string& isa, const Place& place) {
        return outward(enter_step(isa, place), features_of(place), 0, place.lanes);
    }, "isa"_a, "place"_a);
    m.def("leave", [](const std::string& isa, const Place& place) {
        return outward(leave_step(isa, place), 0, features_of(place), place.lanes);
    }, "isa"_a, "place"_a);
    m.def("copy", copy_step, "isa"_a, "x"_a, "y"_a, "channel"_a = 0);
    m.def("split", split_step, "isa"_a, "x"_a, "y"_a, "stride"_a, "padding"_a);
}

static const Binding binding(bind);

}  // namespace synaptree
