#include "csrc/autograd/arguments.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/utils/object_ptr.h>

#include <atomic>

namespace pydl::autograd {

bool is_plain(PyObject* object) {
  using c10::DispatchKey;
  constexpr c10::DispatchKeySet plain(
      {DispatchKey::CPU, DispatchKey::ADInplaceOrView, DispatchKey::AutogradCPU, DispatchKey::AutocastCPU});
  constexpr c10::DispatchKeySet of_inference({DispatchKey::CPU, DispatchKey::AutocastCPU});
  if (!THPVariable_CheckExact(object)) return false;
  const c10::DispatchKeySet keys = THPVariable_Unpack(object).key_set();
  return keys == plain || keys == of_inference;
}

static std::atomic<bool> cpu_is_served{true};

void serve_cpu(bool on) { cpu_is_served.store(on, std::memory_order_relaxed); }

// Whether the thread's dispatch keys are those of no mode, or of inference mode or autocast alone.
static bool keys_are_plain() {
  const c10::impl::LocalDispatchKeySet keys = c10::impl::tls_local_dispatch_key_set();
  const c10::DispatchKeySet excluded = keys.excluded_.add(c10::DispatchKey::AutocastCPU);
  if (keys.included_ == c10::default_included_set) return excluded == c10::default_excluded_set;
  return keys.included_ == c10::default_included_set.remove(c10::DispatchKey::ADInplaceOrView) &&
         excluded == (c10::default_excluded_set | c10::autograd_dispatch_keyset);
}

bool is_autocast() { return !c10::impl::tls_is_dispatch_key_excluded(c10::DispatchKey::AutocastCPU); }

bool is_plain_moment() {
  return keys_are_plain() && cpu_is_served.load(std::memory_order_relaxed) &&
         at::impl::torch_function_mode_enabled() == false &&
         torch::autograd::ForwardADLevel::try_get_by_idx(0) == nullptr;
}

const at::Tensor& Arguments::any_tensor(int i) const {
  if (!is_plain(objects_[i])) throw NotPlain();
  return THPVariable_Unpack(objects_[i]);
}

const at::Tensor& Arguments::tensor(int i) const {
  const at::Tensor& found = any_tensor(i);
  const c10::ScalarType dtype = found.scalar_type();
  if (dtype != at::kFloat && dtype != at::kBFloat16 && dtype != at::kHalf && dtype != at::kDouble)
    throw NotPlain();
  return found;
}

const at::Tensor& Arguments::optional_tensor(int i) const {
  static const at::Tensor none;
  return is_none(i) ? none : tensor(i);
}

Lowered Arguments::lowered(int i) const {
  const at::Tensor& found = tensor(i);
  if (!is_autocast() || found.scalar_type() == at::kDouble) return {found, found.scalar_type()};
  const Lowered read(found, autocast_dtype());
  if (read.is_cast() && !found.is_non_overlapping_and_dense()) throw NotPlain();
  if (read.dtype() != at::kBFloat16 && read.dtype() != at::kHalf) throw NotPlain();
  return read;
}

Lowered Arguments::optional_lowered(int i) const { return is_none(i) ? Lowered() : lowered(i); }

const at::Tensor& Arguments::indices(int i) const {
  const at::Tensor& found = any_tensor(i);
  if (found.scalar_type() != at::kLong) throw NotPlain();
  return found;
}

std::vector<at::Tensor> Arguments::tensors(int i) const {
  PyObject* const sequence = objects_[i];
  if (!PyList_CheckExact(sequence) && !PyTuple_CheckExact(sequence)) throw NotPlain();
  const Arguments inner(PySequence_Fast_ITEMS(sequence));
  std::vector<at::Tensor> found;
  for (Py_ssize_t n = 0; n < PySequence_Fast_GET_SIZE(sequence); ++n) found.push_back(inner.tensor(n));
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

std::vector<int64_t> Arguments::of_each(int i, size_t count) const {
  if (!PyTuple_CheckExact(objects_[i])) return std::vector<int64_t>(count, integer(i));
  if (PyTuple_GET_SIZE(objects_[i]) != static_cast<Py_ssize_t>(count)) throw NotPlain();
  return integers(i);
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

PyObject* wrapped(at::Tensor&& result) { return THPVariable_Wrap(std::move(result)); }

PyObject* wrapped(std::vector<at::Tensor>&& results) {
  THPObjectPtr tuple(PyTuple_New(static_cast<Py_ssize_t>(results.size())));
  if (!tuple) throw python_error();
  for (size_t i = 0; i < results.size(); ++i) {
    PyObject* const one = THPVariable_Wrap(std::move(results[i]));
    if (one == nullptr) throw python_error();
    PyTuple_SET_ITEM(tuple.get(), i, one);
  }
  return tuple.release();
}

}  // namespace pydl::autograd
