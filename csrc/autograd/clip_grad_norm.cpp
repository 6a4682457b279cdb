// The norm of all gradients together, and their product by a number (torch.nn.utils.clip_grad_norm_).
#include "csrc/autograd/optim.h"

#include "csrc/autograd/functions.h"

#include <ATen/ops/scalar_tensor.h>
#include <torch/csrc/utils/pybind.h>

#include <cmath>

namespace pydl::autograd {
namespace {

struct Grads {
  std::vector<Tensor> grads;
  std::vector<void*> data;
  std::vector<int64_t> count, first;
  DType dtype = DType::f32;

  explicit Grads(PyObject* parameters) {
    std::vector<Extent> extents;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(parameters); ++i) {
      PyObject* const object = PyList_GET_ITEM(parameters, i);
      if (!is_plain(object)) throw NotPlain();
      if (!THPVariable_Unpack(object).grad().defined()) continue;
      const pybind11::object wrapped =
          pybind11::reinterpret_steal<pybind11::object>(THPVariable_Wrap(THPVariable_Unpack(object).grad()));
      if (!is_plain(wrapped.ptr())) throw NotPlain();
      const Tensor& grad = grads.emplace_back(THPVariable_Unpack(wrapped.ptr()));
      if (grad.scalar_type() != grads[0].scalar_type() || !grad.is_non_overlapping_and_dense() ||
          (grad.scalar_type() != at::kFloat && grad.scalar_type() != at::kDouble))
        throw NotPlain();
      extents.push_back(extent_of(grad, true));
      count.push_back(grad.numel());
      data.push_back(grad.mutable_data_ptr());
    }
    if (grads.empty() || overlap(extents)) throw NotPlain();
    dtype = dtype_of(grads[0]);
    first = chunks(grads.size(), [&](size_t t) { return count[t]; });
  }
};

// The factor that torch multiplies by, in the dtype A of the gradients, as its own ops round it.
template <class A>
double factor_of(double square_sum, double max_norm, double& norm) {
  const A total = std::sqrt(static_cast<A>(square_sum));  // infinite where torch's is
  norm = total;
  const A factor = A(1) / (total + static_cast<A>(1e-6)) * static_cast<A>(max_norm);
  return factor > 1 ? A(1) : factor;
}

// Scales the gradients in place; returns their norm.
double clip(Grads& g, double max_norm, bool refuse_nonfinite) {
  std::vector<double> sums(g.first.back());
  GradsParams params{g.dtype,
                     static_cast<int64_t>(g.grads.size()),
                     g.data.data(),
                     g.count.data(),
                     g.first.data(),
                     sums.data(),
                     1.0};
  double norm = 0;
  unlocked_if_long(g.first.back(), [&] {
    if (!sums.empty()) kernels().square_sums(params);
    double total = 0;
    for (double sum : sums) total += sum;
    params.factor = g.dtype == DType::f64 ? factor_of<double>(total, max_norm, norm)
                                          : factor_of<float>(total, max_norm, norm);
    if (refuse_nonfinite && !std::isfinite(norm)) return;
    if (params.factor != 1 && !sums.empty()) kernels().scale(params);  // nan too
  });
  if (refuse_nonfinite && !std::isfinite(norm)) throw NotPlain();  // for torch to say it
  for (const Tensor& t : g.grads) t.unsafeGetTensorImpl()->bump_version();
  return norm;
}

}  // namespace

// clip_grad_norm(list of parameters, max_norm, error_if_nonfinite) -> the norm, or NotImplemented
PYDL_PYTHON_FUNCTION(clip_grad_norm) {
  HANDLE_TH_ERRORS
  try {
    TORCH_CHECK_TYPE(given == 3 && PyList_Check(objects[0]), "expected a list, a float and a bool");
    if (!is_plain_moment() || is_autocast()) throw NotPlain();
    const Arguments arguments(objects);
    Grads grads(objects[0]);
    const double norm = clip(grads, arguments.real(1), arguments.truth(2));
    return THPVariable_Wrap(at::scalar_tensor(norm, grads.grads[0].options()));
  } catch (const NotPlain&) {
    Py_RETURN_NOTIMPLEMENTED;
  }
  END_HANDLE_TH_ERRORS
}

}  // namespace pydl::autograd
