// The two-dimensional transforms of one tile and one vector of channels for the schemes of two phases
// (schemes.h): columns, then rows, as in transforms.h. Products take so much
// longer here that half-transformed columns may pass through memory.
#pragma once

#include "kernels/cpu/conv2d/winograd/transforms.h"

namespace pydl::cpu::PYDL_ISA::winograd {
namespace {

template <class S>
struct Transform {
  // V of one tile and one vector of channels; frequency (i, j) goes to to + (i * kAlong + j) * stride.
  template <class T>
  static void input(const Window<T>& window, int rows, int columns, float* to, int64_t stride,
                    const float* next) {
    vec<float> half[S::inputs(S::kSide)][S::kAlong];  // half[j][i]: column j transformed
    with_size<S::kSide>(rows, [&](auto size) __attribute__((always_inline)) {
      constexpr int m = decltype(size)::value, n = S::inputs(m);
      for (int j = 0; j < S::inputs(columns); ++j) {
        const bool inside = j >= window.first && j < window.last;
        vec<float> d[n];
#pragma GCC unroll 10
        for (int i = 0; i < n; ++i) d[i] = inside ? load(window.row[i] + j * window.step[i]) : vec<float>{};
        S::template input<m>(d, half[j]);
      }
    });
    with_size<S::kSide>(columns, [&](auto size) __attribute__((always_inline)) {
      constexpr int m = decltype(size)::value, n = S::inputs(m);
      for (int i = 0; i < S::kAlong; ++i) {
        if (!S::has(i, rows)) continue;
        vec<float> d[n], v[S::kAlong];
#pragma GCC unroll 10
        for (int j = 0; j < n; ++j) d[j] = half[j][i];
        S::template input<m>(d, v);
#pragma GCC unroll 10
        for (int j = 0; j < S::kAlong; ++j) {
          if (!S::has(j, m)) continue;
          prefetch(next + (i * S::kAlong + j) * stride);
          store(to + (i * S::kAlong + j) * stride, v[j]);
        }
      }
    });
  }

  // Z of one tile of output gradients, laid out as above.
  template <class T>
  static void gradient(const T* from, int64_t row, int64_t column, int rows, int columns, float* to,
                       int64_t stride, const float* next) {
    vec<float> half[S::kSide][S::kSums];
    with_size<S::kSide>(rows, [&](auto size) __attribute__((always_inline)) {
      constexpr int m = decltype(size)::value;
      for (int j = 0; j < columns; ++j) {
        vec<float> d[m];
#pragma GCC unroll 4
        for (int i = 0; i < m; ++i) d[i] = load(from + i * row + j * column);
        S::template gradient<m>(d, half[j]);
      }
    });
    with_size<S::kSide>(columns, [&](auto size) __attribute__((always_inline)) {
      constexpr int m = decltype(size)::value;
      for (int i = 0; i < S::kSums; ++i) {
        if (!S::has(i, rows)) continue;
        vec<float> d[m], z[S::kSums];
#pragma GCC unroll 4
        for (int j = 0; j < m; ++j) d[j] = half[j][i];
        S::template gradient<m>(d, z);
#pragma GCC unroll 10
        for (int j = 0; j < S::kSums; ++j) {
          if (!S::has(j, m)) continue;
          prefetch(next + (i * S::kSums + j) * stride);
          store(to + (i * S::kSums + j) * stride, z[j]);
        }
      }
    });
  }

  // put(i, j, vector) takes the outputs.
  template <class F>
  static PYDL_INLINE void output(const float* from, int64_t stride, int rows, int columns, const F& put) {
    constexpr int kMost = S::kSide * S::kOutputStep;
    vec<float> half[S::kSums][kMost];  // half[j][i]: output row i, frequency column j
    with_size<S::kSide>(rows, [&](auto size) __attribute__((always_inline)) {
      constexpr int m = decltype(size)::value;
      for (int j = 0; j < S::kSums; ++j) {
        if (!S::has(j, columns)) continue;
        vec<float> d[S::kSums];
#pragma GCC unroll 10
        for (int i = 0; i < S::kSums; ++i)
          if (S::has(i, m)) d[i] = load(from + (i * S::kSums + j) * stride);
        S::template output<m>(d, half[j]);
      }
    });
    with_size<S::kSide>(columns, [&](auto size) __attribute__((always_inline)) {
      constexpr int m = decltype(size)::value;
      for (int i = 0; i < rows * S::kOutputStep; ++i) {
        vec<float> d[S::kSums], y[kMost];
#pragma GCC unroll 10
        for (int j = 0; j < S::kSums; ++j)
          if (S::has(j, m)) d[j] = half[j][i];
        S::template output<m>(d, y);
#pragma GCC unroll 8
        for (int j = 0; j < m * S::kOutputStep; ++j) put(i, j, y[j]);
      }
    });
  }
};

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::winograd
