// pydl::dropout(Tensor input, float p, Tensor seed, int shared_dims) -> Tensor
//
// Its backward is the same op on the gradient, so there is no other.
#include "kernels/dropout.h"

#include <cmath>

#include "csrc/torch.h"

namespace pydl {
namespace {

// Merges neighbouring dimensions that both tensors walk with one stride, so that a dense tensor becomes one
// dimension and the kernel's index arithmetic stays short.
void merge_dims(const Tensor& input, const Tensor& output, DropoutParams& params) {
  params.dims = 0;
  for (int64_t d = 0; d < input.dim(); ++d) {
    const int64_t size = input.size(d), from = input.stride(d), to = output.stride(d);
    if (size == 1) continue;
    const int last = params.dims - 1;
    if (last >= 0 && params.input_stride[last] == size * from && params.output_stride[last] == size * to) {
      params.size[last] *= size;
      params.input_stride[last] = from;
      params.output_stride[last] = to;
      continue;
    }
    PYDL_CHECK(params.dims < DropoutParams::max_dims, "dropout: expected input to have at most ",
               DropoutParams::max_dims, " dimensions that do not merge, got shape ", shape_of(input));
    params.size[params.dims] = size;
    params.input_stride[params.dims] = from;
    params.output_stride[params.dims] = to;
    ++params.dims;
  }
  if (params.dims == 0) {
    params.dims = 1;
    params.size[0] = params.input_stride[0] = params.output_stride[0] = 1;
  }
}

// shared_dims: how many trailing dimensions live or die together (0 for dropout, 2 for dropout2d).
Tensor dropout(const Tensor& input, double p, const Tensor& seed, int64_t shared_dims) {
  PYDL_CHECK_VALUE(p >= 0.0 && p <= 1.0, "dropout: expected p to be a probability in [0, 1], got ", p);
  PYDL_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1,
             "dropout: expected seed to be an int64 tensor of one element, got shape ", shape_of(seed));
  PYDL_CHECK(shared_dims >= 0 && shared_dims <= input.dim(), "dropout: expected shared_dims to be in [0, ",
             input.dim(), "], got ", shared_dims);
  DropoutParams params{};
  params.dtype = dtype_of("dropout", input);
  Tensor output = torch::stable::empty_like(input);  // keeps the memory format, as torch's dropout does
  params.numel = input.numel();
  if (params.numel == 0) return output;
  params.input = input.const_data_ptr();
  params.output = output.mutable_data_ptr();
  params.share = 1;
  for (int64_t d = input.dim() - shared_dims; d < input.dim(); ++d) params.share *= input.size(d);
  params.seed = static_cast<uint64_t>(*seed.const_data_ptr<int64_t>());
  params.threshold = static_cast<uint64_t>(std::nearbyint(p * 4294967296.0));
  params.scale = p == 1.0 ? 0.0 : 1.0 / (1.0 - p);
  merge_dims(input, output, params);
  PYDL_CPU_CALL(dropout)(params, torch_threads());
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) { m.impl("dropout", TORCH_BOX(&dropout)); }

}  // namespace pydl
