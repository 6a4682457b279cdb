// pydl::cast(Tensor input, str dtype) -> Tensor: what autocast makes of a large argument, in memory of the pool. torch's
// own copies of more than 32 MB are mapped anew, and touched for the first time, in each step.
#include "kernels/cast.h"
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
  const ScalarType from = input.scalar_type();
  const bool narrows = from == ScalarType::Float && type == ScalarType::BFloat16;
  const bool is_ours = narrows || (from == ScalarType::BFloat16 && type == ScalarType::Float);
  const std::vector<int64_t> strides = strides_like(input);
  if (!is_ours || !has_strides(input, strides)) return converted(input, type);
  Tensor output = empty_strided(input, type, input.sizes(), strides);
  const CastTensor tensor{input.const_data_ptr(), output.mutable_data_ptr(), input.numel(), narrows};
  PYDL_CPU_CALL(cast)({1, &tensor}, torch_threads());
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) { m.impl("cast", TORCH_BOX(&cast)); }

}  // namespace pydl
