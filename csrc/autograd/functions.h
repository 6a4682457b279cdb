// The functions of the module: each is defined and named to Python in one, and what it takes is said above it. All
// answer as arguments.h says, but for those that answer yes or no.
//
//   // softmax(input, dim)
//   PYDL_PYTHON_FUNCTION(softmax) { return along(objects, given, false); }
#pragma once

#include <Python.h>

#include <vector>

namespace pydl::autograd {

// Of all files, which add theirs as the library is loaded; module.cpp hands them over.
inline std::vector<PyMethodDef>& python_functions() {
  static std::vector<PyMethodDef> functions;
  return functions;
}

using PythonFunction = PyObject*(PyObject*, PyObject* const* objects, Py_ssize_t given);

inline bool add_function(const char* name, PythonFunction* function) {
  python_functions().push_back(
      {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function)), METH_FASTCALL, nullptr});
  return true;
}

#define PYDL_PYTHON_FUNCTION(name)                                                \
  static PyObject* name(PyObject*, PyObject* const* objects, Py_ssize_t given);   \
  [[maybe_unused]] static const bool name##_is_added = add_function(#name, name); \
  static PyObject* name(PyObject*, PyObject* const* objects, Py_ssize_t given)

PyObject* serve_memory(PyObject*, PyObject* capsule);  // memory.cpp

}  // namespace pydl::autograd
