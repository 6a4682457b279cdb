// A call from Python: its arguments by position, and whether it is a plain one.
//
// Plain: what users do a million times, and nothing that torch or a tool of its would want to see. Every other call is
// answered with NotImplemented, and Python goes the long way (pydl/aside.py, and the function of the op), which knows
// each case. So what is asked here may be narrow, but has to be whole.
#pragma once

#include "csrc/autograd/lowered.h"

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <string>
#include <vector>

namespace pydl::autograd {

// Whether the moment is a plain one: our CPU kernels are the backend, no transform, no trace or dispatch mode (each of
// which changes the dispatch keys of the thread), no function mode, no forward-mode differentiation. Inference mode is
// one, and so is autocast on the CPU.
bool is_plain_moment();
bool is_autocast();
bool is_plain(
    PyObject* object);    // torch's own class (no subclass), dense memory of the CPU, no wrapper of any kind
void serve_cpu(bool on);  // whether the CPU kernels of pydl are the backend of tensors on the CPU

// Stops the reading of arguments: the call is none for the quick way.
struct NotPlain {};

class Arguments {
  PyObject* const* objects_;

 public:
  explicit Arguments(PyObject* const* objects) : objects_(objects) {}

  bool is_none(int i) const { return objects_[i] == Py_None; }

  const at::Tensor& any_tensor(int i) const;  // a plain one
  // The same in one of our dtypes.
  const at::Tensor& tensor(int i) const;
  // The same, or one that is not defined for None.
  const at::Tensor& optional_tensor(int i) const;
  // The same, to be read in the dtype of autocast by an op of lower precision; not plain where a cast would lie
  // otherwise.
  Lowered lowered(int i) const;
  Lowered optional_lowered(int i) const;
  // The same of int64 instead of our dtypes.
  const at::Tensor& indices(int i) const;
  // Of a list or a tuple, each as tensor() has it.
  std::vector<at::Tensor> tensors(int i) const;

  bool truth(int i) const;
  int64_t integer(int i) const;
  double real(int i) const;
  // One integer for all, or a tuple of so many.
  std::vector<int64_t> of_each(int i, size_t count) const;
  std::vector<int64_t> pair(int i) const { return of_each(i, 2); }
  std::vector<int64_t> triple(int i) const { return of_each(i, 3); }
  std::vector<int64_t> integers(int i) const;  // of a tuple
  const char* text(int i) const;
};

// What Python gets of what a call returns: tensors as a tuple.
PyObject* wrapped(at::Tensor&& result);
PyObject* wrapped(std::vector<at::Tensor>&& results);

// What Python gets of `call(arguments)`: its result, NotImplemented for a call that is not plain, or an exception. Those of csrc/errors.h name their Python type themselves.
template <int count, class Call>
PyObject* answer(PyObject* const* objects, Py_ssize_t given, Call call) {
  HANDLE_TH_ERRORS
  try {
    TORCH_CHECK_TYPE(given == count, "expected ", count, " arguments, got ", given);
    if (!is_plain_moment() || !is_plain(objects[0])) Py_RETURN_NOTIMPLEMENTED;
    return wrapped(call(Arguments(objects)));
  } catch (const NotPlain&) {
    Py_RETURN_NOTIMPLEMENTED;
  } catch (const pybind11::builtin_exception& error) {
    error.set_error();
    return nullptr;
  }
  END_HANDLE_TH_ERRORS
}

// What compute() returns, with Python's lock released meanwhile.
template <class Compute>
auto unlocked(Compute compute) {
  pybind11::gil_scoped_release release;
  return compute();
}

}  // namespace pydl::autograd
