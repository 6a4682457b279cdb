// What an optimizer's zero_grad does by default, without a range for the profiler.
#include "csrc/autograd/arguments.h"
#include "csrc/autograd/functions.h"

#include <ATen/record_function.h>

namespace pydl::autograd {
namespace {

// Calls f(parameter) for each; false where something is not what a step of ours expects.
template <class F>
bool each_parameter(PyObject* groups, const F& f) {
  static PyObject* const key = PyUnicode_InternFromString("params");
  if (!PyList_Check(groups)) return false;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(groups); ++i) {
    PyObject* const group = PyList_GET_ITEM(groups, i);
    PyObject* const list = PyDict_Check(group) ? PyDict_GetItemWithError(group, key) : nullptr;
    if (list == nullptr || !PyList_Check(list)) return false;
    for (Py_ssize_t k = 0; k < PyList_GET_SIZE(list); ++k)
      if (!f(PyList_GET_ITEM(list, k))) return false;
  }
  return true;
}

}  // namespace

// zero_grad(param_groups) -> None where every gradient is None now, or NotImplemented where torch's should do it
PYDL_PYTHON_FUNCTION(zero_grad) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(given == 1, "expected 1 argument, got ", given);
  if (at::hasCallbacks() || !is_plain_moment() || is_autocast() || !each_parameter(objects[0], is_plain)) {
    if (PyErr_Occurred()) throw python_error();
    Py_RETURN_NOTIMPLEMENTED;
  }
  std::vector<at::Tensor> gone;  // freed last, since that may call back into Python
  each_parameter(objects[0], [&](PyObject* parameter) {
    gone.push_back(std::move(THPVariable_Unpack(parameter).mutable_grad()));
    THPVariable_Unpack(parameter).mutable_grad() = at::Tensor();
    return true;
  });
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

}  // namespace pydl::autograd
