// Softmax cross entropy of a linear layer's outputs: see kernels/linear_cross_entropy.h.
//
// A block of rows at a time: the product that makes its logits, the kernels of softmax cross entropy over them, which
// leave the gradient in their place, and the two products that use it. Each is the library's own, so this file holds
// nothing but the blocks. bfloat16 is multiplied as such, in pairs, where the CPU can: then a block's gradient is rounded
// in its place before it is used, as torch rounds it; logits, sums and results are float32. The blocks' rows follow from the shape alone: the sum over blocks that is the weight's gradient
// must not depend on threads.
//
// Never stored: the logits of more than one block.
#include "kernels/linear_cross_entropy.h"

#include "kernels/cpu/base/scratch.h"
#include "kernels/cpu/base/tasks.h"
#include "kernels/cpu/softmax/softmax_cross_entropy_common.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// Logits of a block, which stay in the third cache: rows enough for the passes over the weight and its gradient to pay
// (NOTES.md).
constexpr int64_t kBlockBytes = 12 << 20;
constexpr int64_t kLeastRows = 64;  // of a block: below, those passes take longer than its products
// Of a block's gradient, what a thread takes at a time: it stays in the second cache from the sum for the bias to the
// product for the weight.
constexpr int64_t kChunkBytes = 256 << 10;
constexpr int64_t kChunkClasses = 64;  // chunks are whole multiples of it, for the product's sake
// Rows whose gradients are summed in one go for the bias; classes of such a sum.
constexpr int64_t kSumRows = 256, kSumClasses = 512;
// Logits that are compared with the target's before the first look at the outcome.
constexpr int64_t kCompared = 1024;

// Whether none of the logits is `limit` or more, or, with `equal`, is more.
template <class A>
bool all_below(const A* x, int64_t n, A limit, bool equal) {
  for (int64_t first = 0; first < n; first += kCompared) {
    const int64_t end = min_of(first + kCompared, n);
    int beyond = 0;  // nan counts
    if (equal)
      for (int64_t c = first; c < end; ++c) beyond |= !(x[c] <= limit);
    else
      for (int64_t c = first; c < end; ++c) beyond |= !(x[c] < limit);
    if (beyond) return false;
  }
  return true;
}

int64_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// One call: its blocks, what each kernel is given of them, and the pieces of scratch (`bytes` in all). T: the operands'
// type, and that of the gradient of a block's logits.
template <class T>
class Call {
  using A = acc_t<T>;
  static constexpr bool kRounds = !__is_same(T, A);
  static constexpr DType kSums = __is_same(A, double) ? DType::f64 : DType::f32;

 public:
  Call(const LinearCrossEntropyParams& params, int64_t threads)
      : p(params), makes_gradients(p.grad_input || p.grad_weight || p.grad_bias), threads_(threads) {
    // an odd number of cache lines, so that rows fall into different sets
    pitch = (ceil_div(p.classes, kLine) | 1) * kLine;
    const int64_t most = max_of(kBlockBytes / (pitch * static_cast<int64_t>(sizeof(A))), kLeastRows);
    block_rows = ceil_div(p.rows, max_of(ceil_div(p.rows, most), 1));
    Pieces pieces{static_cast<char*>(p.scratch)};
    logits = pieces.take<A>(block_rows * pitch);
    whole = rows_of(0, p.rows);
    whole.reduction = p.reduction;
    whole.output = p.output;
    whole.denominator = p.denominator;
    whole.grad_output = p.grad_output;
    whole.scratch = pieces.take<char>(ScratchLayout(whole, 0).bytes);
    correct = pieces.take<uint8_t>(p.correct ? p.rows : 0);
    int64_t least = 0;
    each_block([&](int64_t first, int64_t n) {
      if (first != 0 && n == block_rows) return;  // as the first one
      SoftmaxCrossEntropyParams rows = rows_of(first, n);
      // while scratch is measured nothing has a place, and sizes go by what there is
      rows.grad_input = makes_gradients ? &rows : nullptr;
      rows.output = p.output ? &rows : nullptr;
      least = max_of(least, softmax_cross_entropy_scratch(rows, threads));
      const MatmulParams products[] = {logits_of(first, n), input_of(first, n),
                                       weight_of(first, n, 0, p.classes)};
      for (const MatmulParams& product : products)
        if (product.rows > 0 && product.columns > 0)
          least = max_of(least, matmul_plan(product, threads).scratch);
      const int64_t chunk_sizes[] = {min_of(chunk_of(n), p.classes), p.classes % chunk_of(n)};
      for (const int64_t classes : chunk_sizes)
        if (classes > 0 && p.features > 0)
          chunk_scratch_ = max_of(chunk_scratch_, matmul_plan(weight_of(first, n, 0, classes), 1).scratch);
    });
    least = max_of(least, min_of(threads, Tasks::kMostWorkers) * chunk_scratch_);
    shared = pieces.take<char>(least);
    bytes = pieces.next - static_cast<char*>(p.scratch);
  }

  template <class F>
  void each_block(const F& body) const {
    for (int64_t first = 0; first < p.rows; first += block_rows)
      body(first, min_of(block_rows, p.rows - first));
  }

  void make_logits(int64_t first, int64_t n, const Parallel& parallel) const {
    multiply(logits_of(first, n), parallel);
  }

  // grad_logits of the block lie in place of its logits
  void use_gradient(int64_t first, int64_t n, const Parallel& parallel) const {
    if (kRounds && makes_gradients) round_gradient(n, parallel);
    if (p.grad_input) multiply(input_of(first, n), parallel);
    if (!p.grad_weight && !p.grad_bias) return;
    const int64_t chunk = chunk_of(n), chunks = ceil_div(p.classes, chunk);
    if (chunks < 2 * parallel.threads) {  // few classes: the product has other ways to share
      if (p.grad_bias) sum_gradient(first, n, 0, p.classes);
      if (p.grad_weight) multiply(weight_of(first, n, 0, p.classes), parallel);
      return;
    }
    const bool multiplies = p.grad_weight && p.features > 0;
    MatmulPlan plan{}, plan_of_last{};
    if (multiplies) {
      plan = matmul_plan(weight_of(first, n, 0, chunk), 1);
      plan_of_last = matmul_plan(weight_of(first, n, 0, p.classes - (chunks - 1) * chunk), 1);
    }
    run_tasks(parallel, chunks, [&](int64_t task, int64_t worker) {
      const int64_t c = task * chunk, classes = min_of(chunk, p.classes - c);
      if (p.grad_bias) sum_gradient(first, n, c, classes);
      if (!multiplies) return;
      MatmulParams product = weight_of(first, n, c, classes);
      product.scratch = shared + worker * chunk_scratch_;
      matmul(task + 1 < chunks ? plan : plan_of_last, product, kAlone);
    });
  }

  // n rows of cross entropy, each with a loss and a gradient of its own
  SoftmaxCrossEntropyParams rows_of(int64_t first, int64_t n) const {
    SoftmaxCrossEntropyParams s{};
    s.dtype = s.target_dtype = kSums;
    s.output_dtype = p.output_dtype;
    s.reduction = Reduction::none;
    s.ignore_index = p.ignore_index;
    s.label_smoothing = p.label_smoothing;
    s.z_loss = p.z_loss;
    s.input = logits;
    s.target = p.target + first * p.target_stride;
    s.weight = p.weight;
    s.norm = static_cast<A*>(p.norm) + 2 * first;
    s.classes = p.classes;
    s.input_class_stride = s.grad_class_stride = 1;
    s.rows = n;
    s.dims = 1;
    s.size[0] = n;
    s.row_stride[0] = 1;
    s.input_stride[0] = s.grad_stride[0] = pitch;
    s.target_stride[0] = p.target_stride;
    s.scratch = shared;
    return s;
  }
  // the same rows with losses, where the output has them or, to be summed, in scratch
  SoftmaxCrossEntropyParams with_losses(SoftmaxCrossEntropyParams s, int64_t first) const {
    if (p.reduction != Reduction::none) {
      s.output = static_cast<A*>(whole.scratch) + first;
      s.output_dtype = kSums;
    } else {
      s.output = static_cast<char*>(p.output) + first * size_of(p.output_dtype);
    }
    return s;
  }
  // the same rows with a gradient, in place of the logits; g: that of every row's loss
  SoftmaxCrossEntropyParams with_gradient(SoftmaxCrossEntropyParams s, const A* g) const {
    s.grad_input = logits;
    s.grad_output = g;
    s.grad_output_stride[0] = 0;
    s.output_dtype = kSums;
    return s;
  }

  // Flags for the rows of a block, while its logits are logits.
  void compare(int64_t first, int64_t n, const Parallel& parallel) const {
    parallel(n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t t = p.target[(first + i) * p.target_stride];
        const A* x = logits + i * pitch;
        correct[first + i] = t != p.ignore_index && x[t] == x[t] && all_below(x, t, x[t], false) &&
                             all_below(x + t + 1, p.classes - t - 1, x[t], true);
      }
    });
  }
  void count_correct() const {
    *p.correct = 0;
    for (int64_t i = 0; i < p.rows; ++i) *p.correct += correct[i];
  }

  const LinearCrossEntropyParams& p;
  const bool makes_gradients;
  int64_t pitch, block_rows, bytes;
  A* logits = nullptr;                // [block_rows][pitch]
  SoftmaxCrossEntropyParams whole{};  // all rows, for what is not done block by block
  uint8_t* correct = nullptr;         // [rows]

 private:
  static constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(A));

  Matrix block(const Matrix& m, int64_t first) const {
    return {static_cast<T*>(m.data) + first * m.row, m.row, m.column};
  }
  MatmulParams product(int64_t rows, int64_t columns, int64_t depth, const Matrix& left, const Matrix& right,
                       A* output, int64_t output_pitch) const {
    MatmulParams m{p.dtype, Activation::none,          rows,    columns, depth, left,
                   right,   {output, output_pitch, 1}, nullptr, nullptr};
    m.float_output = kRounds;
    return m;
  }
  MatmulParams logits_of(int64_t first, int64_t n) const {
    const Matrix& w = p.linear_weight;
    MatmulParams m =
        product(n, p.classes, p.features, block(p.input, first), {w.data, w.column, w.row}, logits, pitch);
    m.bias = p.linear_bias;
    return m;
  }
  MatmulParams input_of(int64_t first, int64_t n) const {
    return product(n, p.features, p.classes, {gradient(), gradient_pitch(), 1}, p.linear_weight,
                   static_cast<A*>(p.grad_input) + first * p.features, p.features);
  }
  // rows of the gradient from class c on
  MatmulParams weight_of(int64_t first, int64_t n, int64_t c, int64_t classes) const {
    MatmulParams m =
        product(classes, p.features, n, {gradient() + c, 1, gradient_pitch()}, block(p.input, first),
                static_cast<A*>(p.grad_weight) + c * p.features, p.features);
    if (first != 0) m.addend = m.output;
    return m;
  }
  void multiply(MatmulParams product, const Parallel& parallel) const {
    if (product.rows == 0 || product.columns == 0) return;
    const MatmulPlan plan = matmul_plan(product, threads_);
    product.scratch = shared;
    matmul(plan, product, parallel);
  }

  int64_t chunk_of(int64_t n) const {
    const int64_t most = kChunkBytes / (n * static_cast<int64_t>(sizeof(T)));
    return max_of(most / kChunkClasses, 1) * kChunkClasses;
  }

  // Of a block, once its logits have become it: rows begin where theirs did.
  T* gradient() const { return reinterpret_cast<T*>(logits); }
  int64_t gradient_pitch() const { return pitch * static_cast<int64_t>(sizeof(A) / sizeof(T)); }

  void round_gradient(int64_t n, const Parallel& parallel) const {
    parallel(n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const A* from = logits + i * pitch;
        T* to = gradient() + i * gradient_pitch();
        // rows are whole lines; a vector is read before what it becomes is written, over its first half or before it
        for (int64_t j = 0; j < p.classes; j += lanes<A>) store(to + j, load(from + j));
      }
    });
  }

  void sum_gradient(int64_t first, int64_t n, int64_t c, int64_t classes) const {
    for (const int64_t end = c + classes; c < end; c += kSumClasses)
      for (int64_t row = 0; row < n; row += kSumRows)
        sum_rows(gradient() + row * gradient_pitch() + c, min_of(kSumRows, n - row),
                 min_of(kSumClasses, end - c), static_cast<A*>(p.grad_bias) + c, first + row != 0);
  }
  void sum_rows(const T* g, int64_t rows, int64_t columns, A* to, bool add) const {
    alignas(64) A sum[kSumClasses] = {};
    for (int64_t i = 0; i < rows; ++i, g += gradient_pitch()) {
      if constexpr (kRounds)  // to the end of a vector: rows are whole lines
        for (int64_t j = 0; j < columns; j += lanes<A>) store(sum + j, load(sum + j) + load(g + j));
      else
        for (int64_t j = 0; j < columns; ++j) sum[j] += g[j];
    }
    for (int64_t j = 0; j < columns; ++j) to[j] = add ? to[j] + sum[j] : sum[j];
  }

  static constexpr Parallel kAlone{
      [](int64_t n, int64_t, Parallel::Body body, void* context) { body(0, n, context); }, 1};

  const int64_t threads_;
  int64_t chunk_scratch_ = 0;  // of one worker
  char* shared = nullptr;      // scratch of one kernel after another
};

// Gradients of no rows.
template <class A>
void put_zeros(const LinearCrossEntropyParams& p) {
  const auto clear = [](void* data, int64_t count) {
    if (data) memset(data, 0, static_cast<size_t>(count) * sizeof(A));
  };
  clear(p.grad_weight, p.classes * p.features);
  clear(p.grad_bias, p.classes);
}

template <class T>
SoftmaxCrossEntropyStatus forward(const LinearCrossEntropyParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  const Call<T> call(p, parallel.threads);
  const SoftmaxCrossEntropyStatus status = weigh_targets(call.whole, parallel);
  if (!status.ok) return status;
  if (p.rows == 0) put_zeros<A>(p);
  const A g = static_cast<A>(call.makes_gradients ? shared_gradient(call.whole) : 0);
  call.each_block([&](int64_t first, int64_t n) {
    call.make_logits(first, n, parallel);
    if (p.correct) call.compare(first, n, parallel);
    SoftmaxCrossEntropyParams rows = call.with_losses(call.rows_of(first, n), first);
    if (call.makes_gradients) rows = call.with_gradient(rows, &g);
    softmax_cross_entropy_forward(rows, parallel);
    call.use_gradient(first, n, parallel);
  });
  if (p.reduction != Reduction::none) put_reduced_loss(call.whole);
  if (p.correct) call.count_correct();
  return {true, 0};
}

template <class T>
void backward(const LinearCrossEntropyParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  const Call<T> call(p, parallel.threads);
  if (p.rows == 0) put_zeros<A>(p);
  const A g = static_cast<A>(p.reduction == Reduction::none ? 0 : shared_gradient(call.whole));
  call.each_block([&](int64_t first, int64_t n) {
    call.make_logits(first, n, parallel);
    SoftmaxCrossEntropyParams rows = call.with_gradient(call.rows_of(first, n), &g);
    if (p.reduction == Reduction::none) {
      rows.grad_output =
          static_cast<const char*>(p.grad_output) + first * p.grad_output_stride * size_of(p.output_dtype);
      rows.grad_output_stride[0] = p.grad_output_stride;
      rows.output_dtype = p.output_dtype;
    }
    softmax_cross_entropy_backward(rows, parallel);
    call.use_gradient(first, n, parallel);
  });
}

template <class F>
auto of_type(DType dtype, const F& body) {
#if defined(PYDL_BF16_DOT)
  if (dtype == DType::bf16) return body(bf16{});
#endif
  return dtype == DType::f64 ? body(double{}) : body(float{});
}

}  // namespace

bool linear_cross_entropy_takes_bf16() {
#if defined(PYDL_BF16_DOT)
  return cpu_has_bf16_dot();
#else
  return false;
#endif
}

int64_t linear_cross_entropy_scratch(const LinearCrossEntropyParams& p, int64_t threads) {
  return of_type(p.dtype, [&](auto type) { return Call<decltype(type)>(p, threads).bytes; });
}

SoftmaxCrossEntropyStatus linear_cross_entropy_forward(const LinearCrossEntropyParams& p,
                                                       const Parallel& parallel) {
  return of_type(p.dtype, [&](auto type) { return forward<decltype(type)>(p, parallel); });
}

void linear_cross_entropy_backward(const LinearCrossEntropyParams& p, const Parallel& parallel) {
  of_type(p.dtype, [&](auto type) { backward<decltype(type)>(p, parallel); });
}

}  // namespace pydl::cpu::PYDL_ISA
