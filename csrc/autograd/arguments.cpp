#include "csrc/autograd/arguments.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/forward_grad.h>

#include <atomic>

namespace pydl::autograd {

bool is_plain(PyObject* object) {
  using c10::DispatchKey;
  constexpr c10::DispatchKeySet plain(
      {DispatchKey::CPU, DispatchKey::ADInplaceOrView, DispatchKey::AutogradCPU, DispatchKey::AutocastCPU});
  return THPVariable_CheckExact(object) && THPVariable_Unpack(object).key_set() == plain;
}

static std::atomic<bool> cpu_is_served{true};

void serve_cpu(bool on) { cpu_is_served.store(on, std::memory_order_relaxed); }

bool is_plain_moment() {
  const c10::impl::LocalDispatchKeySet keys = c10::impl::tls_local_dispatch_key_set();
  return keys.included_ == c10::default_included_set && keys.excluded_ == c10::default_excluded_set &&
         cpu_is_served.load(std::memory_order_relaxed) && at::impl::torch_function_mode_enabled() == false &&
         torch::autograd::ForwardADLevel::try_get_by_idx(0) == nullptr;
}

const at::Tensor& Arguments::tensor(int i) const {
  if (!is_plain(objects_[i])) throw NotPlain();
  const at::Tensor& found = THPVariable_Unpack(objects_[i]);
  const c10::ScalarType dtype = found.scalar_type();
  if (dtype != at::kFloat && dtype != at::kBFloat16 && dtype != at::kHalf && dtype != at::kDouble)
    throw NotPlain();
  return found;
}

const at::Tensor& Arguments::indices(int i) const {
  if (!is_plain(objects_[i])) throw NotPlain();
  const at::Tensor& found = THPVariable_Unpack(objects_[i]);
  if (found.scalar_type() != at::kLong) throw NotPlain();
  return found;
}

bool Arguments::truth(int i) const {
  if (!PyBool_Check(objects_[i])) throw NotPlain();
  return objects_[i] == Py_True;
}

int64_t Arguments::integer(int i) const {
  if (!PyLong_CheckExact(objects_[i])) throw NotPlain();
  const long long value = PyLong_AsLongLong(objects_[i]);
  if (value == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    throw NotPlain();
  }
  return value;
}

double Arguments::real(int i) const {
  if (!PyFloat_CheckExact(objects_[i])) throw NotPlain();
  return PyFloat_AS_DOUBLE(objects_[i]);
}

std::vector<int64_t> Arguments::pair(int i) const {
  if (!PyTuple_CheckExact(objects_[i])) return {integer(i), integer(i)};
  if (PyTuple_GET_SIZE(objects_[i]) != 2) throw NotPlain();
  const Arguments inner(&PyTuple_GET_ITEM(objects_[i], 0));
  return {inner.integer(0), inner.integer(1)};
}

std::vector<int64_t> Arguments::integers(int i) const {
  if (!PyTuple_Check(objects_[i])) throw NotPlain();  // torch.Size is one too
  std::vector<int64_t> values(PyTuple_GET_SIZE(objects_[i]));
  for (size_t n = 0; n < values.size(); ++n)
    values[n] = Arguments(&PyTuple_GET_ITEM(objects_[i], n)).integer(0);
  return values;
}

const char* Arguments::text(int i) const {
  if (!PyUnicode_CheckExact(objects_[i])) throw NotPlain();
  const char* characters = PyUnicode_AsUTF8(objects_[i]);
  if (characters == nullptr) throw python_error();
  return characters;
}

}  // namespace pydl::autograd
