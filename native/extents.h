// For bindings: what a step may touch of the arena, worked out before it exists.
#pragma once
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "moves.h"
#include "steps.h"

namespace synaptree {

// How far reading or writing goes beyond the rows and columns of a value.
struct Margin {
    int64_t top = 0, bottom = 0, left = 0, right = 0;
};

// Bytes from the arena's start to behind what is touched of a place; refuses a place that begins before the arena.
inline int64_t reach(const Place& place, const std::string& name, Margin margin = {}) {
    constexpr int64_t LONG = int64_t(1) << 40;
    const auto wrong = [&](const std::string& what) { throw std::invalid_argument(name + ": " + what); };
    if (place.channels < 1 || place.height < 1 || place.width < 1 || place.lanes < 1)
        wrong("channels, height, width and lanes are at least 1");
    if (place.at < 0 || place.at % 4 || place.at > LONG) wrong("it lies at a multiple of 4 bytes");
    if (place.plane < 0 || place.pitch < 0 || place.plane > LONG / place.channels || place.pitch > LONG / place.height)
        wrong("plane and pitch are lengths in floats");
    const int64_t first = -margin.top * place.pitch - margin.left * place.lanes;
    if (place.at + 4 * first < 0)
        wrong("its border begins " + std::to_string(-place.at - 4 * first) + " bytes before the arena");
    const int64_t rows = place.height - 1 + margin.bottom, columns = place.width + margin.right;
    const int64_t end = (place.channels - 1) * place.plane + rows * place.pitch + columns * place.lanes;
    return place.at + 4 * end;
}

inline void same_shape(const Place& place, const Place& y, const std::string& name) {
    const auto shape = [](const Place& p) {
        return "(" + std::to_string(p.channels) + ", " + std::to_string(p.height) + ", " + std::to_string(p.width) +
               ") x " + std::to_string(p.lanes) + " lanes";
    };
    if (shape(place) != shape(y))
        throw std::invalid_argument(name + " is " + shape(place) + ", the output " + shape(y));
}

// The array behind an object; nothing is converted, so it lives as long as the object.
template <class T> const T* elements(const nb::object& object, size_t count, const std::string& name) {
    Array<T> array;
    if (!nb::try_cast(object, array, false))
        throw std::invalid_argument(name + " is no contiguous array of " +
                                    (std::is_same_v<T, float> ? "float32" : "int32"));
    if (array.size() != count)
        throw std::invalid_argument(name + " has " + std::to_string(array.size()) + " elements, wanted " +
                                    std::to_string(count));
    return array.data();
}

// A copy that nobody can write to, because what was checked must stay so.
inline std::pair<const int32_t*, nb::object> frozen(const nb::object& object, size_t count, const std::string& name) {
    const nb::bytes copy(elements<int32_t>(object, count, name), count * sizeof(int32_t));
    return {reinterpret_cast<const int32_t*>(copy.c_str()), copy};
}

inline void all_within(const int32_t* values, size_t count, int64_t low, int64_t high, const std::string& name) {
    for (size_t i = 0; i < count; i++)
        if (values[i] < low || values[i] >= high)
            throw std::invalid_argument(name + " holds " + std::to_string(values[i]) + ", wanted " +
                                        std::to_string(low) + " to " + std::to_string(high - 1));
}

// starts[i] to starts[i + 1] is one list of many that follow one another, `total` entries in all
inline void lists(const int32_t* starts, size_t count, int64_t total, const std::string& name) {
    bool good = starts[0] == 0 && starts[count - 1] == total;
    for (size_t i = 1; i < count; i++) good = good && starts[i - 1] <= starts[i];
    if (!good) throw std::invalid_argument(name + " rise from 0 to the number of entries, " + std::to_string(total));
}

}  // namespace synaptree
