// The gradient of average pooling: each pixel gathers its share of the windows that cover it.
#include "kernels/avg_pool2d.h"
#include "kernels/cpu/pool2d/channel_sums.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

template <class A>
PYDL_INLINE A scale_of_row(const AvgPool2dParams& p, int64_t oy) {
  return p.row_scale ? static_cast<const A*>(p.row_scale)[oy] : static_cast<A>(p.scale);
}

// The gradients of the windows from ox on, times the scale of their columns; 0 beyond the row.
template <class T>
PYDL_INLINE vec<acc_t<T>> column_gradients(const AvgPool2dParams& p, const Axis& x, const T* grad,
                                           int64_t ox) {
  using A = acc_t<T>;
  vec<A> v = load_row<1>(grad, ox, x.out, A(0));
  if (p.column_scale) v *= load_row<1>(static_cast<const A*>(p.column_scale), ox, x.out, A(0));
  return v;
}

// Windows of 2 with stride 2, the most common, for an NCHW gradient whose grad_output has dense rows: each
// pixel is in one window at most. By columns of two vectors, whose lanes are worked out once for a plane.
template <class T>
void halves(const AvgPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const Axis y = vertical(p), x = horizontal(p);
  each_plane(y.in, begin, end, [&](int64_t plane, int64_t first, int64_t last) PYDL_INLINE_LAMBDA {
    const T* from = plane_read<T>(p, plane);
    T* to = static_cast<T*>(p.to) + plane * y.in * x.in;
    for (int64_t at = x.pad & ~int64_t{1}; at < x.in + x.pad; at += 2 * all) {  // a place in the padded row
      const int64_t ox = at / 2, j = at - x.pad;
      const Lanes inside = lanes_between(0, x.out - ox);
      const Lanes low = lanes_between(-j, x.in - j), high = lanes_between(-j - all, x.in - j - all);
      const vec<A> columns = p.column_scale
                                 ? load_lanes(static_cast<const A*>(p.column_scale) + ox, inside, A(0))
                                 : broadcast(A(1));
      Range windows = y.windows(first);
      for (int64_t i = first; i < last; ++i) {
        y.follow(windows, i);
        vec<A> share{};
        if (windows.begin < windows.end)
          share = load_lanes(from + windows.begin * p.from_stride[2] + ox, inside, A(0)) *
                  (columns * broadcast(scale_of_row<A>(p, windows.begin)));
        T* row = to + i * x.in + j;
        store_lanes(row, interleave_lanes_low(share, share), low);
        store_lanes(row + all, interleave_lanes_high(share, share), high);
      }
    }
  });
}

// Whether windows of 2x2 with stride 2 fill the image, all with one scale.
bool fills_by_fours(const AvgPool2dParams& p) {
  return p.kernel_height == 2 && p.kernel_width == 2 && p.stride_height == 2 && p.stride_width == 2 &&
         p.pad_top == 0 && p.pad_left == 0 && p.in_height <= 2 * p.out_height &&
         p.in_width <= 2 * p.out_width && p.row_scale == nullptr && p.column_scale == nullptr;
}

// Each lane of v twice to pixels [0, n) of row.
template <class T>
PYDL_INLINE void store_twice(T* row, vec<acc_t<T>> v, int64_t n) {
  constexpr int64_t all = lanes<acc_t<T>>;
  store_lanes(row, interleave_lanes_low(v, v), lanes_between(0, n));
  store_lanes(row + all, interleave_lanes_high(v, v), lanes_between(-all, n - all));
}
#if defined(PYDL_BF16_DOT)
PYDL_INLINE void store_twice(bf16* row, vec<float> v, int64_t n) {
  const u16h rounded = narrow_bf16(v);
  store_pairs_n(row, side_by_side(rounded, rounded), n);
}
#endif

// Those: what a row of windows gives is two rows.
template <class T>
void fours(const AvgPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const vec<A> scale = broadcast(static_cast<A>(p.scale));
  each_plane(p.in_height, begin, end, [&](int64_t plane, int64_t first, int64_t last) PYDL_INLINE_LAMBDA {
    const T* from = plane_read<T>(p, plane);
    T* to = static_cast<T*>(p.to) + plane * p.in_height * p.in_width;
    for (int64_t x = 0; x < p.in_width; x += 2 * all) {
      const int64_t n = min_of(2 * all, p.in_width - x);
      const Lanes inside = lanes_between(0, (n + 1) / 2);
      for (int64_t y = first; y < last; ++y) {
        const vec<A> share = load_lanes(from + y / 2 * p.from_stride[2] + x / 2, inside, A(0)) * scale;
        T* row = to + y * p.in_width + x;
        store_twice(row, share, n);
        if (y % 2 == 0 && y + 1 < last) {
          store_twice(row + p.in_width, share, n);
          ++y;
        }
      }
    }
  });
}

// Input rows [begin, end), counted over all planes, of an NCHW gradient; rows of grad_output are dense.
template <int kStep, class T>
void rows(const AvgPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const Axis y = vertical(p), x = horizontal(p);
  each_plane(y.in, begin, end, [&](int64_t plane, int64_t first, int64_t last) PYDL_INLINE_LAMBDA {
    const T* from = plane_read<T>(p, plane);
    Range windows = y.windows(first);
    for (int64_t i = first; i < last; ++i) {
      y.follow(windows, i);
      T* to = static_cast<T*>(p.to) + (plane * y.in + i) * x.in;
      if constexpr (kStep == 1) {
        for (int64_t j = 0; j < x.in; j += all) {
          vec<A> sum{};
          for (int64_t oy = windows.begin; oy < windows.end; ++oy) {
            vec<A> part{};
            for (int64_t s = x.kernel - 1; s >= 0; --s)
              part += column_gradients(p, x, from + oy * p.from_stride[2], j + x.pad - s);
            sum += part * broadcast(scale_of_row<A>(p, oy));
          }
          j + all <= x.in ? store(to + j, sum) : store_n(to + j, sum, x.in - j);
        }
      } else {
        // from an even place of the padded row, so that a tap's parity is its pixel's
        for (int64_t at = x.pad & ~int64_t{1}; at < x.in + x.pad; at += 2 * all) {
          vec<A> even{}, odd{};
          for (int64_t oy = windows.begin; oy < windows.end; ++oy) {
            const T* grad = from + oy * p.from_stride[2];
            const vec<A> scale = broadcast(scale_of_row<A>(p, oy));
            vec<A> e{}, o{};
            for (int64_t s = x.kernel - 1; s >= 0; --s) {
              const vec<A> v = column_gradients(p, x, grad, (at - s + 1) >> 1);
              s& 1 ? o += v : e += v;
            }
            even += e * scale;
            odd += o * scale;
          }
          const int64_t j = at - x.pad;
          store_between(to + j, interleave_lanes_low(even, odd), -j, x.in - j);
          store_between(to + j + all, interleave_lanes_high(even, odd), -j - all, x.in - j - all);
        }
      }
    }
  });
}

// The same for windows that lie apart, with any stride: each scatters over its pixels of a row.
template <class T>
void scatter(const AvgPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const Axis y = vertical(p), x = horizontal(p);
  const A* column_scale = static_cast<const A*>(p.column_scale);
  each_plane(y.in, begin, end, [&](int64_t plane, int64_t first, int64_t last) PYDL_INLINE_LAMBDA {
    const T* from = plane_read<T>(p, plane);
    Range windows = y.windows(first);
    int64_t of_row_before = -1;
    for (int64_t i = first; i < last; ++i) {
      y.follow(windows, i);
      T* to = static_cast<T*>(p.to) + (plane * y.in + i) * x.in;
      int64_t j = 0;
      if (windows.begin < windows.end && windows.begin == of_row_before) {
        for (; j < x.in; ++j) to[j] = to[j - x.in];
        continue;
      }
      of_row_before = windows.begin < windows.end ? windows.begin : -1;
      if (windows.begin < windows.end) {
        const A scale = scale_of_row<A>(p, windows.begin);
        const T* grad = from + windows.begin * p.from_stride[2];
        for (int64_t ox = 0; ox < x.out; ++ox) {
          const Range taps = x.taps(ox);
          const A value =
              load_one(grad + ox * p.from_stride[3]) * scale * (column_scale ? column_scale[ox] : A(1));
          T share;
          store_one(&share, value);
          for (; j < x.start(ox); ++j) store_one(to + j, A(0));  // pixels between windows
          for (; j < x.start(ox) + taps.end; ++j) to[j] = share;
        }
      }
      for (; j < x.in; ++j) store_one(to + j, A(0));
    }
  });
}

// Planes whose only window is the plane: every pixel gets the same. Rows [begin, end), counted over all planes.
template <class T>
void planes(const AvgPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const A scale = scale_of_row<A>(p, 0) * (p.column_scale ? *static_cast<const A*>(p.column_scale) : A(1));
  each_plane(p.in_height, begin, end, [&](int64_t plane, int64_t first, int64_t last) PYDL_INLINE_LAMBDA {
    const vec<A> share = broadcast(load_one(plane_read<T>(p, plane)) * scale);
    T* to = static_cast<T*>(p.to) + (plane * p.in_height + first) * p.in_width;
    const int64_t n = (last - first) * p.in_width;
    int64_t j = 0;
    for (; j + all <= n; j += all) store(to + j, share);
    if (j < n) store_n(to + j, share, n - j);
  });
}

// Input rows [begin, end), counted over all images, of a channels_last gradient; channels of grad_output are
// dense.
template <class T>
void channels(const AvgPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const Axis y = vertical(p), x = horizontal(p);
  Range right = x.windows(0);
  channel_sums<T>(
      begin, end, x.in, p.channels, p.from_stride[2], p.from_stride[3],
      [&](int64_t row) PYDL_INLINE_LAMBDA {
        return RowOfSums<T>{static_cast<T*>(p.to) + row * x.in * p.channels,
                            static_cast<const T*>(p.from) + row / y.in * p.from_stride[0],
                            y.windows(row % y.in), A(1)};
      },
      [&](int64_t oy) PYDL_INLINE_LAMBDA { return scale_of_row<A>(p, oy); },
      [&](int64_t j) PYDL_INLINE_LAMBDA {
        x.follow(right, j);
        return right;
      },
      static_cast<const A*>(p.column_scale), nullptr);
}

// A window's share of each channel to its `columns` pixels in two rows. kSpill: whole vectors, beyond the pixel's
// channels; what lies there is written after.
template <bool kSpill, class T>
PYDL_INLINE void spread_channels(const T* from, vec<acc_t<T>> scale, T* upper, T* lower, int64_t channels,
                                 int64_t columns) {
  using A = acc_t<T>;
  for (int64_t x = 0; x < columns; ++x, upper += channels, lower += channels)
    for (int64_t c = 0; c < channels; c += lanes<A>) {
      const int64_t n = kSpill ? lanes<A> : min_of(lanes<A>, channels - c);
      const vec<A> share = (kSpill ? load(from + c) : load_n(from + c, n)) * scale;
      kSpill ? store(upper + c, share) : store_n(upper + c, share, n);
      kSpill ? store(lower + c, share) : store_n(lower + c, share, n);
    }
}

// Windows that fill by fours, for a channels_last gradient. Where the channels of grad_output are not dense, as behind a
// layer that flattened them, a row of them goes by way of a buffer.
template <class T>
void fours_of_channels(const AvgPool2dParams& p, bool dense, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const int64_t channels = p.channels, row = p.in_width * channels;
  const int64_t right = dense ? p.from_stride[3] : channels;
  T buffer[kBuffer + lanes<A>];
  const vec<A> scale = broadcast(static_cast<A>(p.scale));
  // the windows that have whole vectors before the ends of both rows, read and written
  const int64_t beyond = ceil_div(ceil_div(channels, lanes<A>) * lanes<A>, channels) - 1;
  const int64_t spilling = min_of(p.out_width - beyond, (p.in_width - beyond) / 2);
  each_plane(p.in_height, begin, end, [&](int64_t image, int64_t first, int64_t last) PYDL_INLINE_LAMBDA {
    for (int64_t y = first; y < last; ++y) {
      const T* from = static_cast<const T*>(p.from) + image * p.from_stride[0] + y / 2 * p.from_stride[2];
      T *upper = static_cast<T*>(p.to) + (image * p.in_height + y) * row, *lower = upper;
      if (y % 2 == 0 && y + 1 < last) {
        lower += row;
        ++y;
      }
      if (!dense) {
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t x = 0; x < p.out_width; ++x)
            buffer[x * channels + c] = from[c * p.from_stride[1] + x * p.from_stride[3]];
        from = buffer;
      }
      for (int64_t x = 0; x < p.out_width; ++x, from += right) {
        if (x < spilling)
          spread_channels<true>(from, scale, upper, lower, channels, 2);
        else
          spread_channels<false>(from, scale, upper, lower, channels, min_of(2, p.in_width - 2 * x));
        upper += 2 * channels;
        lower += 2 * channels;
      }
    }
  });
}

// The same, whatever the strides: pixel by pixel.
template <class T>
void strided(const AvgPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const Axis y = vertical(p), x = horizontal(p);
  const int64_t* stride = p.from_stride;
  const A* column_scale = static_cast<const A*>(p.column_scale);
  T* to = static_cast<T*>(p.to);
  each_written(p, y.in, x.in, begin, end,
               [&](int64_t n, int64_t c, int64_t i, int64_t j, int64_t offset) PYDL_INLINE_LAMBDA {
                 const T* grad = static_cast<const T*>(p.from) + n * stride[0] + c * stride[1];
                 const Range down = y.windows(i), right = x.windows(j);
                 A sum = 0;
                 for (int64_t oy = down.begin; oy < down.end; ++oy)
                   for (int64_t ox = right.begin; ox < right.end; ++ox)
                     sum += load_one(grad + oy * stride[2] + ox * stride[3]) * scale_of_row<A>(p, oy) *
                            (column_scale ? column_scale[ox] : A(1));
                 store_one(to + offset, sum);
               });
}

template <class T>
void backward(const AvgPool2dParams& p, int64_t begin, int64_t end) {
  if (is_plane(p) && !p.channels_last) return planes<T>(p, begin, end);
  const bool dense = p.from_stride[p.channels_last ? 1 : 3] == 1;
  if constexpr (kTrains<T>)
    if (p.channels_last && fills_by_fours(p) && (dense || p.out_width * p.channels <= kBuffer))
      return fours_of_channels<T>(p, dense, begin, end);
  if (p.channels_last)
    return dense && ceil_div(p.kernel_width, p.stride_width) <= kWidest ? channels<T>(p, begin, end)
                                                                        : strided<T>(p, begin, end);
  if constexpr (kTrains<T>) {
    if (dense && fills_by_fours(p)) return fours<T>(p, begin, end);
    if (dense && p.stride_width == 2 && p.kernel_width == 2 && p.kernel_height <= p.stride_height)
      return halves<T>(p, begin, end);
  }
  if (dense && p.stride_width == 1) return rows<1, T>(p, begin, end);
  if (dense && p.stride_width == 2) return rows<2, T>(p, begin, end);
  if (p.kernel_width <= p.stride_width && p.kernel_height <= p.stride_height)
    return scatter<T>(p, begin, end);
  strided<T>(p, begin, end);
}

}  // namespace

void avg_pool2d_backward(const AvgPool2dParams& p, const Parallel& parallel) {
  const int64_t count = rows_written(p, p.in_height);
  const int64_t elements = p.in_width * (p.channels_last ? p.channels : 1);
  dispatch_rows(p.dtype, [&](auto type) {
    using T = decltype(type);
    parallel(count, ceil_div(is_plane(p) ? kPlaneGrain : kPoolGrain, max_of(elements, 1)),
             [&](int64_t begin, int64_t end) { backward<T>(p, begin, end); });
  });
}

}  // namespace pydl::cpu::PYDL_ISA
