// pydl::dropout(Tensor input, float p, Tensor seed, int shared_dims) -> Tensor
//
// Its backward is the same op on the gradient, so there is no other.
#include "kernels/dropout.h"

#include <cmath>

#include "csrc/convert.h"
#include "csrc/cuda.h"
#include "csrc/verbose.h"

namespace pydl {
namespace {

// Describes the walk over both tensors, with neighbouring dimensions merged wherever one stride serves both,
// so that a dense tensor becomes one dimension. False when more dimensions remain than the kernel takes.
bool describe(const Tensor& input, const Tensor& output, int64_t shared_dims, DropoutParams& params) {
  const int64_t dims = input.dim();
  std::vector<int64_t> index_strides(static_cast<size_t>(dims), 0);
  for (int64_t d = dims - shared_dims - 1, stride = 1; d >= 0; --d) {
    index_strides[static_cast<size_t>(d)] = stride;
    stride *= input.size(d);
  }
  params.dims = 0;
  for (int64_t d = 0; d < dims; ++d) {
    const int64_t size = input.size(d), from = input.stride(d), to = output.stride(d);
    const int64_t index = index_strides[static_cast<size_t>(d)];
    if (size == 1) continue;
    const int last = params.dims - 1;
    const bool merges = last >= 0 && params.input_stride[last] == size * from &&
                        params.output_stride[last] == size * to && params.index_stride[last] == size * index;
    if (!merges && params.dims == DropoutParams::max_dims) return false;
    const int at = merges ? last : params.dims++;
    params.size[at] = merges ? params.size[at] * size : size;
    params.input_stride[at] = from;
    params.output_stride[at] = to;
    params.index_stride[at] = index;
  }
  if (params.dims == 0) {
    params.dims = 1;
    params.size[0] = params.input_stride[0] = params.output_stride[0] = params.index_stride[0] = 1;
  }
  return true;
}

// shared_dims: how many trailing dimensions live or die together (0 for dropout, 2 for dropout2d).
Tensor dropout(const Tensor& input, double p, const Tensor& seed, int64_t shared_dims) {
  PYDL_CHECK_VALUE(p >= 0.0 && p <= 1.0, "dropout: expected p to be a probability in [0, 1], got ", p);
  PYDL_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1,
             "dropout: expected seed to be an int64 tensor of one element, got ",
             dtype_name(seed.scalar_type()), " and shape ", shape_of(seed));
  PYDL_CHECK(shared_dims >= 0 && shared_dims <= input.dim(), "dropout: expected shared_dims to be in [0, ",
             input.dim(), "], got ", shared_dims);
  PYDL_CHECK(same_device(seed, input), "dropout: expected seed to be on the device of input, got another");
  if (!on_cuda(input) && widens(input))
    return rounded(dropout(widened(input), p, seed, shared_dims), input.scalar_type());
  const Verbose line("dropout", input);
  DropoutParams params{};
  params.dtype = dtype_of("dropout", input);
  Tensor output = empty_as(input);  // keeps the memory format, as torch's dropout does
  params.numel = input.numel();
  if (params.numel == 0) return output;
  if (!describe(input, output, shared_dims, params)) {
    // more than eight dimensions that do not merge are rare enough to pay for two copies
    torch::stable::copy_(output, dropout(torch::stable::contiguous(input), p, seed, shared_dims));
    return output;
  }
  params.input = input.const_data_ptr();
  params.output = output.mutable_data_ptr();
  params.threshold = static_cast<uint64_t>(std::nearbyint(p * 4294967296.0));
  params.scale = p == 1.0 ? 0.0 : 1.0 / (1.0 - p);
  if (const CudaCall cuda{"dropout", input}) {
    params.device_seed = seed.const_data_ptr<int64_t>();
    cuda.run(cuda->dropout, params);
  } else {
    params.seed = static_cast<uint64_t>(*seed.const_data_ptr<int64_t>());
    PYDL_CPU_CALL(dropout)(params, torch_threads());
  }
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) { m.impl("dropout", TORCH_BOX(&dropout)); }
STABLE_TORCH_LIBRARY_IMPL(pydl, CUDA, m) { m.impl("dropout", TORCH_BOX(&dropout)); }

}  // namespace pydl
