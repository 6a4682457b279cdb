// Calls that are torch's for their size alone: asked before all else, since these have no time to lose.
#include "csrc/autograd/arguments.h"
#include "csrc/autograd/functions.h"

#include <algorithm>

namespace pydl::autograd {
namespace {

// Of left @ right; if these do not fit each other, any number: torch says so.
int64_t multiplications(const at::Tensor& left, const at::Tensor& right) {
  if (left.dim() < 2 || right.dim() < 2) return 0;
  const int64_t count = left.numel() * right.size(-1);
  // a batch that left has not, or has but once
  return right.dim() > 2 ? std::max(count, right.numel() * left.size(-2)) : count;
}

bool is_below(int64_t count, PyObject* limit) {
  const long long most = PyLong_AsLongLong(limit);
  if (most == -1 && PyErr_Occurred()) throw python_error();
  return count < most;
}

}  // namespace

// is_small(tensor, limit): whether it is a plain one of fewer numbers.
PYDL_PYTHON_FUNCTION(is_small) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(given == 2, "expected 2 arguments, got ", given);
  return PyBool_FromLong(is_plain(objects[0]) &&
                         is_below(THPVariable_Unpack(objects[0]).numel(), objects[1]));
  END_HANDLE_TH_ERRORS
}

// is_small_product(left, right, limit): whether both are plain ones, whose product takes fewer multiplications.
PYDL_PYTHON_FUNCTION(is_small_product) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(given == 3, "expected 3 arguments, got ", given);
  if (!is_plain(objects[0]) || !is_plain(objects[1])) Py_RETURN_FALSE;
  return PyBool_FromLong(
      is_below(multiplications(THPVariable_Unpack(objects[0]), THPVariable_Unpack(objects[1])), objects[2]));
  END_HANDLE_TH_ERRORS
}

}  // namespace pydl::autograd
