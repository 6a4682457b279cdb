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

#define PYDL_FUNCTION(name) \
  {#name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(name)), METH_FASTCALL, nullptr}
PyMethodDef functions[] = {
    PYDL_FUNCTION(adaptive_avg_pool2d),
    PYDL_FUNCTION(adaptive_max_pool2d),
    PYDL_FUNCTION(attention),
    PYDL_FUNCTION(avg_pool2d),
    PYDL_FUNCTION(batch_norm),
    PYDL_FUNCTION(clip_grad_norm),
    PYDL_FUNCTION(conv2d),
    PYDL_FUNCTION(conv_transpose2d),
    PYDL_FUNCTION(cross_entropy),
    PYDL_FUNCTION(dropout),
    PYDL_FUNCTION(embedding),
    PYDL_FUNCTION(group_norm),
    PYDL_FUNCTION(is_small),
    PYDL_FUNCTION(is_small_product),
    PYDL_FUNCTION(layer_norm),
    PYDL_FUNCTION(linear),
    PYDL_FUNCTION(linear_cross_entropy),
    PYDL_FUNCTION(log_softmax),
    PYDL_FUNCTION(max_pool2d),
    PYDL_FUNCTION(optimizer_step),
    PYDL_FUNCTION(recurrent),
    PYDL_FUNCTION(recurrent_cell),
    PYDL_FUNCTION(recurrent_stack),
    PYDL_FUNCTION(rms_norm),
    PYDL_FUNCTION(scaled_dot_product_attention),
    PYDL_FUNCTION(softmax),
    PYDL_FUNCTION(zero_grad),
    {"serve_cpu", python_serve_cpu, METH_O, nullptr},
    {"serve_memory", serve_memory, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
#undef PYDL_FUNCTION

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "pydl._torch", nullptr, -1, functions, nullptr, nullptr, nullptr, nullptr};

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
  return PyModule_Create(&autograd::definition);
}
