// The negative log likelihood on the CPU. See kernels/nll_loss.h.
//
// The forward reads one number of each position's classes. The backward writes zeros, and into those that are still in
// the cache the few numbers that are none.
#include "kernels/nll_loss.h"

#include "kernels/cpu/rows/along.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kPiece = 2048;  // numbers of a class, or positions, that are filled with zeros at once
constexpr int64_t kTaskElements = 16384;

template <class T>
PYDL_INLINE acc_t<T> number(const T* p) {
  return load_n(p, 1)[0];
}
template <class T>
PYDL_INLINE void write(T* p, acc_t<T> value) {
  store_n(p, broadcast<acc_t<T>>(value), 1);
}

// Where a position's class 0 lies, going through the positions in order.
struct Place {
  int64_t classes, inner, column, at;
  Place(const NllLossParams& p, int64_t position)
      : classes(p.classes),
        inner(p.inner),
        column(position % p.inner),
        at((position / p.inner) * p.classes * p.inner + position % p.inner) {}
  void next() {
    ++at;
    if (++column == inner) {
      column = 0;
      at += (classes - 1) * inner;
    }
  }
};

template <class T>
NllLossStatus forward(const NllLossParams& p, const Parallel& parallel) {
  using A = acc_t<T>;
  const T *x = static_cast<const T*>(p.input), *weight = static_cast<const T*>(p.weight);
  T* output = static_cast<T*>(p.output);
  const int64_t positions = p.batch * p.inner, blocks = ceil_div(positions, kNllLossBlock);
  int64_t bad = -1;  // a position; any of them: who finds one writes it
  parallel(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      double loss = 0, weights = 0;
      const int64_t first = block * kNllLossBlock, last = min_of(first + kNllLossBlock, positions);
      Place place(p, first);
      for (int64_t i = first; i < last; ++i, place.next()) {
        const int64_t t = p.target[i];
        A value = 0;
        if (t != p.ignore_index) {
          if (static_cast<uint64_t>(t) >= static_cast<uint64_t>(p.classes)) [[unlikely]] {
            __atomic_store_n(&bad, i, __ATOMIC_RELAXED);
            continue;
          }
          const A w = weight ? number(weight + t) : A(1);
          value = -w * number(x + place.at + t * p.inner);
          loss += static_cast<double>(value);
          weights += static_cast<double>(w);
        }
        if (p.per_position) write(output + i, value);
      }
      p.sums[2 * block] = loss;
      p.sums[2 * block + 1] = weights;
    }
  });
  if (bad >= 0) return {false, p.target[bad]};
  double loss = 0, weights = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    loss += p.sums[2 * block];
    weights += p.sums[2 * block + 1];
  }
  *p.total_weight = weights;
  if (!p.per_position) write(output, static_cast<A>(p.mean ? loss / weights : loss));
  return {true, 0};
}

template <class T>
struct Backward {
  using A = acc_t<T>;
  const NllLossParams& p;
  const T *weight, *grad;
  T* out;
  A scale;

  explicit Backward(const NllLossParams& params)
      : p(params),
        weight(static_cast<const T*>(p.weight)),
        grad(static_cast<const T*>(p.grad_output)),
        out(static_cast<T*>(p.output)),
        scale(p.mean ? static_cast<A>(1 / *p.total_weight) : A(1)) {}

  // The numbers that are not 0 of the positions [first, last).
  void scatter(int64_t first, int64_t last) const {
    Place place(p, first);
    for (int64_t i = first; i < last; ++i, place.next()) {
      const int64_t t = p.target[i];
      if (t == p.ignore_index) continue;
      const A w = weight ? number(weight + t) : A(1);
      write(out + place.at + t * p.inner, -w * number(grad + (p.per_position ? i : 0)) * scale);
    }
  }

  void run(const Parallel& parallel) const {
    if (p.inner == 1) {  // classes lie side by side: rows as they are
      const int64_t rows = max_of(1, kPiece / p.classes);
      parallel(p.batch, ceil_div(kTaskElements, p.classes), [&](int64_t begin, int64_t end) {
        for (int64_t first = begin; first < end; first += rows) {
          const int64_t last = min_of(first + rows, end);
          memset(out + first * p.classes, 0, static_cast<size_t>((last - first) * p.classes) * sizeof(T));
          scatter(first, last);
        }
      });
      return;
    }
    const int64_t pieces = ceil_div(p.inner, kPiece);
    const int64_t size = p.classes * min_of(p.inner, kPiece);
    parallel(p.batch * pieces, ceil_div(kTaskElements, size), [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t image = task / pieces, first = task % pieces * kPiece,
                      n = min_of(kPiece, p.inner - first);
        for (int64_t c = 0; c < p.classes; ++c)
          memset(out + (image * p.classes + c) * p.inner + first, 0, static_cast<size_t>(n) * sizeof(T));
        scatter(image * p.inner + first, image * p.inner + first + n);
      }
    });
  }
};

}  // namespace

NllLossStatus nll_loss_forward(const NllLossParams& p, const Parallel& parallel) {
  NllLossStatus status{};
  dispatch_rows(p.dtype, [&](auto type) { status = forward<decltype(type)>(p, parallel); });
  return status;
}

void nll_loss_backward(const NllLossParams& p, const Parallel& parallel) {
  dispatch_rows(p.dtype, [&](auto type) { Backward<decltype(type)>(p).run(parallel); });
}

}  // namespace pydl::cpu::PYDL_ISA
