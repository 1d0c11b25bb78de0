// The extension: arenas, steps, networks, and what each file of kernels offers.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "network.h"

namespace synaptree {
using namespace nb::literals;

static std::vector<std::string> isas() {
    std::vector<std::string> found{"generic"};
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back("avx2");
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
    if (found.size() == 2 && wide) found.push_back("avx512");
#endif
    return found;
}

Isa isa_named(const std::string& name) {
    static const std::vector<std::string> known = isas();
    if (std::find(known.begin(), known.end(), name) == known.end()) {
        std::string all;
        for (const auto& isa : known) all += (all.empty() ? "" : ", ") + isa;
        throw std::invalid_argument("this machine has no instruction set '" + name + "'. It has: " + all);
    }
    return name == "avx512" ? Isa::avx512 : name == "avx2" ? Isa::avx2 : Isa::generic;
}

// The data of a caller's samples, (samples, features); null if none are given.
template <class T> static T* samples_of(const nb::object& given, const char* name, int64_t features, Frame& frame) {
    if (given.is_none() && !features) return nullptr;
    nb::ndarray<T, nb::c_contig, nb::device::cpu> array;
    const std::string wanted = std::string(name) + ": wanted a float32 array of shape (samples, " + std::to_string(features) + ")";
    if (given.is_none() || !nb::try_cast(given, array, false) || array.ndim() < 1) throw std::invalid_argument(wanted);
    frame.samples = int64_t(array.shape(0));
    if (features && int64_t(array.size()) != features * frame.samples) throw std::invalid_argument(wanted);
    return array.data();
}

static Frame frame_of(Arena& arena, const Step& step, const nb::object& x, const nb::object& y) {
    if (step.bytes > arena.bytes)
        throw std::invalid_argument("the step touches " + std::to_string(step.bytes) + " bytes, the arena has " + std::to_string(arena.bytes));
    Frame frame{arena.start, nullptr, nullptr, 1};
    frame.x = samples_of<const float>(x, "x", step.reads, frame);
    frame.y = samples_of<float>(y, "y", step.writes, frame);
    if (step.most && frame.samples > step.most)
        throw std::invalid_argument(std::to_string(frame.samples) + " samples, the step takes at most " + std::to_string(step.most));
    return frame;
}

static double fastest(const Step& step, const Frame& frame, int repetitions) {
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i < repetitions; i++) {
        const auto start = std::chrono::steady_clock::now();
        step.run(frame);
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return best;
}

NB_MODULE(_native, m) {
    m.def("isas", isas);
    nb::class_<Arena>(m, "Arena")
        .def(nb::init<int64_t>(), "bytes"_a)
        .def_prop_ro("floats", [](nb::handle self) {
            auto& arena = nb::cast<Arena&>(self);
            return nb::ndarray<nb::numpy, float>(arena.start, {size_t(arena.bytes / 4)}, self);
        });
    nb::class_<Step>(m, "Step")
        .def_ro("chunks", &Step::chunks)
        .def("run", [](const Step& step, Arena& arena, nb::object x, nb::object y) { step.run(frame_of(arena, step, x, y)); },
             "arena"_a, "x"_a = nb::none(), "y"_a = nb::none())
        .def("time", [](const Step& step, Arena& arena, int repetitions, nb::object x, nb::object y) {
            return fastest(step, frame_of(arena, step, x, y), repetitions);
        }, "arena"_a, "repetitions"_a, "x"_a = nb::none(), "y"_a = nb::none());
    for (const auto bind : Binding::all()) bind(m);
}

}  // namespace synaptree
