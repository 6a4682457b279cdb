// The two-dimensional transforms of one tile and one vector of channels: first the columns, then the rows.
// Whole tiles, which most are, have their own unrolled body, whose intermediate values stay in registers as
// far as they go.
//
// The transforms of inputs and gradients are functions of their own: a tile takes hundreds of cycles.
#pragma once

#include "kernels/cpu/conv2d/winograd/tiles.h"

namespace pydl::cpu::PYDL_ISA::winograd {
namespace {

template <int kValue>
struct Size {
  static constexpr int value = kValue;
};

template <int kMost, class F>
PYDL_INLINE void with_size(int size, const F& body) {  // size, 1 to kMost, as a constant
  if constexpr (kMost == 1) {
    body(Size<1>{});
  } else {
    if (size == kMost) return body(Size<kMost>{});
    with_size<kMost - 1>(size, body);
  }
}

// Where a tile's rows of pixels lie: row i, column j at row[i] + j * step[i]. Rows outside the image read the
// same zeros at every column; columns outside it, those not in [first, last), are not read.
template <class T>
struct Window {
  const T* row[Scheme::kMostReach];
  int64_t step[Scheme::kMostReach];
  int64_t first, last;  // two ints, stored one by one and compared as one, would wait for all stores before
};

// Calls body(Size<0>), body(Size<1>), body(Size<2>): each pair of points of a whole tile.
template <class F>
PYDL_INLINE void for_each_pair(const F& body) {
  body(Size<0>{});
  body(Size<1>{});
  body(Size<2>{});
}

// The transforms of a scheme, as static functions: input, gradient and output. Those of two phases are in phases.h.
template <class S>
struct Transform;

template <int kTaps>
struct Transform<Dense<kTaps>> {
  // V = B^T d B of one tile and one vector of channels; frequency (i, j) goes to to + (6 i + j) * stride, and
  // the next tile's will to next + (6 i + j) * stride.
  //
  // Whole tiles, which most are, are read once for each pair of rows of V: two rows of six half-transformed
  // vectors stay in registers, where all six rows would be stored and loaded again.
  template <class T>
  static void input(const Window<T>& window, int rows, int columns, float* to, int64_t stride,
                    const float* next) {
    if (rows == kTile<kTaps> && columns == kTile<kTaps> && window.first == 0 && window.last == kPoints) {
      for_each_pair([&](auto pair) __attribute__((always_inline)) {
        constexpr int kPair = decltype(pair)::value;
        vec<float> half[2][kPoints];
#pragma GCC unroll 6
        for (int j = 0; j < kPoints; ++j) {
          prefetch(next + (kPair * 2 * kPoints + 2 * j) * stride);
          prefetch(next + (kPair * 2 * kPoints + 2 * j + 1) * stride);
          vec<float> d[kPoints], v[2];
#pragma GCC unroll 6
          for (int i = 0; i < kPoints; ++i) d[i] = load(window.row[i] + j * window.step[i]);
          transform_input_pair<kPair>(d, v);
          half[0][j] = v[0];
          half[1][j] = v[1];
        }
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          vec<float> v[kPoints];
          transform_input_1d<kPoints>(half[i], v);
#pragma GCC unroll 6
          for (int j = 0; j < kPoints; ++j) store(to + ((2 * kPair + i) * kPoints + j) * stride, v[j]);
        }
      });
      return;
    }
    vec<float> half[kPoints][kPoints];  // half[j][i]: column j transformed
    with_size<kTile<kTaps>>(rows, [&](auto size) __attribute__((always_inline)) {
      constexpr int n = decltype(size)::value + kTaps - 1;
      for (int j = 0; j < columns + kTaps - 1; ++j) {
        if (j < window.first || j >= window.last) {
#pragma GCC unroll 6
          for (int i = 0; i < n; ++i) half[j][i] = vec<float>{};
          continue;
        }
        vec<float> d[n];
#pragma GCC unroll 6
        for (int i = 0; i < n; ++i) d[i] = load(window.row[i] + j * window.step[i]);
        transform_input_1d<n>(d, half[j]);
      }
    });
    with_size<kTile<kTaps>>(columns, [&](auto size) __attribute__((always_inline)) {
      constexpr int n = decltype(size)::value + kTaps - 1;
      for (int i = 0; i < rows + kTaps - 1; ++i) {
        vec<float> d[n], v[n];
#pragma GCC unroll 6
        for (int j = 0; j < n; ++j) d[j] = half[j][i];
        transform_input_1d<n>(d, v);
#pragma GCC unroll 6
        for (int j = 0; j < n; ++j) store(to + (i * kPoints + j) * stride, v[j]);
      }
    });
  }

  // Z = G g G^T of one tile of output gradients (F(r, m), without the factors N_p), laid out as above.
  template <class T>
  static void gradient(const T* from, int64_t row, int64_t column, int rows, int columns, float* to,
                       int64_t stride, const float* next) {
    constexpr int kSide = kTile<kTaps>;
    if (rows == kSide && columns == kSide) {
      for_each_pair([&](auto pair) __attribute__((always_inline)) {
        constexpr int kPair = decltype(pair)::value;
#pragma GCC unroll 12
        for (int f = 0; f < 2 * kPoints; ++f) prefetch(next + (kPair * 2 * kPoints + f) * stride);
        vec<float> half[2][kSide];
#pragma GCC unroll 4
        for (int j = 0; j < kSide; ++j) {
          vec<float> d[kSide], z[2];
#pragma GCC unroll 4
          for (int i = 0; i < kSide; ++i) d[i] = load(from + i * row + j * column);
          transform_gradient_pair<kTaps, kPair>(d, z);
          half[0][j] = z[0];
          half[1][j] = z[1];
        }
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          vec<float> v[kPoints];
          transform_gradient_1d<kTaps, kSide>(half[i], v);
#pragma GCC unroll 6
          for (int j = 0; j < kPoints; ++j) store(to + ((2 * kPair + i) * kPoints + j) * stride, v[j]);
        }
      });
      return;
    }
    vec<float> half[kSide][kPoints];
    with_size<kTile<kTaps>>(rows, [&](auto size) __attribute__((always_inline)) {
      constexpr int m = decltype(size)::value;
      for (int j = 0; j < columns; ++j) {
        vec<float> d[m];
#pragma GCC unroll 4
        for (int i = 0; i < m; ++i) d[i] = load(from + i * row + j * column);
        transform_gradient_1d<kTaps, m>(d, half[j]);
      }
    });
    with_size<kTile<kTaps>>(columns, [&](auto size) __attribute__((always_inline)) {
      constexpr int m = decltype(size)::value, n = m + kTaps - 1;
      for (int i = 0; i < rows + kTaps - 1; ++i) {
        vec<float> d[m], v[n];
#pragma GCC unroll 4
        for (int j = 0; j < m; ++j) d[j] = half[j][i];
        transform_gradient_1d<kTaps, m>(d, v);
#pragma GCC unroll 6
        for (int j = 0; j < n; ++j) store(to + (i * kPoints + j) * stride, v[j]);
      }
    });
  }

  // Y = A^T M A of one tile and one vector of channels; put(i, j, vector) takes the outputs.
  template <class F>
  static PYDL_INLINE void output(const float* from, int64_t stride, int rows, int columns, const F& put) {
    vec<float> half[kPoints][kTile<kTaps>];  // half[j][i]: output row i, frequency column j
    if (rows == kTile<kTaps> && columns == kTile<kTaps>) {
#pragma GCC unroll 6
      for (int j = 0; j < kPoints; ++j) {
        vec<float> d[kPoints];
#pragma GCC unroll 6
        for (int i = 0; i < kPoints; ++i) d[i] = load(from + (i * kPoints + j) * stride);
        transform_output_1d<kTaps, kTile<kTaps>>(d, half[j]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < kTile<kTaps>; ++i) {
        vec<float> d[kPoints], y[kTile<kTaps>];
#pragma GCC unroll 6
        for (int j = 0; j < kPoints; ++j) d[j] = half[j][i];
        transform_output_1d<kTaps, kTile<kTaps>>(d, y);
#pragma GCC unroll 4
        for (int j = 0; j < kTile<kTaps>; ++j) put(i, j, y[j]);
      }
      return;
    }
    with_size<kTile<kTaps>>(rows, [&](auto size) __attribute__((always_inline)) {
      constexpr int m = decltype(size)::value, n = m + kTaps - 1;
      for (int j = 0; j < columns + kTaps - 1; ++j) {
        vec<float> d[n];
#pragma GCC unroll 6
        for (int i = 0; i < n; ++i) d[i] = load(from + (i * kPoints + j) * stride);
        transform_output_1d<kTaps, m>(d, half[j]);
      }
    });
    with_size<kTile<kTaps>>(columns, [&](auto size) __attribute__((always_inline)) {
      constexpr int m = decltype(size)::value, n = m + kTaps - 1;
      for (int i = 0; i < rows; ++i) {
        vec<float> d[n], y[m];
#pragma GCC unroll 6
        for (int j = 0; j < n; ++j) d[j] = half[j][i];
        transform_output_1d<kTaps, m>(d, y);
#pragma GCC unroll 4
        for (int j = 0; j < m; ++j) put(i, j, y[j]);
      }
    });
  }
};

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA::winograd
