// Between a convolution's weights, in whatever order they lie in memory, and their transforms: U = G g G^T,
// and of the weight gradient dW = A^T D A.
#pragma once

#include "kernels/conv2d.h"
#include "kernels/cpu/base/simd_transpose.h"
#include "kernels/cpu/conv2d/spoiled.h"
#include "kernels/cpu/conv2d/winograd/gemm.h"
#include "kernels/cpu/conv2d/winograd/tiles.h"

namespace pydl::cpu::PYDL_ISA::winograd {
namespace {

constexpr int kMostTaps = 25;

struct Weights {
  const void* data;
  int64_t in, out, row, column;  // strides in elements
  int64_t in_channels, out_channels;
  bool flip;
};

// taps[(c * side^2 + tap) * L + lane] for input channels [c, c + count) and output channels [o, o + width)
// of the weights, width <= L. Whatever runs of memory are contiguous are read as vectors and transposed.
template <class T>
void load_taps(const Weights& w, int64_t side, int64_t c, int64_t count, int64_t o, int64_t width,
               float* taps) {
  constexpr int L = lanes<float>;
  const int64_t all = side * side;
  const T* from = static_cast<const T*>(w.data) + c * w.in + o * w.out;
  const bool taps_adjacent = w.row == side && w.column == 1;
  if (taps_adjacent && w.in == all) {
    transpose_in(from, w.out, width, count * all, taps, L);
  } else if (taps_adjacent && w.out != 1) {
    for (int64_t i = 0; i < count; ++i)
      transpose_in(from + i * w.in, w.out, width, all, taps + i * all * L, L);
  } else {
    for (int64_t tap = 0; tap < all; ++tap) {
      const T* at = from + tap / side * w.row + tap % side * w.column;
      if (w.in == 1 && w.out != 1) {
        transpose_in(at, w.out, width, count, taps + tap * L, all * L);
        continue;
      }
      for (int64_t i = 0; i < count; ++i) {
        vec<float> v{};
        if (w.out == 1)
          v = width == L ? load(at + i * w.in) : load_n(at + i * w.in, width);
        else
          for (int64_t l = 0; l < width; ++l) v[l] = load_n(at + i * w.in + l * w.out, 1)[0];
        store(taps + (i * all + tap) * L, v);
      }
    }
  }
}

// The taps that are transformed next, fetched line by line into the second cache while others are multiplied. For input
// gradients alone: their taps lie in short runs, pages apart, and wait for memory where a forward's rows are followed by
// the hardware (which fetching ahead disturbs by 3 %).
class TapsAhead {
 public:
  TapsAhead() = default;

  // Of input channels [c, c + count) and the panel of output channels from o on.
  static TapsAhead of(const Weights& w, int64_t side, int64_t size, int64_t c, int64_t count, int64_t o) {
    const int64_t all = side * side;
    if (!w.flip || (w.out != 1 && w.out != all)) return {};  // in other orders runs are single numbers
    TapsAhead ahead;
    ahead.at_ = static_cast<const char*>(w.data) + (c * w.in + o * w.out) * size;
    ahead.run_ =
        min_of(kPanel, w.out_channels - o) * w.out * size;  // with the taps between them, or a tap's alone
    ahead.pieces_ = w.out == 1 ? all : 1;
    ahead.piece_step_ = w.column * size;
    ahead.step_ = w.in * size - (ahead.pieces_ - 1) * ahead.piece_step_;
    ahead.runs_ = count * ahead.pieces_;
    return ahead;
  }

  int64_t lines() const { return runs_ * ceil_div(run_, 64); }

  void fetch(int64_t lines) {
    for (; lines > 0 && runs_ > 0; --lines) {
      prefetch_l2(at_ + within_);
      within_ += 64;
      if (within_ < run_) continue;
      within_ = 0;
      --runs_;
      if (++piece_ < pieces_) {
        at_ += piece_step_;
      } else {
        piece_ = 0;
        at_ += step_;
      }
    }
  }

 private:
  const char* at_ = nullptr;
  int64_t run_ = 0, piece_step_ = 0, step_ = 0, within_ = 0;  // bytes
  int64_t runs_ = 0, pieces_ = 1, piece_ = 0;                 // runs left, and how many an input channel has
};

// Asks for one of 16 runs of memory that hold the taps of 16 input and 16 output channels: too many streams
// for the hardware to follow.
template <int kTaps>
PYDL_INLINE void ask_for_taps(const Weights& w, int64_t size, int64_t c, int64_t o, int64_t run) {
  const uintptr_t from =
      reinterpret_cast<uintptr_t>(w.data) + (c * w.in + o * w.out + run * max_of(w.in, w.out)) * size;
  if (w.column == 1) {
    for (int64_t at = 0; at < 16 * kTaps * kTaps * size; at += 64)
      prefetch(reinterpret_cast<const void*>(from + at));
  } else {
    for (int64_t y = 0; y < kTaps; ++y)
      for (int64_t x = 0; x < kTaps; ++x)
        prefetch(reinterpret_cast<const void*>(from + (y * w.row + x * w.column) * size));
  }
}

// The frequencies of U that any tile has, a bit each: an image of 3 x 3 has 5 of 6 along each dimension.
struct Used {
  uint32_t rows = 0, columns = 0;

  explicit Used(const Tiles& tiles) {
    const Scheme& scheme = tiles.scheme;
    for (int i = 0; i < scheme.along; ++i) {
      const uint32_t bit = 1u << scheme.of_weights[i];
      if (tiles.full_rows > 0 || scheme.has[i][tiles.last_row]) rows |= bit;
      if (tiles.full_columns > 0 || scheme.has[i][tiles.last_column]) columns |= bit;
    }
  }
  bool all(const Scheme& scheme) const { return (rows & columns) == (1u << scheme.weights) - 1; }
  bool has(int i, int j) const { return (rows >> i & columns >> j & 1) != 0; }
};

// U of `count` input channels, at most 16, and a vector of output channels out of their taps, which are
// floats by now: one function for all types. What the next 16 channels need, from (c, o) on, is prefetched on
// the way.
template <class S, bool kEvery>
void transform_taps(const float* taps, int64_t count, Used used, float* to, int64_t stride, const Weights& w,
                    int64_t size, int64_t c, int64_t o) {
  constexpr int L = lanes<float>, kTaps = S::kTaps, kAll = kTaps * kTaps;
  for (int64_t k = 0; k < count; ++k) {
    const float* tap = taps + k * kAll * L;
    float* u = to + k * kPanel;
    ask_for_taps<kTaps>(w, size, c, o, k);
    vec<float> column[kTaps][S::kWeights];
#pragma GCC unroll 5
    for (int s = 0; s < kTaps; ++s) {
      vec<float> g[kTaps];
#pragma GCC unroll 5
      for (int r = 0; r < kTaps; ++r)
        g[r] = load(tap + (w.flip ? kAll - 1 - (r * kTaps + s) : r * kTaps + s) * L);
      S::weights(g, column[s]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < S::kWeights; ++r) {
      vec<float> g[kTaps], v[S::kWeights];
#pragma GCC unroll 5
      for (int s = 0; s < kTaps; ++s) g[s] = column[s][r];
      S::weights(g, v);
#pragma GCC unroll 10
      for (int s = 0; s < S::kWeights; ++s)
        if (kEvery || used.has(r, s)) store(u + (r * S::kWeights + s) * stride, v[s]);
    }
  }
}

// The function of transform_taps for a scheme.
inline auto* transform_taps_of(const Scheme& scheme, Used used) {
  const bool every = used.all(scheme);
  return with_scheme(scheme.kind, [&](auto of) {
    using S = typename decltype(of)::Taps;
    constexpr bool kAlways = S::kTaps == 5;  // but for images of one pixel
    return every ? &transform_taps<S, true> : &transform_taps<S, kAlways>;
  });
}

// U of input channels [c, c + count) and the panel of output channels from o on:
// to[frequency * stride + channel * kPanel + lane].
inline void transform_weights(const Weights& w, DType dtype, const Scheme& scheme, int64_t c, int64_t count,
                              int64_t o, Used used, float* to, int64_t stride) {
  constexpr int L = lanes<float>;
  const auto load = dtype == DType::bf16 ? load_taps<bf16> : load_taps<float>;
  const auto transform = transform_taps_of(scheme, used);
  const int64_t size = dtype == DType::bf16 ? 2 : 4;
  alignas(64) float taps[16 * kMostTaps * L];
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t some = min_of(16, count - i);
    for (int half = 0; half < 2 && o + half * L < w.out_channels; ++half) {
      load(w, scheme.taps, c + i, some, o + half * L, min_of(L, w.out_channels - o - half * L), taps);
      transform(taps, some, used, to + i * kPanel + half * L, stride, w, size, c + i + 16, o + half * L);
    }
  }
}

// The taps of `count` input channels, at most 16, and a vector of output channels: A^T D A.
template <class S>
void transform_back(const float* d, int64_t stride, int64_t count, Used used, float* taps, vec<float>& seen) {
  constexpr int L = lanes<float>, kTaps = S::kTaps, kAll = kTaps * kTaps;
  vec<float> watched{};
  for (int64_t k = 0; k < count; ++k) {
    const float* from = d + k * kPanel;
    vec<float> column[S::kWeights][kTaps];
#pragma GCC unroll 6
    for (int q = 0; q < S::kWeights; ++q) {
      vec<float> m[S::kWeights];
#pragma GCC unroll 10
      for (int r = 0; r < S::kWeights; ++r) {
        const float* at = from + (r * S::kWeights + q) * stride;
        m[r] = vec<float>{};
        if (!used.has(r, q)) continue;
        m[r] = load(at);
        prefetch(at + 2 * kPanel);  // 36 streams are more than the hardware follows
      }
      S::taps(m, column[q]);
    }
#pragma GCC unroll 5
    for (int r = 0; r < kTaps; ++r) {
      vec<float> m[S::kWeights], w[kTaps];
#pragma GCC unroll 10
      for (int q = 0; q < S::kWeights; ++q) m[q] = column[q][r];
      S::taps(m, w);
#pragma GCC unroll 5
      for (int q = 0; q < kTaps; ++q) {
        watch(w[q], watched);
        store(taps + (k * kAll + r * kTaps + q) * L, w[q]);
      }
    }
  }
  seen += watched;
}

// dW of input channels [c, c + rows) and output channels from o on, out of d[frequency * d_stride + row *
// kPanel + lane].
template <class T>
void gather_weights(const Conv2dParams& p, const Scheme& scheme, int64_t d_stride, int64_t c, int64_t rows,
                    int64_t o, Used used, const float* d) {
  const int64_t *s = p.weight_stride, side = scheme.taps, all = side * side;
  constexpr int L = lanes<float>, kSome = 16;
  const auto transform =
      with_scheme(scheme.kind, [](auto of) { return &transform_back<typename decltype(of)::Taps>; });
  alignas(64) float taps[kSome * kMostTaps * L];
  vec<float> seen{};
  for (int64_t i = 0; i < rows; i += kSome) {
    const int64_t some = min_of(kSome, rows - i);
    for (int64_t half = 0; half < 2 && o + half * L < p.out_channels; ++half) {
      const int64_t width = min_of(L, p.out_channels - o - half * L);
      transform(d + i * kPanel + half * L, d_stride, some, used, taps, seen);
      T* to = static_cast<T*>(p.weight) + (o + half * L) * s[0] + (c + i) * s[1];
      if (s[3] == 1 && s[2] == side && (s[1] == all || some == 1)) {
        transpose_out(taps, L, some * all, width, to, s[0]);
      } else if (s[1] == 1) {
        for (int64_t tap = 0; tap < all; ++tap)
          transpose_out(taps + tap * L, all * L, some, width, to + tap / side * s[2] + tap % side * s[3],
                        s[0]);
      } else {
        for (int64_t j = 0; j < some * all; ++j)
          for (int64_t l = 0; l < width; ++l)
            store_n(to + l * s[0] + j / all * s[1] + j % all / side * s[2] + j % side * s[3],
                    vec<float>{} + taps[j * L + l], 1);
      }
    }
  }
  report_spoiled(seen, p.spoiled);
}

inline auto* gather_weights_of(DType dtype) {
  return dtype == DType::bf16 ? &gather_weights<bf16> : &gather_weights<float>;
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::winograd
