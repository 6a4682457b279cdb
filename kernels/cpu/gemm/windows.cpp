// gemm_windows of windows.h: one microkernel per number of groups and of pixels, so that a remainder wastes no
// arithmetic.
#include "kernels/cpu/gemm/windows.h"

namespace pydl::cpu::PYDL_ISA::gemm {
namespace {

// Long sums are taken in pieces of kPiece numbers and more, which are then added up: rounding errors grow
// with the root of a piece's length and of the number of pieces, not of their product. Accumulators live for
// one piece, so that the compiler keeps all of them in registers.
constexpr int64_t kPiece = 128;

// The windows of all groups, at segment t.
template <int groups, int g = 0, class E, class Windows>
PYDL_INLINE void place_groups(const WindowsBlock<E>& w, int64_t t, Windows& windows) {
  if constexpr (g < groups) {
    windows.template place<g>(w.window[g] + w.offsets[t]);
    place_groups<groups, g + 1>(w, t, windows);
  }
}

// sum = start + segments [first, last) of the windows; `b` moves on to the weights of segment `last`.
template <class E, int vectors, int groups, int pixels>
PYDL_INLINE void sum_segments(const WindowsBlock<E>& w, int64_t first, int64_t last, const acc_of<E>* start,
                              const E*& b, Groups<E, groups * pixels, pixels>& windows, Fetch& ahead,
                              vec<acc_of<E>> (&sum)[groups * pixels][vectors]) {
#pragma GCC unroll 14
  for (int m = 0; m < groups * pixels; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sum[m][v] = load(start + v * lanes<acc_of<E>>);
  for (int64_t t = first; t < last; ++t) {
    place_groups<groups>(w, t, windows);
    accumulate(w.depth, windows, b, kNr<acc_of<E>>, ahead, sum);
  }
}

template <class E, int vectors, int groups, int pixels>
void windows_kernel(const WindowsBlock<E>& w) {
  using A = acc_of<E>;
  constexpr int64_t all = lanes<A>;
  // Calls put(address, row and vector of the sum) for each vector of the results, in the type that is written.
  auto each = [&](const auto& put) PYDL_INLINE_LAMBDA {
    auto in = [&](auto type) PYDL_INLINE_LAMBDA {
#pragma GCC unroll 4
      for (int g = 0; g < groups; ++g) {
        auto* to = static_cast<decltype(type)*>(w.out[g]);
#pragma GCC unroll 7
        for (int j = 0; j < pixels; ++j, to += w.out_pitch)
#pragma GCC unroll 2
          for (int v = 0; v < vectors; ++v) put(to + v * all, g * pixels + j, v);
      }
    };
    if constexpr (__is_same(E, bf16_pair))
      if (w.narrow) return in(bf16{});
    in(A{});
  };
  // The lines of the results are prefetched now: stores that miss would wait at the end, and the next block's
  // behind them.
  if (!w.stream) {
    const int64_t element = w.narrow ? 2 : sizeof(A);
#pragma GCC unroll 4
    for (int g = 0; g < groups; ++g) {
      char* to = static_cast<char*>(w.out[g]);
#pragma GCC unroll 7
      for (int j = 0; j < pixels; ++j, to += w.out_pitch * element) {
        prefetch_to_write(to);
        if (vectors > 1) prefetch_to_write(to + all * element);
      }
    }
  }
  const int64_t per_piece = ceil_div(kPiece, w.depth);
  alignas(64) static constexpr A zeros[2 * all] = {};
  alignas(64) A total[groups * pixels * vectors * all];  // of all pieces but the last
  vec<A> sum[groups * pixels][vectors];
  Groups<E, groups * pixels, pixels> windows(w.pitch);
  Fetch ahead{w.ahead, w.ahead_step};
  const E* b = w.weights;
  // Calls put(sum, place in total) for each vector.
  auto each_sum = [&](const auto& put) PYDL_INLINE_LAMBDA {
    A* so_far = total;
    PYDL_OPAQUE(
        so_far);  // in memory: of seven rows they and the sums would push the weights out of the registers
#pragma GCC unroll 14
    for (int m = 0; m < groups * pixels; ++m)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v, so_far += all) put(sum[m][v], so_far);
  };
  for (int64_t t = 0;; t += per_piece) {
    const int64_t last = min_of(t + per_piece, w.segments);
    sum_segments<E, vectors, groups, pixels>(w, t, last, t ? zeros : w.bias, b, windows, ahead, sum);
    if (t) each_sum([](vec<A>& one, A* so_far) PYDL_INLINE_LAMBDA { one += load(so_far); });
    if (last == w.segments) break;
    each_sum([](vec<A>& one, A* so_far) PYDL_INLINE_LAMBDA { store(so_far, one); });
  }
  if (w.relu)
    each_sum([](vec<A>& one, A*)
                 PYDL_INLINE_LAMBDA { one = one < vec<A>{} ? vec<A>{} : one; });  // nan stays nan
  if (w.stream)
    each([&](auto* to, int m, int v) PYDL_INLINE_LAMBDA { stream(to, sum[m][v]); });
  else
    each([&](auto* to, int m, int v) PYDL_INLINE_LAMBDA { store(to, sum[m][v]); });
}

template <class E>
using Kernel = void (*)(const WindowsBlock<E>&);

template <class E, int vectors, int groups, int pixels>
constexpr Kernel<E> kernel_of() {
  if constexpr (groups <= most_groups(pixels))
    return &windows_kernel<E, vectors, groups, pixels>;
  else
    return nullptr;
}

// kernels[vectors - 1][pixels - 1][groups - 1]
template <class E>
struct Kernels {
  Kernel<E> at[2][kMostPixels][kMostGroups];

  template <int vectors, int pixels>
  constexpr void fill() {
    at[vectors - 1][pixels - 1][0] = kernel_of<E, vectors, 1, pixels>();
    at[vectors - 1][pixels - 1][1] = kernel_of<E, vectors, 2, pixels>();
    at[vectors - 1][pixels - 1][2] = kernel_of<E, vectors, 3, pixels>();
    at[vectors - 1][pixels - 1][3] = kernel_of<E, vectors, 4, pixels>();
    if constexpr (pixels < kMostPixels) fill<vectors, pixels + 1>();
  }
  constexpr Kernels() : at{} {
    static_assert(kMostGroups == 4);
    fill<1, 1>();
    fill<2, 1>();
  }
};

template <class E>
void windows_product(int64_t groups, int64_t pixels, int64_t channels, const WindowsBlock<E>& block) {
  static constexpr Kernels<E> kernels;
  kernels.at[channels > lanes<acc_of<E>>][pixels - 1][groups - 1](block);
}

}  // namespace

void gemm_windows(int64_t groups, int64_t pixels, int64_t channels, const WindowsBlock<float>& block) {
  windows_product(groups, pixels, channels, block);
}
#if defined(PYDL_BF16_DOT)
void gemm_windows(int64_t groups, int64_t pixels, int64_t channels, const WindowsBlock<bf16_pair>& block) {
  windows_product(groups, pixels, channels, block);
}
#endif

}  // namespace pydl::cpu::PYDL_ISA::gemm
