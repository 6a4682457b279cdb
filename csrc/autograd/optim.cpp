// The step of an optimizer: what is asked of each tensor, and the table that the kernels get.
//
// A step is served as a whole or not at all, and before anything is written: else torch's own step takes it from the
// start. State is made, and checked in words, by torch: what is not there or lies otherwise is a reason to leave it.
#include "csrc/autograd/optim.h"

#include "csrc/autograd/functions.h"

#include <ATen/record_function.h>
#include <torch/csrc/utils/pybind.h>

#include <cmath>
#include <limits>

namespace pydl::autograd {
namespace {

using at::Tensor;

struct Reason {
  const char* text;
};

PyObject* interned(const char* name) { return PyUnicode_InternFromString(name); }
#define PYDL_KEY(name)                            \
  [] {                                            \
    static PyObject* const key = interned(#name); \
    return key;                                   \
  }()

bool lies_as(const Tensor& t, const Tensor& other) {
  if (t.sizes() != other.sizes()) return false;
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) > 1 && t.stride(d) != other.stride(d)) return false;
  return true;
}

// The tensors of a step whose kernel is the same.
struct Batch {
  DType dtype;
  Optimizer optimizer;
  std::vector<OptimTensor> tensors;
};

class Group {
  PyObject* dict_;

 public:
  explicit Group(PyObject* dict) : dict_(dict) {
    if (!PyDict_Check(dict)) throw Reason{"a parameter group is no dict"};
  }
  PyObject* get(PyObject* key) const {
    PyObject* found = PyDict_GetItemWithError(dict_, key);
    if (found == nullptr) throw Reason{"a parameter group lacks an option"};
    return found;
  }
  bool truth(PyObject* key) const {
    const int found = PyObject_IsTrue(get(key));
    if (found < 0) throw python_error();
    return found == 1;
  }
  double real(PyObject* key) const { return real_of(get(key)); }
  static double real_of(PyObject* value) {
    if (PyFloat_Check(value)) return PyFloat_AS_DOUBLE(value);
    if (!PyLong_Check(value)) throw Reason{"an option is no number of Python's"};
    const double found = PyLong_AsDouble(value);
    if (found == -1 && PyErr_Occurred()) throw python_error();
    return found;
  }
};

class Step {
  std::vector<OptimOptions> options_;
  std::vector<Batch> batches_;
  std::vector<Tensor> written_, grads_, counters_;  // kept alive while Python is not locked
  std::vector<Extent> extents_;
  PyObject* state_;

 public:
  Step(PyObject* groups, PyObject* state, std::string_view name) : state_(state) {
    if (!PyList_Check(groups) || !PyDict_Check(state))
      throw Reason{"its groups are no list, or its state is no dict"};
    const Py_ssize_t count = PyList_GET_SIZE(groups);
    options_.reserve(count);  // whose addresses are kept
    for (Py_ssize_t i = 0; i < count; ++i) add(Group(PyList_GET_ITEM(groups, i)), name);
    for (const Tensor& t : written_) extents_.push_back(extent_of(t, true));
    for (const Tensor& t : counters_) extents_.push_back(extent_of(t, true));
    for (const Tensor& t : grads_) extents_.push_back(extent_of(t, false));
    if (overlap(extents_)) throw Reason{"tensors share memory"};
  }

  void run() {
    for (Tensor& t : counters_) {
      if (t.scalar_type() == at::kDouble)
        *t.mutable_data_ptr<double>() += 1;
      else
        *t.mutable_data_ptr<float>() += 1;
      t.unsafeGetTensorImpl()->bump_version();
    }
    for (const Tensor& t : written_) t.unsafeGetTensorImpl()->bump_version();
    for (const Batch& batch : batches_) {
      const std::vector<int64_t> first =
          chunks(batch.tensors.size(), [&](size_t t) { return batch.tensors[t].count; });
      if (first.back() == 0) continue;
      const OptimParams params{batch.dtype, batch.optimizer, static_cast<int64_t>(batch.tensors.size()),
                               batch.tensors.data(), first.data()};
      unlocked_if_long(first.back(), [&] { kernels().step(params); });
    }
  }

 private:
  // What the state of one parameter is, by torch's keys.
  struct Kind {
    Optimizer optimizer;
    bool counts = true;  // whether there is a number of steps
    std::vector<PyObject*> keys;
  };

  static Kind read_options(const Group& group, std::string_view name, OptimOptions& o) {
    if (group.truth(PYDL_KEY(differentiable))) throw Reason{"differentiable"};
    o.lr = group.real(PYDL_KEY(lr));
    o.weight_decay = group.real(PYDL_KEY(weight_decay));
    o.maximize = group.truth(PYDL_KEY(maximize));
    o.decay = 1;
    if (name == "sgd") {
      o.momentum = group.real(PYDL_KEY(momentum));
      o.dampening = group.real(PYDL_KEY(dampening));
      o.nesterov = group.truth(PYDL_KEY(nesterov));
      if (o.momentum == 0) return {Optimizer::sgd, false, {}};
      return {Optimizer::sgd_momentum, false, {PYDL_KEY(momentum_buffer)}};
    }
    if (group.truth(PYDL_KEY(capturable))) throw Reason{"capturable"};
    o.eps = group.real(PYDL_KEY(eps));
    if (name == "adadelta") {
      o.beta2 = group.real(PYDL_KEY(rho));
      return {Optimizer::adadelta, true, {PYDL_KEY(square_avg), PYDL_KEY(acc_delta)}};
    }
    if (name == "rmsprop") {
      o.beta2 = group.real(PYDL_KEY(alpha));
      o.momentum = group.real(PYDL_KEY(momentum));
      Kind kind{Optimizer::rmsprop, true, {PYDL_KEY(square_avg)}};
      const bool centered = group.truth(PYDL_KEY(centered));
      if (centered) kind.keys.push_back(PYDL_KEY(grad_avg));
      if (o.momentum > 0) kind.keys.push_back(PYDL_KEY(momentum_buffer));
      if (o.momentum > 0)
        kind.optimizer = centered ? Optimizer::rmsprop_centered_momentum : Optimizer::rmsprop_momentum;
      else if (centered)
        kind.optimizer = Optimizer::rmsprop_centered;
      return kind;
    }
    TORCH_CHECK(name == "adam", "optimizer_step: expected the name to be one of the optimizers', got ", name);
    PyObject* const betas = group.get(PYDL_KEY(betas));
    if ((!PyTuple_Check(betas) && !PyList_Check(betas)) || PySequence_Fast_GET_SIZE(betas) != 2)
      throw Reason{"betas are no pair"};
    o.beta1 = Group::real_of(PySequence_Fast_GET_ITEM(betas, 0));
    o.beta2 = Group::real_of(PySequence_Fast_GET_ITEM(betas, 1));
    if (o.weight_decay != 0 && group.truth(PYDL_KEY(decoupled_weight_decay))) {
      o.decay = 1 - o.lr * o.weight_decay;
      o.weight_decay = 0;
    }
    if (group.truth(PYDL_KEY(amsgrad)))
      return {
          Optimizer::adam_amsgrad, true, {PYDL_KEY(exp_avg), PYDL_KEY(exp_avg_sq), PYDL_KEY(max_exp_avg_sq)}};
    return {Optimizer::adam, true, {PYDL_KEY(exp_avg), PYDL_KEY(exp_avg_sq)}};
  }

  void add(const Group& group, std::string_view name) {
    OptimOptions& o = options_.emplace_back();
    const Kind kind = read_options(group, name, o);
    PyObject* const params = group.get(PYDL_KEY(params));
    if (!PyList_Check(params)) throw Reason{"the parameters of a group are no list"};
    double last = std::numeric_limits<double>::quiet_NaN(), step_size = 0, root = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params); ++i) {
      PyObject* const object = PyList_GET_ITEM(params, i);
      if (!is_plain(object)) throw Reason{"a parameter is no plain tensor of the CPU"};
      const Tensor& param = THPVariable_Unpack(object);
      if (!param.grad().defined()) continue;
      if (param.scalar_type() != at::kFloat && param.scalar_type() != at::kDouble)
        throw Reason{"parameters of a dtype other than float32 and float64"};
      if (!param.is_non_overlapping_and_dense()) throw Reason{"a parameter does not fill its memory"};
      OptimTensor t{};
      t.options = &o;
      t.count = param.numel();
      t.grad = grad_of(param).const_data_ptr();
      t.param = written(param);
      if (!kind.keys.empty()) read_state(kind, object, param, t);
      if (kind.optimizer == Optimizer::adam || kind.optimizer == Optimizer::adam_amsgrad) {
        const double step = next(counters_.back());
        if (step != last) {
          last = step;
          step_size = o.lr / (1 - std::pow(o.beta1, step));
          root = 1 / std::sqrt(1 - std::pow(o.beta2, step));
        }
        t.step_size = step_size;
        t.root = root;
      }
      batch(dtype_of(param), kind.optimizer).tensors.push_back(t);
    }
  }

  const Tensor& grad_of(const Tensor& param) {
    const pybind11::object object =
        pybind11::reinterpret_steal<pybind11::object>(THPVariable_Wrap(param.grad()));
    if (!is_plain(object.ptr())) throw Reason{"a gradient is no plain tensor of the CPU"};
    const Tensor& grad = THPVariable_Unpack(object.ptr());
    if (grad.scalar_type() != param.scalar_type()) throw Reason{"a gradient of another dtype"};
    if (!lies_as(grad, param)) throw Reason{"a gradient with other strides"};
    return grads_.emplace_back(grad);
  }

  void* written(const Tensor& t) { return written_.emplace_back(t).mutable_data_ptr(); }

  void read_state(const Kind& kind, PyObject* object, const Tensor& param, OptimTensor& t) {
    PyObject* const state = PyDict_GetItemWithError(state_, object);
    if (state == nullptr && PyErr_Occurred()) throw python_error();
    const auto find = [&](PyObject* key) {
      PyObject* const found = state && PyDict_Check(state) ? PyDict_GetItemWithError(state, key) : nullptr;
      if (found == nullptr || found == Py_None) throw Reason{"the step that makes the state is torch's"};
      if (!is_plain(found)) throw Reason{"state that is no plain tensor of the CPU"};
      return found;
    };
    for (size_t k = 0; k < kind.keys.size(); ++k) {
      const Tensor& found = THPVariable_Unpack(find(kind.keys[k]));
      if (found.scalar_type() != param.scalar_type() || !lies_as(found, param))
        throw Reason{"state with another dtype or other strides"};
      t.state[k] = written(found);
    }
    if (!kind.counts) return;
    const Tensor& counter = THPVariable_Unpack(find(PYDL_KEY(step)));
    if (counter.numel() != 1 || (counter.scalar_type() != at::kFloat && counter.scalar_type() != at::kDouble))
      throw Reason{"a number of steps that is no number"};
    counters_.push_back(counter);
  }

  static double next(const Tensor& counter) {
    if (counter.scalar_type() == at::kDouble) return *counter.const_data_ptr<double>() + 1;
    return *counter.const_data_ptr<float>() + 1.0f;
  }

  Batch& batch(DType dtype, Optimizer optimizer) {
    for (Batch& b : batches_)
      if (b.dtype == dtype && b.optimizer == optimizer) return b;
    return batches_.emplace_back(Batch{dtype, optimizer, {}});
  }
};

}  // namespace

// optimizer_step(name, param_groups, state, launch, observed) -> None where it is done, or would be without `launch`;
// else why it is left to torch. observed: False to be told of callbacks, such as a profiler's, that want to see a range.
PYDL_PYTHON_FUNCTION(optimizer_step) {
  HANDLE_TH_ERRORS
  try {
    TORCH_CHECK_TYPE(given == 5, "expected 5 arguments, got ", given);
    if (objects[4] == Py_False && at::hasCallbacks()) throw Reason{"a profiler is at work"};
    if (!is_plain_moment() || is_autocast())
      throw Reason{"autocast, a mode, a transform or another backend is at work"};
    const char* name = PyUnicode_AsUTF8(objects[0]);
    if (name == nullptr) throw python_error();
    Step step(objects[1], objects[2], name);
    if (objects[3] == Py_True) step.run();
    Py_RETURN_NONE;
  } catch (const Reason& reason) {
    if (PyErr_Occurred()) throw python_error();
    return PyUnicode_FromString(reason.text);
  }
  END_HANDLE_TH_ERRORS
}

}  // namespace pydl::autograd
