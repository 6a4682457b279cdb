// What every csrc/<op>.cpp needs of torch, over its stable ABI: dtypes, allocation, threads, registration.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <utility>
#include <vector>

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // torch 2.11 has it under this name alone
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

#include "csrc/errors.h"
#include "csrc/memory.h"
#include "kernels/common.h"

namespace pydl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

DType dtype_of(const char* op, const Tensor& t);

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

inline int32_t to_shim(ScalarType type) {
  return torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
}

inline int64_t bytes_per_element(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    case ScalarType::Float:
    case ScalarType::Int:
      return 4;
    case ScalarType::BFloat16:
    case ScalarType::Half:
      return 2;
    default:
      return 1;
  }
}

// An uninitialised tensor on the device of `like`, with the strides given, which are dense. Several times
// cheaper than torch's empty() through the dispatcher, which counts for small outputs; large ones come from
// the pool.
Tensor empty_strided(const Tensor& like, ScalarType type, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                     torch::headeronly::IntHeaderOnlyArrayRef strides);

// The same, contiguous in row-major order.
Tensor empty(const Tensor& like, ScalarType type, const std::vector<int64_t>& sizes);

// Whether both are on the CPU, or on one GPU: a kernel on one cannot reach the memory of another.
inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && (a.is_cpu() || a.get_device_index() == b.get_device_index());
}

inline std::vector<int64_t> sizes_of(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }

// Strides of a dense channels_last tensor of these sizes (N, C, *spatial).
std::vector<int64_t> channels_last_strides(const std::vector<int64_t>& sizes);

// The dimensions of tensors of one shape as torch's iterators walk over them, innermost first: sorted by the strides of
// the first, and where those say nothing by those of the next. A stride of 0 says nothing and leaves its dimension in
// place.
std::vector<int64_t> innermost_first(std::initializer_list<const Tensor*> tensors);

// Dense strides in this order of the dimensions of t.
std::vector<int64_t> dense_strides(const Tensor& t, const std::vector<int64_t>& order);

// Strides of torch.empty_like(t): those of t when it is dense; else dense ones in the order of t's strides.
std::vector<int64_t> strides_like(const Tensor& t);

// torch.empty_like(t), from the pool where t is large.
Tensor empty_as(const Tensor& t);

// A copy of t in another dtype, laid out as t.
Tensor converted(const Tensor& t, ScalarType type);

// Whether the strides of t are these, where they matter (a dimension of size 1 may have any).
bool has_strides(const Tensor& t, const std::vector<int64_t>& strides);

// t, or a copy of it in these strides, which are dense.
Tensor lying_as(const std::vector<int64_t>& strides, const Tensor& t);

// Strides of what torch computes number by number from a and b, which are of one shape; product_strides() of
// src/pydl/ops/_memory_format.py once more.
std::vector<int64_t> strides_like(const Tensor& a, const Tensor& b);

// t, or a contiguous copy of it.
inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
inline std::optional<Tensor> dense(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(dense(*t)) : t;
}

// torch's own thread pool as the plain callable that kernels take.
Parallel torch_threads();

}  // namespace pydl
