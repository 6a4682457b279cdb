// The image side of implicit GEMM: windows of an image, read straight from a strided tensor into panels.
//
// A "window" is what one output pixel sees: (taps in y) * (taps in x) * channels numbers, in that order,
// channels innermost. Padding, stride and dilation are resolved here and nowhere else; what lies outside the
// image reads as 0.
#pragma once

#include "kernels/cpu/base/scratch.h"
#include "kernels/cpu/base/simd.h"
#include "kernels/cpu/base/simd_transpose.h"
#include "kernels/cpu/conv2d/algorithms.h"

namespace pydl::cpu::PYDL_ISA {

// Where the taps of one axis fall: tap t of output position x reads input position x * step + first + t *
// spacing.
struct Axis {
  int64_t taps, step, first, spacing;
  int64_t in_size, out_size;
};

// Windows over one group of one tensor. Pixels are numbered over (image, row, column) of the output.
template <class T>
struct Windows {
  const T* data;      // of the group's first channel
  int64_t stride[4];  // N, C, H, W
  int64_t channels;
  Axis y, x;

  int64_t depth() const { return y.taps * x.taps * channels; }
};

// Consecutive output pixels of one row.
struct Run {
  int64_t image, row, column, count, at;  // at: position of the first within the panel
};

// Cuts pixels [begin, begin + count) into runs; `runs` has room for count of them. Returns how many there
// are.
static PYDL_INLINE int64_t cut_runs(int64_t begin, int64_t count, int64_t height, int64_t width, Run* runs) {
  int64_t column = begin % width, row = begin / width % height, image = begin / width / height, n = 0;
  for (int64_t at = 0; at < count; ++n) {
    const int64_t take = min_of(width - column, count - at);
    runs[n] = {image, row, column, take, at};
    at += take;
    column = 0;
    if (++row == height) {
      row = 0;
      ++image;
    }
  }
  return n;
}

// The part of a run whose tap at `offset` falls inside the image: positions [low, high) of the run.
struct Span {
  int64_t low, high;
};
static PYDL_INLINE Span inside(const Axis& x, int64_t column, int64_t count, int64_t offset) {
  const int64_t first = column * x.step + offset;  // input position of the run's first pixel
  int64_t low, high;
  if (x.step == 1) {
    low = -first;
    high = x.in_size - first;
  } else {
    low = first >= 0 ? 0 : ceil_div(-first, x.step);
    high = first >= x.in_size ? 0 : ceil_div(x.in_size - first, x.step);
  }
  low = max_of(low, 0);
  high = min_of(high, count);
  return low < high ? Span{low, high} : Span{0, 0};
}

// to[i] = from[i * stride], widened.
template <class T, class A>
static PYDL_INLINE void copy_strided(A* to, const T* from, int64_t stride, int64_t count) {
  if (stride == 1) {
    int64_t i = 0;
    for (; i + lanes<A> <= count; i += lanes<A>) store(to + i, load(from + i));
    if (i < count) store_n(to + i, load_n(from + i, count - i), count - i);
  } else if constexpr (sizeof(T) == sizeof(A)) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i * stride];
  } else {
    for (int64_t i = 0; i < count; i += lanes<A>) {  // gather, then widen a vector at a time
      T some[lanes<A>];
      const int64_t n = min_of(lanes<A>, count - i);
      for (int64_t j = 0; j < n; ++j) some[j] = from[(i + j) * stride];
      store_n(to + i, load_n(some, n), n);
    }
  }
}

template <class A>
static PYDL_INLINE void fill_zero(A* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = A(0);
}

// Calls body(y tap, x tap, first channel, channels, position) for the stretches of [begin, end) of a window
// that share a tap.
template <class T, class F>
static PYDL_INLINE void each_tap(const Windows<T>& w, int64_t begin, int64_t end, const F& body) {
  for (int64_t k = begin; k < end;) {
    const int64_t tap = k / w.channels, channel = k % w.channels,
                  count = min_of(w.channels - channel, end - k);
    body(tap / w.x.taps, tap % w.x.taps, channel, count, k - begin);
    k += count;
  }
}

// to[i] = from[i * kStep] for i in [low, high), 0 for the other i < count. kStep: 1, 2 or 4.
template <int kStep, class T, class A>
static PYDL_INLINE void copy_span(A* to, const T* from, int64_t low, int64_t high, int64_t count) {
  constexpr int64_t all = lanes<A>;
  for (int64_t i = 0; i < count; i += all) {
    const T* at = from + i * kStep;
    const int64_t first = (low - i) * kStep, end = (high - i - 1) * kStep + 1;  // of the elements at `at`
    vec<A> x;
    if constexpr (kStep == 1) {
      x = load_between(at, first, end);
    } else {
      x = even_lanes(load_between(at, first, end), load_between(at + all, first - all, end - all));
      if constexpr (kStep == 4)
        x = even_lanes(x, even_lanes(load_between(at + 2 * all, first - 2 * all, end - 2 * all),
                                     load_between(at + 3 * all, first - 3 * all, end - 3 * all)));
    }
    count - i >= all ? store(to + i, x) : store_n(to + i, x, count - i);
  }
}

constexpr int64_t kMaxPanel = 64;  // pixels in a panel of windows by depth, at most

// As pack_windows_by_depth, for images so narrow that a vector of pixels spans several rows: each lane reads
// its own pixel, at offsets that all channels of a tap share.
inline void gather_windows_by_depth(const Windows<float>& w, const Run* runs, int64_t n_runs, int64_t begin,
                                    int64_t end, float* panel, int64_t pitch) {
  constexpr int64_t all = lanes<float>;
  int32_t rows[kMaxPanel], columns[kMaxPanel],
      offsets[kMaxPanel];  // input position of each pixel's tap (0, 0)
  int64_t pixels = 0;
  for (int64_t i = 0; i < n_runs; ++i)
    for (int64_t j = 0; j < runs[i].count; ++j, ++pixels) {
      const int64_t row = runs[i].row * w.y.step + w.y.first,
                    column = (runs[i].column + j) * w.x.step + w.x.first;
      rows[pixels] = static_cast<int32_t>(row);
      columns[pixels] = static_cast<int32_t>(column);
      offsets[pixels] = static_cast<int32_t>((runs[i].image - runs[0].image) * w.stride[0] +
                                             row * w.stride[2] + column * w.stride[3]);
    }
  const int64_t vectors = ceil_div(pixels, all);
  for (; pixels < vectors * all; ++pixels) rows[pixels] = columns[pixels] = offsets[pixels] = INT32_MIN / 2;
  const float* data = w.data + runs[0].image * w.stride[0];
  each_tap(w, begin, end, [&](int64_t ty, int64_t tx, int64_t channel, int64_t channels, int64_t at) {
    const int32_t down = static_cast<int32_t>(ty * w.y.spacing),
                  across = static_cast<int32_t>(tx * w.x.spacing);
    const int32_t shift = static_cast<int32_t>(down * w.stride[2] + across * w.stride[3]);
    const int32_t height = static_cast<int32_t>(w.y.in_size), width = static_cast<int32_t>(w.x.in_size);
    i32v index[kMaxPanel / all], within[kMaxPanel / all];
    for (int64_t v = 0; v < vectors; ++v) {
      i32v row, column, offset;
      memcpy(&row, rows + v * all, sizeof row);
      memcpy(&column, columns + v * all, sizeof column);
      memcpy(&offset, offsets + v * all, sizeof offset);
      row += down;
      column += across;
      within[v] = (row >= 0) & (row < height) & (column >= 0) & (column < width);
      index[v] = offset + shift;
    }
    float* to = panel + at * pitch;
    const float* from = data + channel * w.stride[1];
    for (int64_t c = 0; c < channels; ++c, to += pitch, from += w.stride[1])
      for (int64_t v = 0; v < vectors; ++v) store(to + v * all, gather(from, index[v], within[v]));
  });
}

// Whether gathering beats copying runs, each of which costs a few masked operations however short it is.
template <class T>
static bool gathering_pays(const Windows<T>& w, const Run* runs, int64_t n_runs, int64_t pitch) {
  if (sizeof(T) != 4 || kVectorBytes < 32 || pitch > kMaxPanel || n_runs < 2) return false;
  const Run& last = runs[n_runs - 1];
  const int64_t pixels = last.at + last.count, images = last.image - runs[0].image + 2;
  const int64_t reach = images * (w.stride[0] < 0 ? -w.stride[0] : w.stride[0]) +
                        (w.y.in_size + w.y.taps * w.y.spacing) * w.stride[2] +
                        (w.x.in_size + w.x.taps * w.x.spacing) * w.stride[3];
  if (reach >= INT32_MAX / 4 || reach <= INT32_MIN / 4) return false;
  return pixels < n_runs * (w.x.step == 1 ? lanes<float> / 2 : lanes<float> / 2 + 1);
}

// panel[k][pixel], `pitch` elements between k: numbers [begin, end) of the windows of the pixels in `runs`.
template <class T, class A>
static void pack_windows_by_depth(const Windows<T>& w, const Run* runs, int64_t n_runs, int64_t begin,
                                  int64_t end, A* panel, int64_t pitch) {
  if constexpr (sizeof(T) == 4)
    if (gathering_pays(w, runs, n_runs, pitch))
      return gather_windows_by_depth(w, runs, n_runs, begin, end, panel, pitch);
  const int64_t step = w.x.step * w.stride[3];
  each_tap(w, begin, end, [&](int64_t ty, int64_t tx, int64_t channel, int64_t channels, int64_t at) {
    for (int64_t i = 0; i < n_runs; ++i) {
      const Run& run = runs[i];
      A* to = panel + at * pitch + run.at;
      const int64_t row = run.row * w.y.step + w.y.first + ty * w.y.spacing;
      const int64_t offset = w.x.first + tx * w.x.spacing;
      const Span span =
          row >= 0 && row < w.y.in_size ? inside(w.x, run.column, run.count, offset) : Span{0, 0};
      const T* from = w.data + run.image * w.stride[0] + channel * w.stride[1] + row * w.stride[2] +
                      (run.column * w.x.step + offset) * w.stride[3];  // of the run's first pixel
      for (int64_t c = 0; c < channels; ++c, to += pitch, from += w.stride[1]) {
        if (step == 1) {
          copy_span<1>(to, from, span.low, span.high, run.count);
        } else if (step == 2) {
          copy_span<2>(to, from, span.low, span.high, run.count);
        } else if (step == 4) {
          copy_span<4>(to, from, span.low, span.high, run.count);
        } else {
          fill_zero(to, span.low);
          copy_strided(to + span.low, from + span.low * step, step, span.high - span.low);
          fill_zero(to + span.high, run.count - span.high);
        }
      }
    }
  });
}

// panel[pixel][k], `pitch` elements between pixels.
template <class T, class A>
static void pack_windows_by_pixel(const Windows<T>& w, const Run* runs, int64_t n_runs, int64_t begin,
                                  int64_t end, A* panel, int64_t pitch) {
  if (w.stride[1] == 1 && (w.x.taps == 1 || w.x.spacing * w.stride[3] == w.channels)) {
    // a row of a window is one stretch of memory, taps and channels together; the image's edge clips it
    const int64_t length = w.x.taps * w.channels, pixel = w.x.taps == 1 ? w.stride[3] : w.channels;
    for (int64_t k = begin; k < end;) {
      const int64_t ty = k / length, q0 = k % length, q1 = min_of(length, q0 + end - k);
      for (int64_t i = 0; i < n_runs; ++i) {
        const Run& run = runs[i];
        const int64_t row = run.row * w.y.step + w.y.first + ty * w.y.spacing;
        const bool row_inside = row >= 0 && row < w.y.in_size;
        const T* line = w.data + run.image * w.stride[0] + row * w.stride[2];
        A* to = panel + run.at * pitch + (k - begin);
        for (int64_t j = 0; j < run.count; ++j, to += pitch) {
          const int64_t column = (run.column + j) * w.x.step + w.x.first;
          // with one tap a pixel is all in or all out; else tap t is inside for column + t in [0, in_size)
          const int64_t low = w.x.taps == 1 ? (column < 0 ? length : 0) : -column * w.channels;
          const int64_t high =
              w.x.taps == 1 ? (column < w.x.in_size ? length : 0) : (w.x.in_size - column) * w.channels;
          const bool any = row_inside && low < high;
          copy_span<1>(to, line + column * pixel + q0, any ? low - q0 : 0, any ? high - q0 : 0, q1 - q0);
        }
      }
      k += q1 - q0;
    }
    return;
  }
  each_tap(w, begin, end, [&](int64_t ty, int64_t tx, int64_t channel, int64_t channels, int64_t at) {
    for (int64_t i = 0; i < n_runs; ++i) {
      const Run& run = runs[i];
      const int64_t row = run.row * w.y.step + w.y.first + ty * w.y.spacing;
      const bool row_inside = row >= 0 && row < w.y.in_size;
      for (int64_t j = 0; j < run.count; ++j) {
        A* to = panel + (run.at + j) * pitch + at;
        const int64_t column = (run.column + j) * w.x.step + w.x.first + tx * w.x.spacing;
        if (row_inside && column >= 0 && column < w.x.in_size)
          copy_strided(to,
                       w.data + run.image * w.stride[0] + channel * w.stride[1] + row * w.stride[2] +
                           column * w.stride[3],
                       w.stride[1], channels);
        else
          fill_zero(to, channels);
      }
    }
  });
}

}  // namespace pydl::cpu::PYDL_ISA
