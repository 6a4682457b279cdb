#include "csrc/torch.h"

#include "csrc/memory.h"

namespace pydl {

DType dtype_of(const char* op, const Tensor& t) {
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
  throw std::runtime_error(join(op, ": expected dtype to be float32, float64, bfloat16 or float16, got ",
                                dtype_name(t.scalar_type())));
}

namespace {

// A tensor over memory of the pool, or none when the pool has none; strides are dense.
std::optional<Tensor> empty_pooled(ScalarType type, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                   torch::headeronly::IntHeaderOnlyArrayRef strides, int64_t bytes,
                                   int32_t device_type, int32_t device_index) {
  int64_t got = 0;
  void* data = memory::allocate(bytes, &got);
  if (data == nullptr) return std::nullopt;
  AtenTensorHandle handle = nullptr;
  const auto give_back = [](void* data, void* size) {
    memory::release(data, reinterpret_cast<intptr_t>(size));
  };
  const auto error =
      torch_from_blob(data, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0,
                      to_shim(type), device_type, device_index, &handle, aoti_torch_layout_strided(), nullptr,
                      0, give_back, reinterpret_cast<void*>(got));
  if (error != AOTI_TORCH_SUCCESS) memory::release(data, got);
  STABLE_TORCH_ERROR_CODE_CHECK(error);
  return Tensor(handle);
}

}  // namespace

Tensor empty_strided(const Tensor& like, ScalarType type, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                     torch::headeronly::IntHeaderOnlyArrayRef strides) {
  int32_t device_type = 0, device_index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  int64_t bytes = bytes_per_element(type);
  for (int64_t size : sizes) bytes *= size;
  if (bytes >= memory::kThreshold && device_type == aoti_torch_device_type_cpu() && memory::enabled())
    if (auto pooled = empty_pooled(type, sizes, strides, bytes, device_type, device_index)) return *pooled;
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), to_shim(type), device_type,
                                                         device_index, &handle));
  Tensor tensor(handle);
  if (memory::poison && bytes > 0) [[unlikely]]
    memset(tensor.mutable_data_ptr(), 0xFF, static_cast<size_t>(bytes));
  return tensor;
}

Tensor empty(const Tensor& like, ScalarType type, const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= max_of(sizes[d], 1);
  }
  return empty_strided(like, type, sizes, strides);
}

std::vector<int64_t> channels_last_strides(const std::vector<int64_t>& sizes) {
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

std::vector<int64_t> innermost_first(std::initializer_list<const Tensor*> tensors) {
  const Tensor& shape = **tensors.begin();
  const int64_t dims = shape.dim();
  std::vector<int64_t> order;
  for (int64_t d = dims - 1; d >= 0; --d) order.push_back(d);
  // -1: a belongs inside b, 1: outside, 0: no opinion
  const auto compare = [&](int64_t a, int64_t b) {
    for (const Tensor* t : tensors) {
      const int64_t x = t->stride(a), y = t->stride(b);
      if (x == 0 || y == 0) continue;
      if (x < y) return -1;
      if (x > y || shape.size(a) > shape.size(b)) return 1;
    }
    return 0;
  };
  for (int64_t i = 1; i < dims; ++i)
    for (int64_t at = i, before = i - 1; before >= 0; --before) {
      const int opinion = compare(order[before], order[at]);
      if (opinion < 0) break;
      if (opinion > 0) {
        std::swap(order[before], order[at]);
        at = before;
      }
    }
  return order;
}

std::vector<int64_t> dense_strides(const Tensor& t, const std::vector<int64_t>& order) {
  std::vector<int64_t> dense(order.size());
  int64_t stride = 1;
  for (int64_t d : order) {
    dense[static_cast<size_t>(d)] = stride;
    stride *= max_of(t.size(d), 1);
  }
  return dense;
}

std::vector<int64_t> strides_like(const Tensor& t) {
  const std::vector<int64_t> dense = dense_strides(t, innermost_first({&t}));
  bool is_dense = true;
  for (int64_t d = 0; d < t.dim(); ++d)
    is_dense &= t.size(d) == 1 || t.stride(d) == dense[static_cast<size_t>(d)];
  return is_dense ? std::vector<int64_t>(t.strides().begin(), t.strides().end()) : dense;
}

Tensor empty_as(const Tensor& t) { return empty_strided(t, t.scalar_type(), t.sizes(), strides_like(t)); }

Tensor converted(const Tensor& t, ScalarType type) {
  Tensor copy = empty_strided(t, type, t.sizes(), strides_like(t));
  torch::stable::copy_(copy, t);
  return copy;
}

bool has_strides(const Tensor& t, const std::vector<int64_t>& strides) {
  if (t.numel() == 0) return true;
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) > 1 && t.stride(d) != strides[static_cast<size_t>(d)]) return false;
  return true;
}

Tensor lying_as(const std::vector<int64_t>& strides, const Tensor& t) {
  if (has_strides(t, strides)) return t;
  Tensor copy = empty_strided(t, t.scalar_type(), t.sizes(), strides);
  torch::stable::copy_(copy, t);
  return copy;
}

std::vector<int64_t> strides_like(const Tensor& a, const Tensor& b) {
  const std::vector<int64_t> sizes = sizes_of(a);
  if (a.is_contiguous() && b.is_contiguous()) {
    std::vector<int64_t> last_first;
    for (int64_t d = a.dim() - 1; d >= 0; --d) last_first.push_back(d);
    return dense_strides(a, last_first);
  }
  if (a.dim() == 4) {
    const std::vector<int64_t> last = channels_last_strides(sizes);
    if (has_strides(a, last) && has_strides(b, last)) return last;
  }
  const std::vector<int64_t> own(a.strides().begin(), a.strides().end());
  if (std::equal(own.begin(), own.end(), b.strides().begin()) && strides_like(a) == own) return own;
  return dense_strides(a, innermost_first({&a, &b}));
}

Parallel torch_threads() {
  return {[](int64_t n, int64_t grain, Parallel::Body body, void* context) {
            STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, n, max_of(grain, 1), body, context));
          },
          static_cast<int64_t>(torch::stable::get_num_threads())};
}

}  // namespace pydl
