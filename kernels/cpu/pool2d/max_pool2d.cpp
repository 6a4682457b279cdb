// Maximum pooling on the CPU: the forward, and the gather at its places. See kernels/max_pool2d.h for the
// formula.
//
// Rows of pixels are pooled in max_pool2d_tiles.cpp, max_pool2d_rows.cpp and max_pool2d_direct.cpp, small planes in
// max_pool2d_planes.cpp. In channels_last lanes are channels, and the window's pixels are vectors as they lie. Rows that are no rows in memory go pixel by pixel.
#include "kernels/cpu/pool2d/max_pool2d.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// Vectors of channels side by side: one waits for the comparison of the tap before.
template <class T>
constexpr int kGroups = kTrains<T> ? 2 : 1;

// What output pixels read for the first time, `kAhead` bytes before they do: of the window at `window`, its last rows and
// first columns.
constexpr int64_t kAhead = 4096, kLine = 64;
template <class T>
PYDL_INLINE void fetch_ahead(const MaxPool2dParams& p, const T* window) {
  for (int64_t r = max_of(p.kernel_height - p.stride_height, 0); r < p.kernel_height; ++r)
    for (int64_t s = 0; s < min_of(p.stride_width, p.kernel_width); ++s) {
      const char* pixel = reinterpret_cast<const char*>(window + r * p.from_stride[2] + s * p.from_stride[3]);
      for (int64_t byte = 0; byte < p.channels * static_cast<int64_t>(sizeof(T)); byte += kLine)
        prefetch(pixel + kAhead + byte);
    }
}

// Output rows [begin, end), counted over all images, of a channels_last output; the input's channels are
// dense.
template <bool kPlaces, class T>
void channels(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const Axis y = vertical(p), x = horizontal(p);
  const bool fetches =
      y.dilation == 1 && x.dilation == 1 && p.channels * static_cast<int64_t>(sizeof(T)) >= kLine;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t oy = row % y.out;
    const T* image = static_cast<const T*>(p.from) + row / y.out * p.from_stride[0];
    const Range rs = y.taps(oy);
    for (int64_t ox = 0; ox < x.out; ++ox) {
      const int64_t at = (row * x.out + ox) * p.channels;
      T* output = static_cast<T*>(p.to) + at;
      const Range ss = x.taps(ox);
      const bool some = rs.begin < rs.end && ss.begin < ss.end;
      const T* window = image + y.start(oy) * p.from_stride[2] + x.start(ox) * p.from_stride[3];
      const int64_t down = y.dilation * p.from_stride[2], right = x.dilation * p.from_stride[3];
      if (fetches) fetch_ahead(p, window);
      int64_t c = 0;
      if constexpr (kGroups<T> > 1) {
        constexpr int kCount = kGroups<T>;
        for (; some && c + kCount * all <= p.channels; c += kCount * all) {
          vec<A> m[kCount];
          mask<A> k[kCount];
          for (int i = 0; i < kCount; ++i) {
            m[i] = broadcast(-static_cast<A>(__builtin_inf()));
            k[i] = splat_integer<A>(rs.begin * x.kernel + ss.begin);
          }
          for (int64_t r = rs.begin; r < rs.end; ++r)
            for (int64_t s = ss.begin; s < ss.end; ++s) {
              const T* q = window + r * down + s * right + c;
              const mask<A> tap = splat_integer<A>(r * x.kernel + s);
#pragma GCC unroll 4
              for (int i = 0; i < kCount; ++i) take_greater<A>(m[i], k[i], load(q + i * all), tap);
            }
#pragma GCC unroll 4
          for (int i = 0; i < kCount; ++i) {
            store(output + c + i * all, m[i]);
            if (kPlaces) put_places(p, at + c + i * all, k[i], all);
          }
        }
      }
      for (; c < p.channels; c += all) {
        const int64_t n = p.channels - c;
        vec<A> m = broadcast(-static_cast<A>(__builtin_inf()));
        mask<A> k = splat_integer<A>(rs.begin * x.kernel + ss.begin);
        const auto take = [&](auto load_pixel) PYDL_INLINE_LAMBDA {
          for (int64_t r = rs.begin; r < rs.end; ++r)
            for (int64_t s = ss.begin; s < ss.end; ++s)
              take_greater<A>(m, k, load_pixel(window + r * down + s * right + c),
                              splat_integer<A>(r * x.kernel + s));
        };
        if (n >= all) {
          if (some) take([](const T* q) PYDL_INLINE_LAMBDA { return load(q); });
          store(output + c, m);
        } else {
          if (some) take([&](const T* q) PYDL_INLINE_LAMBDA { return load_n(q, n); });
          store_n(output + c, m, n);
        }
        if (kPlaces) put_places(p, at + c, k, n);
      }
    }
  }
}

// The same for windows of 2x2 that all lie in the image, of whole vectors of channels: no window is looked for.
inline bool has_small_windows(const MaxPool2dParams& p, int64_t vector) {
  return p.kernel_height == 2 && p.kernel_width == 2 && p.dilation_height == 1 && p.dilation_width == 1 &&
         p.pad_top == 0 && p.pad_left == 0 && p.channels % vector == 0 &&
         (p.out_height - 1) * p.stride_height + 2 <= p.in_height &&
         (p.out_width - 1) * p.stride_width + 2 <= p.in_width;
}
template <bool kPlaces, class T>
void channels_of_small_windows(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const int64_t down = p.from_stride[2], right = p.from_stride[3];
  for (int64_t row = begin; row < end; ++row) {
    const T* window = static_cast<const T*>(p.from) + row / p.out_height * p.from_stride[0] +
                      row % p.out_height * p.stride_height * down;
    int64_t at = row * p.out_width * p.channels;
    for (int64_t ox = 0; ox < p.out_width; ++ox, window += p.stride_width * right)
      for (int64_t c = 0; c < p.channels; c += all, at += all) {
        const T* q = window + c;
        vec<A> m = load(q);
        mask<A> k{};
        take_greater<A>(m, k, load(q + right), splat_integer<A>(1));
        take_greater<A>(m, k, load(q + down), splat_integer<A>(2));
        take_greater<A>(m, k, load(q + down + right), splat_integer<A>(3));
        store(static_cast<T*>(p.to) + at, m);
        if (kPlaces) put_places(p, at, k, all);
      }
  }
}

// The same, whatever the strides: pixel by pixel.
template <class T>
void strided(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const Axis y = vertical(p), x = horizontal(p);
  const int64_t* stride = p.from_stride;
  T* output = static_cast<T*>(p.to);
  each_written(p, y.out, x.out, begin, end,
               [&](int64_t n, int64_t c, int64_t oy, int64_t ox, int64_t offset) PYDL_INLINE_LAMBDA {
                 const T* image = static_cast<const T*>(p.from) + n * stride[0] + c * stride[1];
                 const Range rs = y.taps(oy), ss = x.taps(ox);
                 A best = -static_cast<A>(__builtin_inf());
                 int64_t place = rs.begin * x.kernel + ss.begin;
                 for (int64_t r = rs.begin; r < rs.end; ++r) {
                   const T* row =
                       image + (y.start(oy) + r * y.dilation) * stride[2] + x.start(ox) * stride[3];
                   for (int64_t s = ss.begin; s < ss.end; ++s) {
                     const A value = load_one(row + s * x.dilation * stride[3]);
                     if (value > best || value != value) {
                       best = value;
                       place = r * x.kernel + s;
                     }
                   }
                 }
                 store_one(output + offset, best);
                 if (p.places != nullptr) put_place(p, offset, place);
               });
}

template <class T>
void forward(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  if constexpr (kTrains<T>)
    if (p.channels_last && p.from_stride[1] == 1 && has_small_windows(p, lanes<acc_t<T>>))
      return p.places ? channels_of_small_windows<true, T>(p, begin, end)
                      : channels_of_small_windows<false, T>(p, begin, end);
  if (p.channels_last && p.from_stride[1] == 1)
    return p.places ? channels<true, T>(p, begin, end) : channels<false, T>(p, begin, end);
  if constexpr (kTrains<T>)
    if (!p.channels_last && p.from_stride[3] == 1 && are_tiles(p)) return max_pool2d_tiles<T>(p, begin, end);
  if (!p.channels_last && p.from_stride[3] == 1)
    return p.stride_width <= 2 && p.kernel_height > 1 ? max_pool2d_rows<T>(p, begin, end)
                                                      : max_pool2d_direct<T>(p, begin, end);
  strided<T>(p, begin, end);
}

// T: an element's bits
template <class T>
void gather_places(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  const Axis y = vertical(p), x = horizontal(p);
  const int64_t* stride = p.from_stride;
  const int64_t* at = p.places_stride;
  T* output = static_cast<T*>(p.to);
  each_written(p, y.out, x.out, begin, end,
               [&](int64_t n, int64_t c, int64_t oy, int64_t ox, int64_t offset) PYDL_INLINE_LAMBDA {
                 const int64_t place = place_at(p, n * at[0] + c * at[1] + oy * at[2] + ox * at[3]);
                 const int64_t i = y.start(oy) + place / x.kernel * y.dilation;
                 const int64_t j = x.start(ox) + place % x.kernel * x.dilation;
                 const bool inside = i >= 0 && i < y.in && j >= 0 && j < x.in;
                 if (inside)
                   output[offset] = static_cast<const T*>(
                       p.from)[n * stride[0] + c * stride[1] + i * stride[2] + j * stride[3]];
                 else
                   memset(output + offset, 0, sizeof(T));
               });
}

}  // namespace

void max_pool2d(const MaxPool2dParams& p, const Parallel& parallel) {
  if (max_pool2d_planes(p, parallel)) return;
  const int64_t rows = rows_written(p, p.out_height);
  const int64_t pixels = p.in_width * p.stride_height * (p.channels_last ? p.channels : 1);
  dispatch_rows(p.dtype, [&](auto type) {
    using T = decltype(type);
    parallel(rows, ceil_div(kPoolGrain, max_of(pixels, 1)),
             [&](int64_t begin, int64_t end) { forward<T>(p, begin, end); });
  });
}

void max_pool2d_gather(const MaxPool2dParams& p, const Parallel& parallel) {
  const int64_t rows = rows_written(p, p.out_height);
  const int64_t elements = p.out_width * (p.channels_last ? p.channels : 1);
  parallel(rows, ceil_div(kPoolGrain, max_of(elements, 1)), [&](int64_t begin, int64_t end) {
    switch (p.dtype) {
      case DType::f64:
        return gather_places<uint64_t>(p, begin, end);
      case DType::f32:
        return gather_places<uint32_t>(p, begin, end);
      case DType::bf16:
      case DType::f16:
        return gather_places<uint16_t>(p, begin, end);
    }
  });
}

}  // namespace pydl::cpu::PYDL_ISA
