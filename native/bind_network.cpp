// The call a user makes. Arrays are read through numpy's own structs: it costs some nanoseconds, where a buffer costs
// hundreds and a network of three layers takes thousands.
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <numpy/arrayobject.h>


#include "network.h"

namespace synaptree {
using namespace nb::literals;

namespace {

struct Callable {
    Network network;
    std::vector<int64_t> x_shape, y_shape;  // of one sample
    int64_t batch;                          // what it was planned for
    bool quick;                             // too short for it to pay to let other Python threads in meanwhile
    nb::object other;                       // called in its place for another number of samples
    std::mutex mutex;
};

std::string text(const std::vector<int64_t>& shape) {
    std::string out = "(samples";
    for (int64_t axis : shape) out += ", " + std::to_string(axis);
    return out + (shape.empty() ? ",)" : ")");
}

std::string text(PyArrayObject* array) {
    std::string out = nb::str(nb::handle(reinterpret_cast<PyObject*>(PyArray_DESCR(array)))).c_str();
    out += " of shape (";
    for (int i = 0; i < PyArray_NDIM(array); i++) out += (i ? ", " : "") + std::to_string(PyArray_DIM(array, i));
    return out + (PyArray_NDIM(array) == 1 ? ",)" : ")");
}

[[noreturn]] void refuse(const char* name, const std::vector<int64_t>& shape, const std::string& got) {
    throw nb::value_error((std::string(name) + ": wanted a float32 array of shape " + text(shape) + got).c_str());
}

PyArrayObject* checked(nb::handle given, const char* name, const std::vector<int64_t>& shape, bool written) {
    if (!PyArray_Check(given.ptr())) refuse(name, shape, std::string(", got ") + Py_TYPE(given.ptr())->tp_name);
    auto* array = reinterpret_cast<PyArrayObject*>(given.ptr());
    bool fits = PyArray_TYPE(array) == NPY_FLOAT32 && PyArray_NDIM(array) == int(shape.size()) + 1 && PyArray_ISNOTSWAPPED(array);
    for (size_t i = 0; fits && i < shape.size(); i++) fits = PyArray_DIM(array, int(i) + 1) == shape[i];
    if (!fits) refuse(name, shape, ", got " + text(array));
    if (!PyArray_IS_C_CONTIGUOUS(array) || !PyArray_ISALIGNED(array))
        refuse(name, shape, " in C order without gaps; use numpy.ascontiguousarray");
    if (written && !PyArray_ISWRITEABLE(array)) refuse(name, shape, " that can be written to");
    return array;
}

void run_arrays(Callable& self, PyArrayObject* x, PyArrayObject* y) {
    const auto* from = static_cast<const float*>(PyArray_DATA(x));
    auto* to = static_cast<float*>(PyArray_DATA(y));
    const int64_t samples = PyArray_DIM(x, 0);
    if (self.quick && self.mutex.try_lock()) {
        const std::lock_guard lock(self.mutex, std::adopt_lock);
        self.network.run(from, to, samples);
        return;
    }
    const nb::gil_scoped_release released;
    const std::lock_guard lock(self.mutex);
    self.network.run(from, to, samples);
}

nb::object run(nb::handle_t<Callable> given, nb::handle x, nb::handle out) {
    auto& self = *nb::inst_ptr<Callable>(given);
    auto* from = checked(x, "x", self.x_shape, false);
    auto* to = checked(out, "out", self.y_shape, true);
    const int64_t samples = PyArray_DIM(from, 0);
    if (PyArray_DIM(to, 0) != samples)
        throw nb::value_error(("out: wanted " + std::to_string(samples) + " samples as in x, got " + text(to)).c_str());
    const char *a = PyArray_BYTES(from), *b = PyArray_BYTES(to);
    if (a < b + PyArray_NBYTES(to) && b < a + PyArray_NBYTES(from) && samples) throw nb::value_error("out: shares memory with x");
    if (samples && samples != self.batch && !self.other.is_none()) return self.other(x, out);
    run_arrays(self, from, to);
    return nb::borrow(out);
}

nb::object call(nb::handle_t<Callable> given, nb::handle x) {
    auto& self = *nb::inst_ptr<Callable>(given);
    auto* from = checked(x, "x", self.x_shape, false);
    npy_intp shape[NPY_MAXDIMS];
    shape[0] = PyArray_DIM(from, 0);
    for (size_t i = 0; i < self.y_shape.size(); i++) shape[i + 1] = npy_intp(self.y_shape[i]);
    nb::object out = nb::steal(PyArray_SimpleNew(int(self.y_shape.size()) + 1, shape, NPY_FLOAT32));
    if (!out.is_valid()) throw nb::python_error();
    if (shape[0] && shape[0] != self.batch && !self.other.is_none()) return self.other(x, out);
    run_arrays(self, from, reinterpret_cast<PyArrayObject*>(out.ptr()));
    return out;
}

int64_t features(const std::vector<int64_t>& shape) {
    int64_t product = 1;
    for (int64_t axis : shape) product *= axis;
    return product;
}

void bind(nb::module_& m) {
    if (_import_array() < 0) throw nb::python_error();
    nb::class_<Callable>(m, "Network")
        .def("__init__",
             [](Callable* self, std::vector<Step> steps, std::vector<bool> shared, int64_t arena, int64_t lanes,
                std::vector<int64_t> x_shape, std::vector<int64_t> y_shape, int threads, int64_t batch, bool quick, nb::object other) {
                 new (self) Callable{Network(std::move(steps), std::move(shared), arena, lanes, features(x_shape), features(y_shape), threads),
                                     x_shape, y_shape, batch, quick, std::move(other), {}};
             },
             nb::kw_only(), "steps"_a, "shared"_a, "arena"_a, "lanes"_a, "x_shape"_a, "y_shape"_a, "threads"_a, "batch"_a,
             "quick"_a, "other"_a.none())
        .def_prop_ro("bytes", [](const Callable& self) { return self.network.bytes(); })
        .def("run", run, "x"_a.none(), "out"_a.none())
        .def("__call__", call, "x"_a.none());
}

const Binding binding(bind);

}  // namespace
}  // namespace synaptree
