// The gradient of maximum pooling: each pixel gathers from the windows that cover it.
//
// Where windows overlap, a scatter, window by window, would have to clear grad_input first and could not be cut
// among threads; a gather writes each pixel once, in registers until then, and is a comparison and an addition for
// each window that covers it. Windows are added in their order, as torch does.
#include "kernels/cpu/pool2d/max_pool2d.h"
#include "kernels/cpu/rows/walk.h"
#include "kernels/machine.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kBand = 16;          // rows of a plane at once
constexpr int64_t kStaged = 16 << 10;  // bytes of a band that goes past the caches, gathered in the first one
constexpr int64_t kStretch = 512;      // pixels of a row at once, where they go one by one
constexpr int64_t kMostWindows = 256;  // that cover a pixel: places that are bytes have no more taps

// One output row that covers the input row at hand.
template <class T>
struct Cover {
  const T* grad;
  const uint8_t* places;
  int64_t tap;  // of its first column: r * kernel_width
};

// What output row oy of a plane is to input row i; tap -1 where it steps over it. place_bytes: of a place.
template <class T>
PYDL_INLINE Cover<T> cover(const MaxPool2dParams& p, const Axis& y, int64_t image, int64_t channel,
                           int64_t oy, int64_t i, int64_t place_bytes = 1) {
  const int64_t r = y.tap(oy, i);
  const int64_t *g = p.from_stride, *k = p.places_stride;
  return {static_cast<const T*>(p.from) + image * g[0] + channel * g[1] + oy * g[2],
          static_cast<const uint8_t*>(p.places) + (image * k[0] + channel * k[1] + oy * k[2]) * place_bytes,
          r < 0 ? -1 : r * p.kernel_width};
}

// The sum over the taps of column phase kPhase (of kStep), in lanes that are kStep pixels apart; `at` is the
// place in the padded row of lane 0.
template <int kStep, int kPhase, class T>
PYDL_INLINE vec<acc_t<T>> add_row(vec<acc_t<T>> sum, const Cover<T>& row, const Axis& x, int64_t at) {
  using A = acc_t<T>;
  for (int64_t s = x.kernel - 1; s >= 0;
       --s) {  // windows in order: the later the tap, the earlier the window
    const int64_t reach = s * x.dilation;
    if (kStep == 2 && (reach & 1) != kPhase) continue;
    const int64_t ox = kStep == 2 ? (at - reach) >> 1 : at - reach;
    constexpr int64_t all = lanes<A>;
    vec<A> grad;
    mask<A> place;
    if (ox >= 0 && ox + all <= x.out) {
      grad = load(row.grad + ox);
      place = load_integers<A>(row.places + ox, 0, all);
    } else {
      grad = load_between(row.grad + ox, -ox, x.out - ox);
      place = load_integers<A>(row.places + ox, -ox, x.out - ox);
    }
    sum = add_where_equal<A>(sum, grad, place, splat_integer<A>(row.tap + s));
  }
  return sum;
}

// Input rows [begin, end), counted over all planes, of an NCHW gradient; rows of grad_output and of places
// are dense. For kernels of width kWidth without dilation: by columns of one or two vectors, so that which
// lanes lie in the image is worked out once for a band of rows.
template <int kStep, int kWidth, class T>
void columns(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>, kSize = sizeof(T);
  const Axis y = vertical(p), x = horizontal(p);
  alignas(64) T staged[kStaged / kSize];
  const bool streams =
      p.batch * p.channels * y.in * x.in * kSize >= least_streamed_bytes() && x.in * kSize <= kStaged;
  const int64_t band = streams ? min_of(kBand, kStaged / (x.in * kSize)) : kBand;
  const int64_t next = ceil_div(band, p.stride_height);  // output rows on, the next band's
  const int64_t down_grad = p.from_stride[2], down_places = p.places_stride[2];
  each_plane(y.in, begin, end, [&](int64_t plane, int64_t first, int64_t last) PYDL_INLINE_LAMBDA {
    const int64_t image = plane / p.channels, channel = plane % p.channels;
    const T* grads = static_cast<const T*>(p.from) + image * p.from_stride[0] + channel * p.from_stride[1];
    const uint8_t* places =
        static_cast<const uint8_t*>(p.places) + image * p.places_stride[0] + channel * p.places_stride[1];
    T* to = static_cast<T*>(p.to) + plane * y.in * x.in;
    for (int64_t top = first; top < last; top += band) {
      const int64_t bottom = min_of(last, top + band);
      T* const rows = streams ? staged : to + top * x.in;
      // where a phase is a parity, from an even place of the padded row
      for (int64_t at = kStep == 2 ? x.pad & ~int64_t{1} : x.pad; at < x.in + x.pad; at += kStep * all) {
        Lanes inside[kWidth];
        int64_t ox[kWidth];
#pragma GCC unroll 4
        for (int s = 0; s < kWidth; ++s) {
          ox[s] = kStep == 2 ? (at + (s & 1) - s) / 2 : at - s;
          inside[s] = lanes_between(-ox[s], x.out - ox[s]);
        }
        const int64_t j = at - x.pad;
        const Lanes low = lanes_between(-j, x.in - j), high = lanes_between(-j - all, x.in - j - all);
        Range windows = y.windows(top);
        for (int64_t i = top; i < bottom; ++i) {
          y.follow(windows, i);
          vec<A> sum[kStep] = {};
          for (int64_t oy = windows.begin; oy < windows.end; ++oy) {
            const int64_t r = y.tap(oy, i);
            if (r < 0) continue;
            const T* grad = grads + oy * down_grad;
            const uint8_t* place = places + oy * down_places;
            prefetch(grad + next * down_grad + ox[0]);  // columns go down, where no hardware looks ahead
            prefetch(place + next * down_places + ox[0]);
#pragma GCC unroll 4
            for (int s = kWidth - 1; s >= 0; --s) {  // as in add_row
              vec<A>& part = sum[kStep == 2 ? s & 1 : 0];
              part = add_where_equal<A>(part, load_lanes(grad + ox[s], inside[s], A(0)),
                                        load_integers<A>(place + ox[s], inside[s]),
                                        splat_integer<A>(r * kWidth + s));
            }
          }
          T* row = rows + (i - top) * x.in + j;
          if constexpr (kStep == 2) {
            store_lanes(row, interleave_lanes_low(sum[0], sum[1]), low);
            store_lanes(row + all, interleave_lanes_high(sum[0], sum[1]), high);
          } else {
            store_lanes(row, sum[0], low);
          }
        }
      }
      if (streams) stream_copy(to + top * x.in, staged, (bottom - top) * x.in * kSize);
    }
  });
  if (streams) stream_fence();
}

// The same for any kernel.
template <int kStep, class T>
void rows(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const Axis y = vertical(p), x = horizontal(p);
  each_plane(y.in, begin, end, [&](int64_t plane, int64_t first, int64_t last) PYDL_INLINE_LAMBDA {
    const int64_t image = plane / p.channels, channel = plane % p.channels;
    for (int64_t i = first; i < last; ++i) {
      const Range windows = y.windows(i);
      T* to = static_cast<T*>(p.to) + (plane * y.in + i) * x.in;
      const auto each_cover = [&](auto body) PYDL_INLINE_LAMBDA {
        for (int64_t oy = windows.begin; oy < windows.end; ++oy) {
          const Cover<T> c = cover<T>(p, y, image, channel, oy, i);
          if (c.tap >= 0) body(c);
        }
      };
      if constexpr (kStep == 1) {
        for (int64_t j = 0; j < x.in; j += all) {
          vec<A> sum{};
          each_cover([&](const Cover<T>& c)
                         PYDL_INLINE_LAMBDA { sum = add_row<1, 0>(sum, c, x, j + x.pad); });
          j + all <= x.in ? store(to + j, sum) : store_n(to + j, sum, x.in - j);
        }
      } else {
        // from an even place of the padded row, so that a phase is a parity
        for (int64_t at = x.pad & ~int64_t{1}; at < x.in + x.pad; at += 2 * all) {
          vec<A> even{}, odd{};
          each_cover([&](const Cover<T>& c) PYDL_INLINE_LAMBDA {
            even = add_row<2, 0>(even, c, x, at);
            odd = add_row<2, 1>(odd, c, x, at + 1);
          });
          const int64_t j = at - x.pad;
          store_between(to + j, interleave_lanes_low(even, odd), -j, x.in - j);
          store_between(to + j + all, interleave_lanes_high(even, odd), -j - all, x.in - j - all);
        }
      }
    }
  });
}

// Whether a channels_last gradient goes past the caches: whole vectors of channels, more than the caches hold.
template <class T>
bool streams_channels(const MaxPool2dParams& p) {
  const int64_t numbers = p.batch * p.in_height * p.in_width * p.channels;
  return numbers * static_cast<int64_t>(sizeof(T)) >= least_streamed_bytes() &&
         p.channels % lanes<acc_t<T>> == 0 && reinterpret_cast<uintptr_t>(p.to) % kVectorBytes == 0;
}

// Input rows [begin, end), counted over all images, of a channels_last gradient; channels of grad_output and
// places, which are bytes, are dense. A pixel's windows are looked for once for all its channels.
template <class T>
void channels(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const Axis y = vertical(p), x = horizontal(p);
  const bool streams = streams_channels<T>(p);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t i = row % y.in, image = row / y.in;
    const Range down = y.windows(i);
    Range right = x.windows(0);
    for (int64_t j = 0; j < x.in; ++j) {
      x.follow(right, j);
      T* to = static_cast<T*>(p.to) + (row * x.in + j) * p.channels;
      Cover<T> window[kMostWindows];
      int64_t windows = 0;
      for (int64_t oy = down.begin; oy < down.end; ++oy) {
        const Cover<T> rows = cover<T>(p, y, image, 0, oy, i);
        if (rows.tap < 0) continue;
        for (int64_t ox = right.begin; ox < right.end; ++ox)
          if (const int64_t s = x.tap(ox, j); s >= 0)
            window[windows++] = {rows.grad + ox * p.from_stride[3], rows.places + ox * p.places_stride[3],
                                 rows.tap + s};
      }
      int64_t c = 0;
      for (; c + all <= p.channels; c += all) {
        vec<A> sum{};
        for (int64_t w = 0; w < windows; ++w)
          sum = add_where_equal<A>(sum, load(window[w].grad + c),
                                   load_integers<A>(window[w].places + c, 0, all),
                                   splat_integer<A>(window[w].tap));
        streams ? stream(to + c, sum) : store(to + c, sum);
      }
      if (const int64_t n = p.channels - c; n > 0) {
        vec<A> sum{};
        for (int64_t w = 0; w < windows; ++w)
          sum = add_where_equal<A>(sum, load_n(window[w].grad + c, n),
                                   load_integers<A>(window[w].places + c, 0, n),
                                   splat_integer<A>(window[w].tap));
        store_n(to + c, sum, n);
      }
    }
  }
  if (streams) stream_fence();
}

// The same where windows tile the image from its corner: each gradient and its place are read once for a row of its
// window, and no window is looked for.
template <class T>
void channels_of_tiles(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const int64_t pixel = p.channels, across = p.kernel_width, wide = p.in_width * pixel;
  const bool streams = streams_channels<T>(p);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t i = row % p.in_height, image = row / p.in_height;
    const int64_t oy = i / p.kernel_height, first_tap = i % p.kernel_height * across;
    T* to = static_cast<T*>(p.to) + row * wide;
    const int64_t windows = oy < p.out_height ? p.out_width : 0;
    const T* grads = static_cast<const T*>(p.from) + image * p.from_stride[0] + oy * p.from_stride[2];
    const uint8_t* places =
        static_cast<const uint8_t*>(p.places) + image * p.places_stride[0] + oy * p.places_stride[2];
    for (int64_t ox = 0; ox < windows; ++ox, to += across * pixel)
      for (int64_t c = 0; c < pixel; c += all) {
        const int64_t n = min_of(all, pixel - c);
        const T* grad = grads + ox * p.from_stride[3] + c;
        const uint8_t* place = places + ox * p.places_stride[3] + c;
        const vec<A> g = n == all ? load(grad) : load_n(grad, n);
        const mask<A> k = load_integers<A>(place, 0, n);
        for (int64_t s = 0; s < across; ++s) {
          const vec<A> sum = add_where_equal<A>(vec<A>{}, g, k, splat_integer<A>(first_tap + s));
          T* const there = to + s * pixel + c;
          if (streams)
            stream(there, sum);
          else
            n == all ? store(there, sum) : store_n(there, sum, n);
        }
      }
    memset(static_cast<void*>(to), 0, static_cast<size_t>(wide - windows * across * pixel) * sizeof(T));
  }
  if (streams) stream_fence();
}

// Windows that lie apart, whatever the strides of what is read: cleared first, since most pixels get nothing, and then
// each gradient at its place. Rows as rows_written() counts them; those of one task may end within a window.
template <class T>
void scatter(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  const Axis y = vertical(p), x = horizontal(p);
  const int64_t planes = p.channels_last ? 1 : p.channels, inner = p.channels_last ? p.channels : 1;
  const int64_t *g = p.from_stride, *k = p.places_stride;
  T* to = static_cast<T*>(p.to);
  memset(static_cast<void*>(to + begin * x.in * inner), 0,
         static_cast<size_t>((end - begin) * x.in * inner) * sizeof(T));
  each_plane(y.in, begin, end, [&](int64_t plane, int64_t first, int64_t last) PYDL_INLINE_LAMBDA {
    const int64_t n = plane / planes, channel = plane % planes;
    const T* grad = static_cast<const T*>(p.from) + n * g[0] + channel * g[1];
    const int64_t place = n * k[0] + channel * k[1];
    for (int64_t oy = y.windows(first).begin; oy < y.out && y.start(oy) < last; ++oy)
      for (int64_t ox = 0; ox < x.out; ++ox)
        for (int64_t c = 0; c < inner; ++c) {
          // divided as 32 bits, which is quicker
          const auto tap = static_cast<uint32_t>(place_at(p, place + c * k[1] + oy * k[2] + ox * k[3]));
          const uint32_t r = tap / static_cast<uint32_t>(x.kernel);
          const int64_t i = y.start(oy) + r;
          const int64_t j = x.start(ox) + tap - r * static_cast<uint32_t>(x.kernel);
          if (i >= first && i < last && j >= 0 && j < x.in)
            to[((plane * y.in + i) * x.in + j) * inner + c] = grad[c * g[1] + oy * g[2] + ox * g[3]];
        }
  });
}

// The same, whatever the strides: window by window, for a stretch of a row of pixels of one channel.
template <class T>
void strided(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const Axis y = vertical(p), x = horizontal(p);
  const int64_t planes = p.channels_last ? 1 : p.channels, inner = p.channels_last ? p.channels : 1;
  const int64_t g = p.from_stride[3], k = p.places_stride[3];
  for (int64_t row = begin; row < end; ++row) {
    const int64_t i = row % y.in, plane = row / y.in;
    const Range windows = y.windows(i);
    for (int64_t c = 0; c < inner; ++c)
      for (int64_t first = 0; first < x.in; first += kStretch) {
        const int64_t n = min_of(kStretch, x.in - first);
        A sum[kStretch];
        for (int64_t j = 0; j < n; ++j) sum[j] = 0;
        const int64_t from = x.windows(first).begin, to = x.windows(first + n - 1).end;
        for (int64_t oy = windows.begin; oy < windows.end; ++oy) {
          const Cover<T> rows =
              cover<T>(p, y, plane / planes, plane % planes + c, oy, i, p.byte_places ? 1 : sizeof(int32_t));
          if (rows.tap < 0) continue;
          for (int64_t ox = from; ox < to; ++ox) {
            const int64_t place = p.byte_places ? int64_t{rows.places[ox * k]}
                                                : reinterpret_cast<const int32_t*>(rows.places)[ox * k];
            const int64_t s = place - rows.tap;
            const int64_t j = x.start(ox) + s * x.dilation - first;
            if (s >= 0 && s < x.kernel && j >= 0 && j < n) sum[j] += load_one(rows.grad + ox * g);
          }
        }
        T* output = static_cast<T*>(p.to) + (row * x.in + first) * inner + c;
        for (int64_t j = 0; j < n; ++j) store_one(output + j * inner, sum[j]);
      }
  }
}

template <int kStep, class T>
void rows_of_width(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  if constexpr (kTrains<T>) {
    if (p.kernel_width == 2 && p.dilation_width == 1) return columns<kStep, 2, T>(p, begin, end);
    if (p.kernel_width == 3 && p.dilation_width == 1) return columns<kStep, 3, T>(p, begin, end);
  }
  rows<kStep, T>(p, begin, end);
}

template <class T>
void backward(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  const bool tiles = are_apart(p) && p.kernel_height == p.stride_height && p.kernel_width == p.stride_width &&
                     p.pad_top == 0 && p.pad_left == 0 && p.out_height * p.kernel_height <= p.in_height &&
                     p.out_width * p.kernel_width <= p.in_width;
  if (tiles && p.channels_last && p.byte_places && p.from_stride[1] == 1 && p.places_stride[1] == 1)
    return channels_of_tiles<T>(p, begin, end);
  if constexpr (kTrains<T>)
    if (!p.channels_last && p.from_stride[3] == 1 && p.places_stride[3] == 1 && are_tiles(p))
      return max_pool2d_tiles_backward<T>(p, begin, end);
  if (are_apart(p) && (p.stride_width > 2 || p.kernel_height > 2)) return scatter<T>(p, begin, end);
  // kernels of so many taps are too rare for code of their own
  if (!p.byte_places) return strided<T>(p, begin, end);
  const int inner = p.channels_last ? 1 : 3;  // the dimension that is dense in grad_input
  const bool dense = p.from_stride[inner] == 1 && p.places_stride[inner] == 1;
  if (dense && p.channels_last) return channels<T>(p, begin, end);
  if (dense && p.stride_width == 1) return rows_of_width<1, T>(p, begin, end);
  if (dense && p.stride_width == 2) return rows_of_width<2, T>(p, begin, end);
  strided<T>(p, begin, end);
}

}  // namespace

void max_pool2d_backward(const MaxPool2dParams& p, const Parallel& parallel) {
  if (max_pool2d_planes_backward(p, parallel)) return;
  const int64_t rows = rows_written(p, p.in_height);
  const int64_t elements = p.in_width * (p.channels_last ? p.channels : 1);
  dispatch_rows(p.dtype, [&](auto type) {
    using T = decltype(type);
    parallel(rows, ceil_div(kPoolGrain, max_of(elements, 1)),
             [&](int64_t begin, int64_t end) { backward<T>(p, begin, end); });
  });
}

}  // namespace pydl::cpu::PYDL_ISA
