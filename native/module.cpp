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

static Frame frame_of(Arena& arena, const Step& step, nb::object x, nb::object y) {
    if (step.bytes > arena.bytes)
        throw std::invalid_argument("the step touches " + std::to_string(step.bytes) + " bytes, the arena has " + std::to_string(arena.bytes));
    Frame frame{arena.start, nullptr, nullptr, 1};
    if (!x.is_none()) {
        auto array = nb::cast<nb::ndarray<const float, nb::c_contig, nb::device::cpu>>(x);
        frame.x = array.data();
        frame.samples = int64_t(array.shape(0));
    }
    if (!y.is_none()) {
        auto array = nb::cast<nb::ndarray<float, nb::c_contig, nb::device::cpu>>(y);
        frame.y = array.data();
        frame.samples = int64_t(array.shape(0));
    }
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
