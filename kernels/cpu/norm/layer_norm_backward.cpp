// Layer norm and RMS norm on the CPU, backward: one read of input and gradient, for rows that stay in a cache.
//
// Two loops over a row: its two sums, with what it adds to the gradients of weight and bias, then its gradient. Rows are
// cut into blocks whose size depends on the shape alone; the blocks' sums are added in order.
#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/norm/layer_norm.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// Rows in step, which halve the traffic of the sums over rows; float64 and SSE2 do without the text.
template <class T>
constexpr int kPair = kVectorBytes == 16 || sizeof(T) == 8 ? 1 : 2;

int64_t block_rows(const LayerNormParams& p) {
  const int64_t rows = max_of(ceil_div(p.rows, 64), ceil_div(8192, p.width));
  return ceil_div(min_of(rows, 512), 2) * 2;
}
int64_t blocks_of(const LayerNormParams& p) { return ceil_div(p.rows, block_rows(p)); }
bool sums_over_rows(const LayerNormParams& p) { return p.grad_weight != nullptr || p.grad_bias != nullptr; }

template <class T>
struct Rows {
  using A = acc_t<T>;
  const T *input, *grad_output;
  T* grad_input;  // null where not wanted
  const A* weight;
  const double *mean, *scale;  // mean: null for RMS norm
  int64_t width;
  A inverse;  // 1 / width
  bool past_cache;
};

// grad_weight, grad_bias: what the rows add to, or null. A branch for each vector, which costs nothing; a loop of its own
// for either case is half of the text again.
template <int kRows, class T>
void gradient(const Rows<T>& p, int64_t row, acc_t<T>* grad_weight, acc_t<T>* grad_bias) {
  using A = acc_t<T>;
  const int64_t width = p.width;
  const T *x = p.input + row * width, *g = p.grad_output + row * width;
  A mean[kRows] = {}, scale[kRows], offset[kRows] = {};  // xhat = (x - mean) * scale + offset
  for (int r = 0; r < kRows; ++r) {
    scale[r] = static_cast<A>(p.scale[row + r]);
    if (p.mean) {
      mean[r] = static_cast<A>(p.mean[row + r]);
      offset[r] = static_cast<A>(mean[r] - p.mean[row + r]) * scale[r];
    }
  }
  vec<A> sum[2 * kRows] = {};  // of g and of g * xhat, row after row
  along<A>(0, width, [&](int64_t j, auto part) PYDL_INLINE_LAMBDA {
    const vec<A> w = load_part(p.weight + j, part);
    vec<A> of_weight{}, of_bias{};
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const vec<A> xhat = (load_part(x + r * width + j, part) - mean[r]) * scale[r] + offset[r];
      const vec<A> upstream = load_part(g + r * width + j, part);
      of_weight += upstream * xhat;
      of_bias += upstream;
      sum[2 * r] += upstream * w;
      sum[2 * r + 1] += upstream * w * xhat;
    }
    if (grad_weight != nullptr) {  // to the end of the last vector, whose other lanes nobody reads
      store(grad_weight + j, load(grad_weight + j) + of_weight);
      store(grad_bias + j, load(grad_bias + j) + of_bias);
    }
  });
  if (p.grad_input == nullptr) return;
  A total[2 * kRows], a[kRows], b[kRows];
  reduce_add_each(sum, total);
  for (int r = 0; r < kRows; ++r) {  // grad = (g + (x - mean) * a + b) * scale
    const A of_g = p.mean ? total[2 * r] * p.inverse : A(0), of_product = total[2 * r + 1] * p.inverse;
    a[r] = -of_product * scale[r];
    b[r] = -of_product * offset[r] - of_g;
  }
  T* to = p.grad_input + row * width;
  auto write = [&](const auto& put) PYDL_INLINE_LAMBDA {
    along<A>(0, width, [&](int64_t j, auto part) PYDL_INLINE_LAMBDA {
      const vec<A> w = load_part(p.weight + j, part);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        prefetch_far_ahead(x + r * width + j, kRows * width);  // the next rows
        prefetch_far_ahead(g + r * width + j, kRows * width);
        const vec<A> rest = (load_part(x + r * width + j, part) - mean[r]) * a[r] + b[r];
        // rounded before the sum, as in the mean that is taken off it: of a row of one number nothing may remain
        put(to + r * width + j, (pin(load_part(g + r * width + j, part) * w) + rest) * scale[r], part);
      }
    });
  };
  if (p.past_cache)  // whole vectors alone
    write([](T* q, vec<A> v, auto) PYDL_INLINE_LAMBDA { stream(q, v); });
  else
    write([](T* q, vec<A> v, auto part) PYDL_INLINE_LAMBDA { store_part(q, v, part); });
}

template <class T>
void block(const Rows<T>& rows, int64_t begin, int64_t end, acc_t<T>* grad_weight, acc_t<T>* grad_bias) {
  int64_t row = begin;
  if constexpr (kPair<T> > 1)
    for (; row + kPair<T> <= end; row += kPair<T>) gradient<kPair<T>>(rows, row, grad_weight, grad_bias);
  for (; row < end; ++row) gradient<1>(rows, row, grad_weight, grad_bias);
}

// The sums of all blocks, in order, as the parameter's dtype.
template <class T, class A>
void combine(const LayerNormParams& p, const A* partial, int64_t pitch, int64_t begin, int64_t end,
             void* to) {
  for (int64_t j = begin; j < end; j += lanes<A>) {
    vec<A> sum{};
    for (int64_t c = 0; c < blocks_of(p); ++c) sum += load(partial + 2 * c * pitch + j);
    const int64_t n = min_of(lanes<A>, p.width - j);
    if (sizeof(T) == 2 && p.parameter != DType::f32)
      store_n(static_cast<T*>(to) + j, sum, n);
    else
      store_n(static_cast<A*>(to) + j, sum, n);
  }
}

template <class T>
void run(const LayerNormParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  const int64_t pitch = pitch_of<A>(p.width), size = block_rows(p), blocks = blocks_of(p);
  Pieces pieces{static_cast<char*>(p.scratch)};
  const A* weight = widened_parameter<T>(p.weight, p.parameter, p.width, A(1), pieces.take<A>(pitch));
  A* partial = pieces.take<A>(2 * blocks * pitch);
  const Rows<T> rows{static_cast<const T*>(p.input),
                     static_cast<const T*>(p.grad_output),
                     static_cast<T*>(p.grad_input),
                     weight,
                     p.centered ? p.mean : nullptr,
                     p.scale,
                     p.width,
                     A(1) / static_cast<A>(p.width),
                     goes_past_cache<T>(p.grad_input, p.rows, p.width)};
  auto task = [&](int64_t c, int64_t) {
    const int64_t begin = c * size, end = min_of(begin + size, p.rows);
    A* sums = sums_over_rows(p) ? partial + 2 * c * pitch : nullptr;
    if (sums) memset(sums, 0, static_cast<size_t>(2 * pitch) * sizeof *sums);
    block(rows, begin, end, sums, sums ? sums + pitch : nullptr);
    if (rows.past_cache) stream_fence();
  };
  if (p.rows * p.width <= kTaskElements)
    for (int64_t c = 0; c < blocks; ++c) task(c, 0);
  else
    run_tasks(parallel, blocks, task);
  if (!sums_over_rows(p)) return;
  const int64_t vectors = pitch / lanes<A>;
  parallel(vectors, ceil_div(kTaskElements, lanes<A> * max_of(blocks, 1)), [&](int64_t begin, int64_t end) {
    if (p.grad_weight) combine<T>(p, partial, pitch, begin * lanes<A>, end * lanes<A>, p.grad_weight);
    if (p.grad_bias) combine<T>(p, partial + pitch, pitch, begin * lanes<A>, end * lanes<A>, p.grad_bias);
  });
}

}  // namespace

int64_t layer_norm_scratch(const LayerNormParams& p, bool backward) {
  const int64_t numbers = backward ? 1 + (sums_over_rows(p) ? 2 * blocks_of(p) : 0) : 2;
  const bool is_double = p.dtype == DType::f64;
  const int64_t pitch = is_double ? pitch_of<double>(p.width) : pitch_of<float>(p.width);
  return numbers * (Pieces::bytes<char>(pitch * (is_double ? 8 : 4)) + 64);
}

void layer_norm_backward(const LayerNormParams& p, const Parallel& parallel) {
  dispatch_rows(p.dtype, [&](auto type) { run<decltype(type)>(p, parallel); });
}

}  // namespace pydl::cpu::PYDL_ISA
