// The functions of the module: what each takes is said above its definition. All answer as arguments.h says, but for the two that answer
// whether a call is small.
#pragma once

#include <Python.h>

namespace pydl::autograd {

PyObject* adaptive_avg_pool2d(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* adaptive_max_pool2d(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* attention(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* avg_pool2d(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* batch_norm(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* clip_grad_norm(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* conv2d(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* conv_transpose2d(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* cross_entropy(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* dropout(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* embedding(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* group_norm(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* is_small(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* is_small_product(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* layer_norm(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* linear(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* linear_cross_entropy(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* log_softmax(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* max_pool2d(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* optimizer_step(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* recurrent(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* recurrent_cell(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* recurrent_stack(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* rms_norm(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* scaled_dot_product_attention(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* softmax(PyObject*, PyObject* const*, Py_ssize_t);
PyObject* zero_grad(PyObject*, PyObject* const*, Py_ssize_t);

PyObject* serve_memory(PyObject*, PyObject*);  // memory.cpp

}  // namespace pydl::autograd
