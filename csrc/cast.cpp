// pydl::cast(Tensor input, str dtype) -> Tensor: what autocast makes of a large argument, in memory of the pool. torch's
// own copies of more than 32 MB are mapped anew, and touched for the first time, in each step.
#include "csrc/torch.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

ScalarType type_of(const std::string& name) {
  for (ScalarType type : {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half})
    if (name == dtype_name(type)) return type;
  throw pybind11::value_error(join("cast: expected dtype to be float32, bfloat16 or float16, got ", name));
}

Tensor cast(const Tensor& input, const std::string& dtype) {
  const ScalarType type = type_of(dtype);
  const Verbose line("cast", input);
  return converted(input, type);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) { m.impl("cast", TORCH_BOX(&cast)); }

}  // namespace pydl
