// A step as Python holds it: a kernel, what it works on, and the arrays that must outlive it.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "step.h"

namespace synaptree {
namespace nb = nanobind;

template <class T> using Array = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;

struct Step {
    Kernel kernel = nullptr;
    std::shared_ptr<const void> task;
    int32_t chunks = 1;
    int64_t bytes = 0;              // of the arena that it may touch
    int64_t reads = 0, writes = 0;  // features of a caller's sample, if it reads or writes those
    int64_t most = 0;               // samples it can take, if it looks at their number
    std::vector<nb::object> keep;  // arrays of weights, which the task points into

    void run(const Frame& frame) const { kernel(task.get(), frame, 0, chunks); }
};

template <class Task> Step step(Kernel kernel, Task task, int32_t chunks, int64_t bytes, std::vector<nb::object> keep) {
    if (!kernel) throw std::invalid_argument("no such kernel for this instruction set");
    Step made{.kernel = kernel, .task = std::make_shared<const Task>(std::move(task)), .chunks = chunks, .bytes = bytes};
    made.keep = std::move(keep);
    return made;
}

// The same step, which takes up to `most` samples of the caller: `reads` of their features, `writes` of their outputs.
inline Step outward(Step step, int64_t reads, int64_t writes, int64_t most) {
    step.reads = reads, step.writes = writes, step.most = most;
    return step;
}

// The instruction set of this name; one that this machine has not got is refused.
Isa isa_named(const std::string& name);

// Every file that offers kernels to Python says so by an object of this kind.
struct Binding {
    using Function = void (*)(nb::module_&);
    explicit Binding(Function bind) { all().push_back(bind); }
    static std::vector<Function>& all() {
        static std::vector<Function> bindings;
        return bindings;
    }
};

}  // namespace synaptree
