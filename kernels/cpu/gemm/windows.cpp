// gemm_windows of windows.h: one microkernel per number of groups and of pixels, so that a remainder wastes no
// arithmetic.
#include "kernels/cpu/gemm/windows.h"

namespace pydl::cpu::PYDL_ISA::gemm {
namespace {

// The address of pixel j of a group, which the addressing modes of x86 give without arithmetic from five
// registers: the group's base and one, three and five pitches. The compiler would keep a pointer per pixel.
struct Pitches {
  int64_t one, three, five;  // bytes
};
template <int j>
PYDL_INLINE const char* pixel(const char* base, const Pitches& s) {
  if constexpr (j == 0) return base;
  if constexpr (j == 1) return base + s.one;
  if constexpr (j == 2) return base + 2 * s.one;
  if constexpr (j == 3) return base + s.three;
  if constexpr (j == 4) return base + 4 * s.one;
  if constexpr (j == 5) return base + s.five;
  if constexpr (j == 6) return base + 2 * s.three;
  __builtin_unreachable();
}

template <class E, int vectors, int pixels, int j>
PYDL_INLINE void one_pixel(const char* base, const Pitches& s, int64_t k, const vec_of<E>* right,
                           vec<acc_of<E>>* sum) {
  if constexpr (j < pixels) {
    const vec_of<E> left = splat_element<E>(pixel<j>(base, s) + k * sizeof(E));
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v)
      sum[j * vectors + v] = multiply_add(left, right[v], sum[j * vectors + v]);
    one_pixel<E, vectors, pixels, j + 1>(base, s, k, right, sum);
  }
}

template <class E, int vectors, int groups, int pixels>
PYDL_INLINE void step(const char* const* base, const Pitches& s, int64_t k, const E* b,
                      vec<acc_of<E>> (&sum)[groups][pixels * vectors]) {
  constexpr int64_t all = lanes<acc_of<E>>;
  vec_of<E> right[vectors];
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) right[v] = load_elements(b + k * 2 * all + v * all);
#pragma GCC unroll 4
  for (int g = 0; g < groups; ++g) one_pixel<E, vectors, pixels, 0>(base[g], s, k, right, sum[g]);
}

// Long sums are taken in pieces of kPiece numbers and more, which are then added up: rounding errors grow
// with the root of a piece's length and of the number of pieces, not of their product. Accumulators live for
// one piece, so that the compiler keeps all of them in registers.
constexpr int64_t kPiece = 128;

// Steps of a turn of the loop, as measured (conv2d/NOTES.md): with four AVX2 takes 1.4 times as long as with
// one, AVX-512 a little longer, SSE2 two thirds.
template <int kCount>
struct Steps {
  static constexpr int count = kCount;
};
using Turn = Steps<kVectorBytes == 16 ? 4 : 1>;

// sum = start + segments [first, last) of the windows; `b` moves on to the weights of segment `last`.
template <class E, int vectors, int groups, int pixels>
PYDL_INLINE void sum_segments(const WindowsBlock<E>& w, const Pitches& s, int64_t first, int64_t last,
                              const acc_of<E>* start, const E*& b, const char*& ahead,
                              vec<acc_of<E>> (&sum)[groups][pixels * vectors]) {
  constexpr int64_t all = lanes<acc_of<E>>;
#pragma GCC unroll 4
  for (int g = 0; g < groups; ++g)
#pragma GCC unroll 14
    for (int i = 0; i < pixels * vectors; ++i) sum[g][i] = load(start + i % vectors * all);
  for (int64_t t = first; t < last; ++t) {
    const char* base[groups];
#pragma GCC unroll 4
    for (int g = 0; g < groups; ++g) base[g] = reinterpret_cast<const char*>(w.window[g] + w.offsets[t]);
    auto turn = [&](auto steps) PYDL_INLINE_LAMBDA {
      constexpr int kCount = decltype(steps)::count;
      if (w.ahead_step) {
        for (int k = 0; k < kCount; k += 2) prefetch(ahead + k * w.ahead_step);
        ahead += kCount * w.ahead_step;
      }
#pragma GCC unroll 4
      for (int k = 0; k < kCount; ++k) step<E, vectors, groups, pixels>(base, s, k, b, sum);
      b += kCount * 2 * all;
#pragma GCC unroll 4
      for (int g = 0; g < groups; ++g) {
        base[g] += kCount * sizeof(E);
        PYDL_OPAQUE(base[g]);
      }
    };
    int64_t left = w.depth;
    for (; left >= Turn::count; left -= Turn::count) turn(Turn{});
    for (; left > 0; --left) turn(Steps<1>{});
  }
}

template <class E, int vectors, int groups, int pixels>
void windows_kernel(const WindowsBlock<E>& w) {
  using A = acc_of<E>;
  constexpr int64_t all = lanes<A>;
  Pitches s{w.pitch * static_cast<int64_t>(sizeof(E)), 0, 0};
  s.three = 3 * s.one;
  s.five = 5 * s.one;
  PYDL_OPAQUE(s.one);
  PYDL_OPAQUE(s.three);
  PYDL_OPAQUE(s.five);
  // Calls put(address, group, index of the sum) for each vector of the results, in the type that is written.
  auto each = [&](const auto& put) PYDL_INLINE_LAMBDA {
    auto in = [&](auto type) PYDL_INLINE_LAMBDA {
#pragma GCC unroll 4
      for (int g = 0; g < groups; ++g) {
        auto* to = static_cast<decltype(type)*>(w.out[g]);
#pragma GCC unroll 7
        for (int j = 0; j < pixels; ++j, to += w.out_pitch)
#pragma GCC unroll 2
          for (int v = 0; v < vectors; ++v) put(to + v * all, g, j * vectors + v);
      }
    };
    if constexpr (__is_same(E, bf16_pair))
      if (w.narrow) return in(bf16{});
    in(A{});
  };
  // The lines of the results are asked for now: stores that miss would wait at the end, and the next block's
  // behind them.
  if (!w.stream) each([](auto* to, int, int) PYDL_INLINE_LAMBDA { prefetch_to_write(to); });
  const int64_t per_piece = ceil_div(kPiece, w.depth);
  alignas(64) static constexpr A zeros[2 * all] = {};
  alignas(64) A total[groups * pixels * vectors * all];  // of all pieces but the last
  vec<A> sum[groups][pixels * vectors];
  const E* b = w.weights;
  const char* ahead = w.ahead;
  for (int64_t t = 0;; t += per_piece) {
    const int64_t last = min_of(t + per_piece, w.segments);
    sum_segments<E, vectors, groups, pixels>(w, s, t, last, t ? zeros : w.bias, b, ahead, sum);
    A* so_far = total;
    if (t) {
#pragma GCC unroll 4
      for (int g = 0; g < groups; ++g)
#pragma GCC unroll 14
        for (int i = 0; i < pixels * vectors; ++i, so_far += all) sum[g][i] += load(so_far);
      so_far = total;
    }
    if (last == w.segments) break;
#pragma GCC unroll 4
    for (int g = 0; g < groups; ++g)
#pragma GCC unroll 14
      for (int i = 0; i < pixels * vectors; ++i, so_far += all) store(so_far, sum[g][i]);
  }
  if (w.relu) {
#pragma GCC unroll 4
    for (int g = 0; g < groups; ++g)
#pragma GCC unroll 14
      for (int i = 0; i < pixels * vectors; ++i)
        sum[g][i] = sum[g][i] < vec<A>{} ? vec<A>{} : sum[g][i];  // nan stays nan
  }
  if (w.stream)
    each([&](auto* to, int g, int i) PYDL_INLINE_LAMBDA { stream(to, sum[g][i]); });
  else
    each([&](auto* to, int g, int i) PYDL_INLINE_LAMBDA { store(to, sum[g][i]); });
}

// Groups that one call takes: of float64, which is for checks more than for speed, one after another.
template <class E>
constexpr int kGroupsOf = __is_same(E, double) ? 1 : kMostGroups;

template <class E>
using Kernel = void (*)(const WindowsBlock<E>&);

template <class E, int vectors, int groups, int pixels>
constexpr Kernel<E> kernel_of() {
  if constexpr (groups <= most_groups(pixels) && groups <= kGroupsOf<E>)
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
  const auto& fitting = kernels.at[channels > lanes<acc_of<E>>][pixels - 1];
  if constexpr (kGroupsOf<E> > 1) return fitting[groups - 1](block);
  WindowsBlock<E> one = block;
  for (int64_t g = 0; g < groups; ++g) {
    one.window[0] = block.window[g];
    one.out[0] = block.out[g];
    fitting[0](one);
  }
}

}  // namespace

void gemm_windows(int64_t groups, int64_t pixels, int64_t channels, const WindowsBlock<float>& block) {
  windows_product(groups, pixels, channels, block);
}
void gemm_windows(int64_t groups, int64_t pixels, int64_t channels, const WindowsBlock<double>& block) {
  windows_product(groups, pixels, channels, block);
}
#if defined(PYDL_BF16_DOT)
void gemm_windows(int64_t groups, int64_t pixels, int64_t channels, const WindowsBlock<bf16_pair>& block) {
  windows_product(groups, pixels, channels, block);
}
#endif

}  // namespace pydl::cpu::PYDL_ISA::gemm
