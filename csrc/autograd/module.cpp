// The extension module pydl._torch: calls and C++ autograd nodes for the one version of torch that it was built with.
#include "csrc/autograd/arguments.h"
#include "csrc/autograd/functions.h"
#include "csrc/autograd/kernels.h"

namespace pydl::autograd {
namespace {

// serve_cpu(on): see arguments.h.
PyObject* python_serve_cpu(PyObject*, PyObject* on) {
  serve_cpu(on == Py_True);
  Py_RETURN_NONE;
}

const Launchers* found = nullptr;

}  // namespace

const Launchers& kernels() { return *found; }

}  // namespace pydl::autograd

PyMODINIT_FUNC PyInit__torch() {
  using namespace pydl;
  autograd::found = static_cast<const Launchers*>(PyCapsule_Import(kLaunchersCapsule, 0));
  if (autograd::found == nullptr) {
    PyErr_SetString(PyExc_ImportError, "pydl._C is of another build");
    return nullptr;
  }
  static std::vector<PyMethodDef> functions = autograd::python_functions();
  functions.push_back({"serve_cpu", autograd::python_serve_cpu, METH_O, nullptr});
  functions.push_back({"serve_memory", autograd::serve_memory, METH_O, nullptr});
  functions.push_back({nullptr, nullptr, 0, nullptr});
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                   "pydl._torch",
                                   nullptr,
                                   -1,
                                   functions.data(),
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr};
  return PyModule_Create(&definition);
}
