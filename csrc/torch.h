// What every csrc/<op>.cpp needs of torch, over its stable ABI: dtypes, allocation, threads, registration.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <vector>

#include "csrc/errors.h"
#include "kernels/common.h"

namespace pydl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const char* op, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    default:
      break;
  }
  throw std::runtime_error(
      join(op, ": expected dtype to be float32, float64, bfloat16 or float16, got scalar type ",
           static_cast<int>(t.scalar_type())));
}

inline ScalarType scalar_type_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return ScalarType::Float;
    case DType::f64:
      return ScalarType::Double;
    case DType::bf16:
      return ScalarType::BFloat16;
    case DType::f16:
      return ScalarType::Half;
  }
  return ScalarType::Float;
}

// float for everything but double: the dtype that statistics and sums are kept in.
inline ScalarType accumulate_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// An uninitialised tensor on the device of `like`, with the strides given. Several times cheaper than torch's
// empty() through the dispatcher, which counts for small outputs.
inline Tensor empty_strided(const Tensor& like, ScalarType type,
                            torch::headeronly::IntHeaderOnlyArrayRef sizes,
                            torch::headeronly::IntHeaderOnlyArrayRef strides) {
  int32_t device_type = 0, device_index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                               torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
                               device_type, device_index, &handle));
  return Tensor(handle);
}

// The same, contiguous in row-major order.
inline Tensor empty(const Tensor& like, ScalarType type, const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= max_of(sizes[d], 1);
  }
  return empty_strided(like, type, sizes, strides);
}

inline std::vector<int64_t> sizes_of(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }

// Strides of a dense channels_last tensor of these sizes (N, C, *spatial).
inline std::vector<int64_t> channels_last_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  strides[1] = 1;
  int64_t stride = max_of(sizes[1], 1);
  for (size_t d = sizes.size(); d-- > 2;) {
    strides[d] = stride;
    stride *= max_of(sizes[d], 1);
  }
  strides[0] = stride;
  return strides;
}

// Whether the strides of t are these, where they matter (a dimension of size 1 may have any).
inline bool has_strides(const Tensor& t, const std::vector<int64_t>& strides) {
  if (t.numel() == 0) return true;
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) > 1 && t.stride(d) != strides[static_cast<size_t>(d)]) return false;
  return true;
}

// torch's own thread pool as the plain callable that kernels take.
inline Parallel torch_threads() {
  return {[](int64_t n, int64_t grain, Parallel::Body body, void* context) {
            STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, n, max_of(grain, 1), body, context));
          },
          static_cast<int64_t>(torch::stable::get_num_threads())};
}

}  // namespace pydl
