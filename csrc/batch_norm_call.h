// What one call of a batch_norm op needs of torch: shapes, the kernel's parameters, and the tensors that live
// as long as the call.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>

#include "csrc/cuda.h"
#include "kernels/batch_norm.h"
#include "kernels/machine.h"

namespace pydl {

using OptionalTensor = std::optional<Tensor>;

// torch's suggest_memory_format: strides in the order C, (D,) H, W, N from small to large, and not ambiguous.
inline bool is_channels_last(const Tensor& t) {
  const int64_t dims = t.dim();
  if (dims != 4 && dims != 5) return false;
  int64_t least = 0;
  if (t.stride(1) == 0) return false;
  for (int64_t k = 0; k < dims; ++k) {
    const int64_t d = k == 0 ? 1 : k == dims - 1 ? 0 : dims - k;  // 1, last, ..., 2, 0
    const int64_t size = t.size(d), stride = t.stride(d);
    if (size == 0 || stride < least) return false;
    if (d == 0 && least == t.stride(1))
      return false;  // N111 and the like: either format fits, contiguous wins
    least = stride * (size > 1 ? size : 1);
  }
  return true;
}

inline std::vector<int64_t> row_major_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= max_of(sizes[d], 1);
  }
  return strides;
}

// Whether torch's batch norm lays its result out channels_last: by contiguity where input (and grad_output, in the
// same format) is dense, so that row-major wins where a dimension of size 1 lets both fit; else by the strides' order.
inline bool result_is_channels_last(const Tensor& input, const Tensor* grad_output) {
  const int64_t dims = input.dim();
  if (dims != 4 && dims != 5) return false;
  const std::vector<int64_t> sizes = sizes_of(input), rows = row_major_strides(sizes),
                             columns = channels_last_strides(sizes);
  const bool suggested = is_channels_last(input), is_rows = has_strides(input, rows);
  bool dense = is_rows || has_strides(input, columns);
  if (grad_output != nullptr)
    dense = dense && (has_strides(*grad_output, rows) || has_strides(*grad_output, columns)) &&
            is_channels_last(*grad_output) == suggested;
  return dense ? !is_rows : suggested;
}

inline void count_batch(const OptionalTensor& num_batches_tracked) {
  if (!num_batches_tracked.has_value()) return;
  const Tensor& t = *num_batches_tracked;
  PYDL_CHECK(
      t.scalar_type() == ScalarType::Long && t.numel() == 1 && t.is_cpu(),
      "batch_norm: expected num_batches_tracked to be one int64 number in the CPU's memory, got shape ",
      shape_of(t));
  ++*static_cast<int64_t*>(t.mutable_data_ptr());
}

constexpr int64_t kSmallScratch = 16384;  // bytes that a call keeps on the stack

struct BatchNormCall {
  const char* name;
  BatchNormParams params{};
  std::vector<int64_t> sizes, strides;  // of input, and of a dense tensor in its memory format
  std::vector<Tensor> copies;
  const bool cuda;            // memory is not for the CPU to read
  const Tensor& first_input;  // of the op, which outlives the call
  std::unique_ptr<void, decltype(&std::free)> scratch{nullptr, &std::free};

  BatchNormCall(const char* op, const Tensor& input, const Tensor* grad_output = nullptr)
      : name(op), sizes(sizes_of(input)), cuda(on_cuda(input)), first_input(input) {
    PYDL_CHECK(input.dim() >= 2, name,
               ": expected input to have at least 2 dimensions (N, C, ...), got shape ", shape_of(input));
    // a gradient of another shape is refused later, by read
    const bool fits = grad_output != nullptr && has_sizes(*grad_output);
    const bool last = result_is_channels_last(input, fits ? grad_output : nullptr);
    strides = last ? channels_last_strides(sizes) : row_major_strides(sizes);
    params.dtype = params.param_dtype = dtype_of(name, input);
    params.batch = sizes[0];
    params.channels = sizes[1];
    params.spatial = 1;
    for (size_t d = 2; d < sizes.size(); ++d) params.spatial *= sizes[d];
    params.channels_last = last || params.spatial == 1;
    params.count = static_cast<double>(params.batch * params.spatial);
    // half of the usual, since the input is read twice and wants to stay
    params.stream = input.numel() * element_size() >= least_streamed_bytes() / 2;
  }

  int64_t element_size() const { return params.dtype == DType::f64 ? 8 : params.dtype == DType::f32 ? 4 : 2; }

  // The strides of t as the kernel walks them, if it can.
  bool view(const Tensor& t, BatchNormView& view) const {
    view.data = const_cast<void*>(t.const_data_ptr());
    const size_t dims = sizes.size();
    if (params.channels_last) {
      if (sizes[1] > 1 && t.stride(1) != 1) return false;
      // the dimensions other than the channel, innermost first, must merge into one
      bool found = false;
      int64_t stride = 0, next = 0;
      for (size_t k = 0; k + 1 < dims; ++k) {
        const size_t d = k + 2 < dims ? dims - 1 - k : 0;
        if (sizes[d] == 1) continue;
        if (found && t.stride(static_cast<int64_t>(d)) != next) return false;
        if (!found) stride = t.stride(static_cast<int64_t>(d));
        found = true;
        next = t.stride(static_cast<int64_t>(d)) * sizes[d];
      }
      view.row_stride = found ? stride : sizes[1];
      return true;
    }
    int64_t next = 1;
    for (size_t d = dims; d-- > 2;) {
      if (sizes[d] == 1) continue;
      if (t.stride(static_cast<int64_t>(d)) != next) return false;
      next *= sizes[d];
    }
    view.row_stride = t.stride(0);
    view.channel_stride = t.stride(1);
    return true;
  }

  // t itself where its strides fit, one repeated run where it is a single expanded number, else a copy.
  BatchNormView read(const char* what, const Tensor& t) {
    PYDL_CHECK(same_device(t, first_input), name, ": expected ", what,
               " to be on the device of input, got another");
    PYDL_CHECK(has_sizes(t), name, ": expected ", what, " to have input's shape ", join_sizes(), ", got ",
               shape_of(t));
    PYDL_CHECK(dtype_of(name, t) == params.dtype, name, ": expected ", what, " to have input's dtype, got ",
               dtype_name(t.scalar_type()));
    BatchNormView view{};
    if (empty()) return view;
    if (all_expanded(t)) {
      const int64_t run = params.channels_last ? params.channels : params.spatial;
      Tensor repeated = pydl::empty(t, t.scalar_type(), {run});
      view.data = repeated.mutable_data_ptr();
      if (cuda) {
        torch::stable::copy_(repeated, all_of_one(t, run));
      } else {
        char* to = static_cast<char*>(view.data);
        const char* from = static_cast<const char*>(t.const_data_ptr());
        const size_t size = static_cast<size_t>(element_size());
        for (size_t i = 0; i < static_cast<size_t>(run); ++i) memcpy(to + i * size, from, size);
      }
      copies.push_back(std::move(repeated));
      return view;
    }
    if (this->view(t, view)) return view;
    Tensor copy = empty_strided(t, t.scalar_type(), sizes, strides);
    torch::stable::copy_(copy, t);
    this->view(copy, view);
    copies.push_back(std::move(copy));
    return view;
  }

  Tensor allocate(const Tensor& like, BatchNormView& view) {
    Tensor t = empty_strided(like, like.scalar_type(), sizes, strides);
    this->view(t, view);
    view.data = t.mutable_data_ptr();
    return t;
  }

  // weight, bias or a running statistic: (channels) contiguous, in input's dtype or float32 beside a half
  // input.
  void* param(const char* what, const OptionalTensor& t, bool& first) {
    if (!t.has_value()) return nullptr;
    PYDL_CHECK(t->numel() == params.channels, name, ": expected ", what, " to have ", params.channels,
               " elements, got shape ", shape_of(*t));
    PYDL_CHECK(same_device(*t, first_input), name, ": expected ", what,
               " to be on the device of input, got another");
    const DType dtype = dtype_of(name, *t);
    const bool half = params.dtype == DType::bf16 || params.dtype == DType::f16;
    PYDL_CHECK(dtype == params.dtype || (half && dtype == DType::f32), name, ": expected ", what,
               " to have input's dtype, or float32 beside a half input, got ", dtype_name(t->scalar_type()));
    PYDL_CHECK(first || dtype == params.param_dtype, name, ": expected ", what,
               " to have the dtype of the other parameters, got ", dtype_name(t->scalar_type()));
    params.param_dtype = dtype;
    first = false;
    if (t->is_contiguous()) return const_cast<void*>(t->const_data_ptr());
    copies.push_back(torch::stable::contiguous(*t));
    return const_cast<void*>(copies.back().const_data_ptr());
  }

  double* statistic(const char* what, const Tensor& t) {
    PYDL_CHECK(t.scalar_type() == ScalarType::Double && t.numel() == params.channels && t.is_contiguous(),
               name, ": expected ", what, " to be a contiguous float64 tensor of ", params.channels,
               " elements, got shape ", shape_of(t));
    return const_cast<double*>(static_cast<const double*>(t.const_data_ptr()));
  }

  // What a batch was normalised by, for the ops that are given its statistics.
  void read_statistics(const Tensor& mean, const Tensor& var, const OptionalTensor& weight,
                       const OptionalTensor& bias, double eps) {
    bool first = true;
    params.weight = param("weight", weight, first);
    params.bias = param("bias", bias, first);
    params.mean = statistic("mean", mean);
    params.var = statistic("var", var);
    params.eps = eps;
  }

  Tensor new_statistics(const Tensor& like, int64_t count, double*& data) const {
    Tensor t = pydl::empty(like, ScalarType::Double, {count * params.channels});
    data = static_cast<double*>(t.mutable_data_ptr());
    return t;
  }
  Tensor new_statistic(const Tensor& like, double*& data) const { return new_statistics(like, 1, data); }

  // The op's kernel for the CPU or the CUDA library, on the device of `like`.
  void run(const Tensor& like, void (*cpu)(const BatchNormParams&, const Parallel&),
           int (*cuda::Library::*gpu)(const BatchNormParams&, void*)) {
    if (const CudaCall launch{name, like}) {
      // may go while kernels are queued: the allocator hands it out again to this stream only
      Tensor working = pydl::empty(like, ScalarType::Byte, {launch->batch_norm_scratch(params)});
      params.scratch = working.mutable_data_ptr();
      launch.run(cuda_library->*gpu, params);
      return;
    }
    const int64_t bytes = PYDL_CPU_CALL(batch_norm_scratch)(params);
    // Of small calls on the stack: to allocate a few KB makes the C library tidy up its free lists.
    alignas(64) char small[kSmallScratch];
    params.scratch = small;
    if (bytes > kSmallScratch) {
      scratch.reset(std::aligned_alloc(64, static_cast<size_t>(ceil_div(bytes, 64) * 64)));
      if (scratch == nullptr) throw std::bad_alloc();
      params.scratch = scratch.get();
    }
    cpu(params, torch_threads());
  }

  bool empty() const { return params.batch * params.channels * params.spatial == 0; }

 private:
  bool has_sizes(const Tensor& t) const {
    if (t.dim() != static_cast<int64_t>(sizes.size())) return false;
    for (size_t d = 0; d < sizes.size(); ++d)
      if (t.size(static_cast<int64_t>(d)) != sizes[d]) return false;
    return true;
  }
  std::string join_sizes() const {
    std::string text = "(";
    for (size_t d = 0; d < sizes.size(); ++d) text += (d ? ", " : "") + std::to_string(sizes[d]);
    return text + ")";
  }
  // `run` times the one element of t, as a view.
  static Tensor all_of_one(const Tensor& t, int64_t run) {
    const int64_t stride = 0;
    int32_t device_type = 0, device_index = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device_type));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &device_index));
    AtenTensorHandle handle = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_create_tensor_from_blob(const_cast<void*>(t.const_data_ptr()), 1, &run, &stride, 0,
                                           to_shim(t.scalar_type()), device_type, device_index, &handle));
    return Tensor(handle);
  }
  bool all_expanded(const Tensor& t) const {
    bool any = false;
    for (size_t d = 0; d < sizes.size(); ++d) {
      if (sizes[d] == 1) continue;
      if (t.stride(static_cast<int64_t>(d)) != 0) return false;
      any = true;
    }
    return any;
  }
};

}  // namespace pydl
