// Average pooling on the CPU. See kernels/avg_pool2d.h for the formula.
//
// In rows of pixels lanes are outputs of a row, whose sums stay in registers; with a stride beyond 2 the
// window's rows are added up first, as they lie, and the columns of that one row after, as they all are in
// channels_last (channel_sums.h). A window that is the plane is added up as it lies, and one whose row of pixels fits no
// buffer pixel by pixel.
#include "kernels/avg_pool2d.h"

#include "kernels/cpu/base/simd_reduce.h"
#include "kernels/cpu/pool2d/channel_sums.h"
#include "kernels/cpu/rows/walk.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kStretch = 512;    // pixels of a row added up at once
constexpr int64_t kChannels = 2048;  // and channels: pixels are read whole, one after another

template <class A>
PYDL_INLINE A scale_of_row(const AvgPool2dParams& p, int64_t oy) {
  return p.row_scale ? static_cast<const A*>(p.row_scale)[oy] : static_cast<A>(p.scale);
}
template <class A>
PYDL_INLINE A scale_of(const AvgPool2dParams& p, int64_t oy, int64_t ox) {
  return p.column_scale ? scale_of_row<A>(p, oy) * static_cast<const A*>(p.column_scale)[ox]
                        : scale_of_row<A>(p, oy);
}

// The mean over 2x2 with stride 2, the most common, for output rows [first, last) of a plane whose windows
// lie in the image with both rows: by columns of one vector, whose lanes are worked out once for all of them.
template <class T>
PYDL_INLINE void halves(const AvgPool2dParams& p, const Axis& y, const Axis& x, const T* image, T* output,
                        int64_t first, int64_t last) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const int64_t stride = p.from_stride[2];
  for (int64_t j = 0; j < x.out; j += all) {
    const int64_t at = x.start(j);
    const Lanes low = lanes_between(-at, x.in - at), high = lanes_between(-at - all, x.in - at - all);
    const Lanes out = lanes_between(0, x.out - j);
    const bool narrow = x.in - at <= all;  // nothing in the second half
    const vec<A> columns =
        p.column_scale ? load_lanes(static_cast<const A*>(p.column_scale) + j, out, A(0)) : broadcast(A(1));
    for (int64_t oy = first; oy < last; ++oy) {
      const T* window = image + y.start(oy) * stride + at;
      const vec<A> a = load_lanes(window, low, A(0)) + load_lanes(window + stride, low, A(0));
      vec<A> b{};
      if (!narrow) b = load_lanes(window + all, high, A(0)) + load_lanes(window + stride + all, high, A(0));
      prefetch_far_ahead(window, kFarAheadBytes / static_cast<int64_t>(sizeof(T)));
      prefetch_far_ahead(window + stride, kFarAheadBytes / static_cast<int64_t>(sizeof(T)));
      const vec<A> scale = columns * broadcast(scale_of_row<A>(p, oy));
      store_lanes(output + oy * x.out + j, (even_lanes(a, b) + odd_lanes(a, b)) * scale, out);
    }
  }
}

// One output row, from its window's rows down.begin to down.end.
template <int kStep, class T>
PYDL_INLINE void pool_row(const AvgPool2dParams& p, const Axis& x, const T* window, Range down, int64_t oy,
                          T* output) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const int64_t stride = p.from_stride[2];
  for (int64_t j = 0; j < x.out; j += all) {
    const int64_t at = x.start(j);
    vec<A> sum{};
    for (int64_t r = down.begin; r < down.end; ++r)
      for (int64_t s = 0; s < x.kernel; ++s) sum += load_row<kStep>(window + r * stride, at + s, x.in, A(0));
    const int64_t n = x.out - j;
    sum *= broadcast(scale_of_row<A>(p, oy));
    if (p.column_scale) sum *= load_between(static_cast<const A*>(p.column_scale) + j, 0, n);
    n >= all ? store(output + j, sum) : store_n(output + j, sum, n);
  }
}

// The same with any stride: the rows first.
template <class T>
PYDL_INLINE void pool_wide_row(const AvgPool2dParams& p, const Axis& x, const T* window, Range down,
                               int64_t oy, T* output) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const int64_t stride = p.from_stride[2];
  const auto columns = [&](int64_t ox) PYDL_INLINE_LAMBDA {
    const Range taps = x.taps(ox);
    return Range{x.start(ox) + taps.begin, x.start(ox) + taps.end};
  };
  A total = 0;
  int64_t ox = 0;
  for (int64_t first = 0; first < x.in && ox < x.out; first += kStretch) {
    const int64_t n = min_of(kStretch, x.in - first);
    alignas(64) A sums[kStretch];
    for (int64_t j = 0; j < n; j += all) {
      vec<A> sum{};
      if (j + all <= n)
        for (int64_t r = down.begin; r < down.end; ++r) sum += load(window + r * stride + first + j);
      else
        for (int64_t r = down.begin; r < down.end; ++r) sum += load_n(window + r * stride + first + j, n - j);
      store(sums + j, sum);
    }
    while (ox < x.out) {
      const Range c = columns(ox);
      const int64_t last = min_of(c.end, first + n);
      for (int64_t j = max_of(c.begin, first); j < last; ++j) total += sums[j - first];
      if (c.end > first + n) break;  // goes on in the next stretch
      store_one(output + ox, total * scale_of<A>(p, oy, ox));
      total = 0;
      ++ox;
    }
  }
}

// Output rows [begin, end), counted over all planes, of an NCHW output; the input's rows are dense.
template <class T>
void rows(const AvgPool2dParams& p, int64_t begin, int64_t end) {
  const Axis y = vertical(p), x = horizontal(p);
  const bool two_by_two = kTrains<T> && x.kernel == 2 && x.stride == 2 && y.kernel == 2 && y.stride == 2;
  const bool separate = x.kernel <= x.stride;  // no pixel is in two windows of a row
  each_plane(y.out, begin, end, [&](int64_t plane, int64_t first, int64_t last) PYDL_INLINE_LAMBDA {
    const T* image = plane_read<T>(p, plane);
    // of two_by_two all rows but those in the padding
    const int64_t from = min_of(max_of(first, y.pad > 0 ? 1 : 0), last);
    const int64_t to = max_of(min_of(last, (y.in + y.pad) / 2), from);
    if constexpr (kTrains<T>)
      if (two_by_two) halves(p, y, x, image, static_cast<T*>(p.to) + plane * y.out * x.out, from, to);
    for (int64_t oy = first; oy < last; ++oy) {
      if (two_by_two && oy >= from && oy < to) continue;
      const T* window = image + y.start(oy) * p.from_stride[2];
      T* output = static_cast<T*>(p.to) + (plane * y.out + oy) * x.out;
      const Range down = y.taps(oy);
      if (x.stride == 2)
        pool_row<2>(p, x, window, down, oy, output);
      else if (x.stride == 1)
        pool_row<1>(p, x, window, down, oy, output);
      else if (separate)
        pool_wide_row(p, x, window, down, oy, output);
    }
  });
}

// Planes [begin, end), the only window of each, whose pixels lie one after another: four at once, since a sum waits for
// itself.
template <class T>
void planes(const AvgPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>, kSums = 4;
  const int64_t pixels = p.in_height * p.in_width;
  const A scale = scale_of<A>(p, 0, 0);
  T* output = static_cast<T*>(p.to);
  for (int64_t plane = begin; plane < end; plane += kSums) {
    const int64_t n = min_of(kSums, end - plane);
    const T* image[kSums];
    for (int64_t i = 0; i < kSums; ++i) image[i] = plane_read<T>(p, plane + min_of(i, n - 1));
    vec<A> sum[kSums] = {};
    int64_t j = 0;
    for (; j + all <= pixels; j += all)
#pragma GCC unroll 4
      for (int64_t i = 0; i < kSums; ++i) sum[i] += load(image[i] + j);
    if (j < pixels)
#pragma GCC unroll 4
      for (int64_t i = 0; i < kSums; ++i) sum[i] += load_n(image[i] + j, pixels - j);
    A total[kSums];
    reduce_add_each(sum, total);
    for (int64_t i = 0; i < n; ++i) store_one(output + plane + i, total[i] * scale);
  }
}

// sums[j] += the n channels of `count` pixels, `apart` elements from each other; set, where they are the first.
template <int kCount, class T>
PYDL_INLINE void add_pixels(acc_t<T>* sums, const T* pixel, int64_t apart, int64_t n, bool first) {
  using A = acc_t<T>;
  for (int64_t j = 0; j < n; j += lanes<A>) {
    vec<A> sum = first ? vec<A>{} : load(sums + j);
#pragma GCC unroll 4
    for (int64_t i = 0; i < kCount; ++i) {
      const T* q = pixel + i * apart + j;
      sum += n - j >= lanes<A> ? load(q) : load_n(q, n - j);
    }
    store(sums + j, sum);
  }
}

// The mean of a window of many pixels in channels_last, which is read in the order of memory.
template <class T>
PYDL_INLINE void pool_pixels(const AvgPool2dParams& p, const T* window, Range rs, Range ss, acc_t<T> scale,
                             T* output) {
  using A = acc_t<T>;
  const int64_t down = p.from_stride[2], right = p.from_stride[3];
  alignas(64) A sums[kChannels];
  for (int64_t c = 0; c < p.channels; c += kChannels) {
    const int64_t n = min_of(kChannels, p.channels - c);
    bool first = true;
    for (int64_t r = rs.begin; r < rs.end; ++r) {
      const T* row = window + r * down + c;
      int64_t s = ss.begin;
      for (; s + 4 <= ss.end; s += 4, first = false) add_pixels<4>(sums, row + s * right, right, n, first);
      for (; s < ss.end; ++s, first = false) add_pixels<1>(sums, row + s * right, right, n, first);
    }
    for (int64_t j = 0; j < n; j += lanes<A>) {
      const vec<A> mean =
          first ? vec<A>{} : load(sums + j) * broadcast(scale);  // a window may lie in the padding
      n - j >= lanes<A> ? store(output + c + j, mean) : store_n(output + c + j, mean, n - j);
    }
  }
}

// Output rows [begin, end), counted over all images, of a channels_last output; the input's channels are dense, and
// more than the buffer of channel_sums() holds of a window's row.
template <class T>
void wide_windows(const AvgPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const Axis y = vertical(p), x = horizontal(p);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t oy = row % y.out;
    const T* image = static_cast<const T*>(p.from) + row / y.out * p.from_stride[0];
    for (int64_t ox = 0; ox < x.out; ++ox) {
      const T* window = image + y.start(oy) * p.from_stride[2] + x.start(ox) * p.from_stride[3];
      pool_pixels(p, window, y.taps(oy), x.taps(ox), scale_of<A>(p, oy, ox),
                  static_cast<T*>(p.to) + (row * x.out + ox) * p.channels);
    }
  }
}

// The same of narrower windows.
template <class T>
void channels(const AvgPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const Axis y = vertical(p), x = horizontal(p);
  channel_sums<T>(
      begin, end, x.out, p.channels, p.from_stride[2], p.from_stride[3],
      [&](int64_t row) PYDL_INLINE_LAMBDA {
        const int64_t oy = row % y.out, top = y.start(oy);
        const Range taps = y.taps(oy);
        return RowOfSums<T>{static_cast<T*>(p.to) + row * x.out * p.channels,
                            static_cast<const T*>(p.from) + row / y.out * p.from_stride[0],
                            {top + taps.begin, top + taps.end},
                            scale_of_row<A>(p, oy)};
      },
      [](int64_t) PYDL_INLINE_LAMBDA { return A(1); },
      [&](int64_t ox) PYDL_INLINE_LAMBDA {
        const Range taps = x.taps(ox);
        return Range{x.start(ox) + taps.begin, x.start(ox) + taps.end};
      },
      nullptr, static_cast<const A*>(p.column_scale));
}

// The mean of four pixels, `down` and `right` apart. kSpill: whole vectors, read and written beyond the pixels' channels;
// what lies there is written after.
template <bool kSpill, class T>
PYDL_INLINE void mean_of_four(const T* window, int64_t down, int64_t right, vec<acc_t<T>> scale, T* output,
                              int64_t channels) {
  using A = acc_t<T>;
  for (int64_t c = 0; c < channels; c += lanes<A>) {
    const int64_t n = kSpill ? lanes<A> : min_of(lanes<A>, channels - c);
    const auto at = [&](int64_t i) PYDL_INLINE_LAMBDA {
      return kSpill ? load(window + c + i) : load_n(window + c + i, n);
    };
    const vec<A> mean = ((at(0) + at(down)) + (at(right) + at(down + right))) * scale;
    kSpill ? store(output + c, mean) : store_n(output + c, mean, n);
  }
}

// Windows of 2x2 with stride 2 that lie in the image, all with one scale, in channels_last.
template <class T>
void fours_of_channels(const AvgPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const int64_t channels = p.channels, down = p.from_stride[2], right = p.from_stride[3];
  const vec<A> scale = broadcast(static_cast<A>(p.scale));
  // the windows that have whole vectors before the ends of both rows, read and written
  const int64_t beyond = ceil_div(ceil_div(channels, lanes<A>) * lanes<A>, channels) - 1;
  const int64_t spilling = min_of(p.out_width - beyond, (p.in_width - beyond) / 2);
  for (int64_t row = begin; row < end; ++row) {
    const T* window =
        static_cast<const T*>(p.from) + row / p.out_height * p.from_stride[0] + row % p.out_height * 2 * down;
    T* output = static_cast<T*>(p.to) + row * p.out_width * channels;
    for (int64_t x = 0; x < p.out_width; ++x, window += 2 * right, output += channels)
      x < spilling ? mean_of_four<true>(window, down, right, scale, output, channels)
                   : mean_of_four<false>(window, down, right, scale, output, channels);
  }
}

// The same, whatever the strides: pixel by pixel.
template <class T>
void strided(const AvgPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const Axis y = vertical(p), x = horizontal(p);
  const int64_t* stride = p.from_stride;
  T* output = static_cast<T*>(p.to);
  each_written(p, y.out, x.out, begin, end,
               [&](int64_t n, int64_t c, int64_t oy, int64_t ox, int64_t offset) PYDL_INLINE_LAMBDA {
                 const T* image = static_cast<const T*>(p.from) + n * stride[0] + c * stride[1];
                 const Range rs = y.taps(oy), ss = x.taps(ox);
                 A sum = 0;
                 for (int64_t r = rs.begin; r < rs.end; ++r)
                   for (int64_t s = ss.begin; s < ss.end; ++s)
                     sum += load_one(image + (y.start(oy) + r) * stride[2] + (x.start(ox) + s) * stride[3]);
                 store_one(output + offset, sum * scale_of<A>(p, oy, ox));
               });
}

}  // namespace

void avg_pool2d(const AvgPool2dParams& p, const Parallel& parallel) {
  const int64_t count = rows_written(p, p.out_height);
  const int64_t pixels = p.in_width * p.stride_height * (p.channels_last ? p.channels : 1);
  const bool in_rows =
      !p.channels_last && p.from_stride[3] == 1 && (p.stride_width <= 2 || p.kernel_width <= p.stride_width);
  const bool dense_channels = p.channels_last && p.from_stride[1] == 1;
  const bool adjacent = p.from_stride[3] == 1 && (p.in_height == 1 || p.from_stride[2] == p.in_width);
  const bool fours = dense_channels && p.kernel_height == 2 && p.kernel_width == 2 && p.stride_height == 2 &&
                     p.stride_width == 2 && p.pad_top == 0 && p.pad_left == 0 &&
                     p.in_height >= 2 * p.out_height && p.in_width >= 2 * p.out_width && !p.row_scale &&
                     !p.column_scale;
  dispatch_rows(p.dtype, [&](auto type) {
    using T = decltype(type);
    parallel(count, ceil_div(is_plane(p) ? kPlaneGrain : kPoolGrain, max_of(pixels, 1)),
             [&](int64_t begin, int64_t end) {
               if (is_plane(p) && adjacent && !p.channels_last)
                 planes<T>(p, begin, end);
               else if (in_rows)
                 rows<T>(p, begin, end);
               else if (kTrains<T> && fours && p.from_stride[3] == p.channels)
                 fours_of_channels<T>(p, begin, end);
               else if (dense_channels)
                 p.kernel_width* p.channels <= kBuffer ? channels<T>(p, begin, end)
                                                       : wide_windows<T>(p, begin, end);
               else
                 strided<T>(p, begin, end);
             });
  });
}

}  // namespace pydl::cpu::PYDL_ISA
