// Softmax cross entropy on the CPU: checks the targets, hands the rows to their layout, sums the losses.
// See kernels/softmax_cross_entropy.h for the formulas.
//
// The targets are read first, by themselves: the mean's denominator must be known before a gradient can be
// written, and an index out of range must be found before it is used as one. They are a thousandth of the
// logits' bytes.
#include "kernels/cpu/softmax/softmax_cross_entropy_common.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// The losses of all rows, added in double in an order that depends on their number alone.
template <class A>
double sum_losses(const SoftmaxCrossEntropyParams& p) {
  const A* loss = static_cast<const A*>(p.scratch);
  constexpr int kSums = 16;
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= p.rows; i += kSums)
    for (int j = 0; j < kSums; ++j) sums[j] += static_cast<double>(loss[i + j]);
  for (int j = 0; i < p.rows; ++i, ++j) sums[j] += static_cast<double>(loss[i]);
  for (int half = kSums / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
  return sums[0];
}

void put_total(const SoftmaxCrossEntropyParams& p, double total) {
  const vec<float> narrow = broadcast(static_cast<float>(total));
  switch (p.output_dtype) {
    case DType::f64:
      *static_cast<double*>(p.output) = total;
      break;
    case DType::f32:
      *static_cast<float*>(p.output) = static_cast<float>(total);
      break;
    case DType::bf16:
      store_n(static_cast<bf16*>(p.output), narrow, 1);
      break;
    case DType::f16:
      store_n(static_cast<f16*>(p.output), narrow, 1);
      break;
  }
}

enum class Layout { short_rows, rows, strided };

// Rows, where all that is read or written has the classes of a row side by side.
Layout layout(const SoftmaxCrossEntropyParams& p) {
  const bool contiguous = p.input_class_stride == 1 && (!p.probabilities || p.target_class_stride == 1) &&
                          (!p.grad_input || p.grad_class_stride == 1);
  return !contiguous ? Layout::strided : short_supported(p) ? Layout::short_rows : Layout::rows;
}

}  // namespace

// Adds n targets, `stride` apart.
static void count_targets(const SoftmaxCrossEntropyParams& p, const int64_t* target, int64_t stride,
                          int64_t n, TargetCount& count) {
  auto is_bad = [&](int64_t t) { return t != p.ignore_index && (t < 0 || t >= p.classes); };
  int64_t counted = 0, bad = 0;
  auto add = [&](int64_t t) PYDL_INLINE_LAMBDA {
    counted += t != p.ignore_index;
    bad |= is_bad(t);
  };
  if (stride == 1)
    for (int64_t i = 0; i < n; ++i) add(target[i]);
  else
    for (int64_t i = 0; i < n; ++i) add(target[i * stride]);
  if (bad && !count.bad) {
    int64_t i = 0;
    while (!is_bad(target[i * stride])) ++i;
    count.bad = 1;
    count.first_bad = target[i * stride];
  }
  if (!p.weight) {
    count.weight += static_cast<double>(counted);
  } else if (!bad) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t t = target[i * stride];
      if (t == p.ignore_index) continue;
      count.weight += p.dtype == DType::f64 ? static_cast<const double*>(p.weight)[t]
                                            : static_cast<double>(static_cast<const float*>(p.weight)[t]);
    }
  }
}

// Sums the weights of the targets that count. Blocks of fixed size, added up in order.
SoftmaxCrossEntropyStatus weigh_targets(const SoftmaxCrossEntropyParams& p, const Parallel& parallel) {
  TargetCount* counts =
      reinterpret_cast<TargetCount*>(static_cast<char*>(p.scratch) + ScratchLayout(p, 0).counts);
  const int64_t blocks = ceil_div(p.rows, kTargetBlock);
  const int64_t* target = static_cast<const int64_t*>(p.target);
  const int last = p.dims - 1;
  parallel(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      TargetCount count{};
      RowCursor at(p, block * kTargetBlock);
      for (int64_t left = min_of(kTargetBlock, p.rows - block * kTargetBlock); left > 0;) {
        const int64_t n = min_of(left, p.size[last] - at.index[last]);
        count_targets(p, target + at.target, p.target_stride[last], n, count);
        left -= n;
        at.index[last] += n - 1;
        at.move(last, n - 1);
        at.next();
      }
      counts[block] = count;
    }
  });
  double sum = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    if (counts[block].bad) return {false, counts[block].first_bad};
    sum += counts[block].weight;
  }
  if (p.denominator) *p.denominator = sum;
  return {true, 0};
}

void put_reduced_loss(const SoftmaxCrossEntropyParams& p) {
  const double sum = p.dtype == DType::f64 ? sum_losses<double>(p) : sum_losses<float>(p);
  put_total(p, p.reduction == Reduction::mean ? sum / *p.denominator : sum);
}

int64_t softmax_cross_entropy_scratch(const SoftmaxCrossEntropyParams& p, int64_t threads) {
  return ScratchLayout(p, rows_partial_bytes(p, threads)).bytes;
}

SoftmaxCrossEntropyStatus softmax_cross_entropy_forward(const SoftmaxCrossEntropyParams& p,
                                                        const Parallel& parallel) {
  if (p.probabilities) {
    // torch divides by numel / classes
    if (p.denominator) *p.denominator = p.classes > 0 ? static_cast<double>(p.rows) : kNan;
  } else {
    const SoftmaxCrossEntropyStatus status = weigh_targets(p, parallel);
    if (!status.ok) return status;
  }
  if (p.rows > 0) {
    switch (layout(p)) {
      case Layout::short_rows:
        short_forward(p, parallel);
        break;
      case Layout::rows:
        rows_forward(p, parallel);
        break;
      case Layout::strided:
        strided_forward(p, parallel);
        break;
    }
  }
  if (p.reduction != Reduction::none) put_reduced_loss(p);
  return {true, 0};
}

void softmax_cross_entropy_backward(const SoftmaxCrossEntropyParams& p, const Parallel& parallel) {
  if (p.rows == 0 || p.classes == 0) return;
  switch (layout(p)) {
    case Layout::short_rows:
      return short_backward(p, parallel);
    case Layout::rows:
      return rows_backward(p, parallel);
    case Layout::strided:
      return strided_backward(p, parallel);
  }
}

void softmax_cross_entropy_backward_target(const SoftmaxCrossEntropyParams& p, const Parallel& parallel) {
  if (p.rows > 0 && p.classes > 0) strided_backward_target(p, parallel);
}

}  // namespace pydl::cpu::PYDL_ISA
