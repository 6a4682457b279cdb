// Maximum pooling on the CPU: the forward, and the gather at its places. See kernels/max_pool2d.h for the
// formula.
//
// In rows of pixels lanes are outputs of a row. Each input row is pooled along itself first, once, and kept
// in a ring in the first cache; an output row is the maximum of some of them. Both steps take the first of
// equals in the order of taps, so that their composition does. In channels_last lanes are channels, and the
// window's pixels are vectors as they lie. Nothing else is stored; what no vector fits (rows that are no rows
// in memory, strides beyond 2) goes pixel by pixel.
#include "kernels/max_pool2d.h"

#include "kernels/cpu/pool2d.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kChunk = 128;  // outputs of a row at once
constexpr int64_t kRing = 8;     // input rows kept

// Input rows, each pooled along itself for the outputs [first, first + n) of every output row.
template <class A>
struct Ring {
  alignas(64) A best[kRing][kChunk];
  alignas(64) decltype(mask<A>{}[0] + 0) tap[kRing][kChunk];
  int64_t row[kRing];  // which input row stands here

  PYDL_INLINE void clear() {
    for (int64_t i = 0; i < kRing; ++i) row[i] = -1;
  }
};

template <class I, class M>
PYDL_INLINE M load_mask(const I* p) {
  M v;
  memcpy(&v, p, sizeof v);
  return v;
}

// The first tap of each window that lies in the image, for the windows that begin at `at` and kStep apart.
template <int kStep, class A>
PYDL_INLINE mask<A> first_taps(const Axis& x, int64_t at) {
  mask<A> k{};
  if (at >= 0) return k;
#pragma GCC unroll 16
  for (int i = 0; i < lanes<A>; ++i) k[i] = i * kStep;
  k = -(k + splat_integer<A>(at));  // how many pixels each begins before the image
  k = (k > 0) & k;
  if (x.dilation > 1)
    for (int i = 0; i < lanes<A>; ++i) k[i] = ceil_div(k[i], x.dilation);
  return k;
}

// For the outputs of one chunk: which lanes of each tap's vectors lie in the image.
template <int kStep, int kWidth, class A>
struct RowPlan {
  Lanes inside[kChunk / lanes<A>][kWidth][kStep];

  PYDL_INLINE RowPlan(const Axis& x, int64_t first, int64_t n) {
    constexpr int64_t all = lanes<A>;
    for (int64_t j = 0; j < n; j += all)
      for (int s = 0; s < kWidth; ++s)
        for (int half = 0; half < kStep; ++half) {
          const int64_t at = x.start(first + j) + s + half * all;
          inside[j / all][s][half] = lanes_between(-at, x.in - at);
        }
  }
};
template <int kStep, class A>
struct RowPlan<kStep, 0, A> {
  PYDL_INLINE RowPlan(const Axis&, int64_t, int64_t) {}
};

template <int kStep, class T>
PYDL_INLINE vec<acc_t<T>> load_planned(const T* p, const Lanes* inside, acc_t<T> fill) {
  if constexpr (kStep == 1)
    return load_lanes(p, inside[0], fill);
  else
    return even_lanes(load_lanes(p, inside[0], fill), load_lanes(p + lanes<acc_t<T>>, inside[1], fill));
}

// kWidth: the kernel's, without dilation, or 0 where only x says it.
template <bool kPlaces, int kStep, int kWidth, class T, class A>
PYDL_INLINE void pool_row(const Axis& x, const RowPlan<kStep, kWidth, A>& plan, const T* row, int64_t first,
                          int64_t n, A* best, void* tap) {
  constexpr int64_t all = lanes<A>;
  const A lowest = -__builtin_inf();
  for (int64_t j = 0; j < n; j += all) {
    const int64_t at = x.start(first + j);
    vec<A> m;
    mask<A> k{};
    if (kPlaces) k = first_taps<kStep, A>(x, at);
    if constexpr (kWidth > 0) {
      const auto& inside = plan.inside[j / all];
      m = load_planned<kStep>(row + at, inside[0], lowest);
#pragma GCC unroll 4
      for (int s = 1; s < kWidth; ++s)
        take_greater<A>(m, k, load_planned<kStep>(row + at + s, inside[s], lowest), splat_integer<A>(s));
    } else {
      m = load_row<kStep>(row, at, x.in, lowest);
      for (int64_t s = 1; s < x.kernel; ++s)
        take_greater<A>(m, k, load_row<kStep>(row, at + s * x.dilation, x.in, lowest), splat_integer<A>(s));
    }
    store(best + j, m);
    if (kPlaces) memcpy(static_cast<char*>(tap) + j * sizeof(A), &k, sizeof k);
  }
}

// The maximum of `rows` pooled rows, the first of them at tap row r, for outputs [first, first + n).
template <bool kPlaces, class T, class P, class A>
PYDL_INLINE void pool_column(const Ring<A>& ring, const int64_t* slot, int64_t rows, int64_t r,
                             int64_t kernel_width, int64_t n, bool goes_on, T* output, P* places, A* carried,
                             void* carried_place, bool last) {
  constexpr int64_t all = lanes<A>;
  for (int64_t j = 0; j < n; j += all) {
    vec<A> m;
    mask<A> k{};
    const auto value = [&](int64_t i) PYDL_INLINE_LAMBDA { return load(ring.best[slot[i]] + j); };
    const auto place = [&](int64_t i) PYDL_INLINE_LAMBDA {
      if (!kPlaces) return mask<A>{};
      return load_mask<decltype(ring.tap[0][0] + 0), mask<A>>(ring.tap[slot[i]] + j) +
             splat_integer<A>((r + i) * kernel_width);
    };
    int64_t i = 0;
    if (goes_on) {
      m = load(carried + j);
      memcpy(&k, static_cast<char*>(carried_place) + j * sizeof(A), sizeof k);
    } else {
      m = value(0);
      k = place(0);
      i = 1;
    }
#pragma GCC unroll 4
    for (; i < rows; ++i) take_greater<A>(m, k, value(i), place(i));
    if (!last) {
      store(carried + j, m);
      memcpy(static_cast<char*>(carried_place) + j * sizeof(A), &k, sizeof k);
    } else {
      j + all <= n ? store(output + j, m) : store_n(output + j, m, n - j);
      if (kPlaces) store_integers(places + j, k, n - j);
    }
  }
}

// Output rows [begin, end), counted over all planes, of an NCHW output; the input's rows are dense.
template <bool kPlaces, int kStep, int kWidth, class T, class P>
void rows(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const Axis y = vertical(p), x = horizontal(p);
  Ring<A> ring;
  alignas(64) A carried[kChunk];
  alignas(64) char carried_place[kChunk * sizeof(A)];
  for (int64_t first = 0; first < x.out; first += kChunk) {
    const int64_t n = min_of(kChunk, x.out - first);
    const RowPlan<kStep, kWidth, A> plan(x, first, n);
    each_plane(y.out, begin, end, [&](int64_t plane, int64_t from, int64_t to) PYDL_INLINE_LAMBDA {
      const T* image = static_cast<const T*>(p.from) + plane / p.channels * p.from_stride[0] +
                       plane % p.channels * p.from_stride[1];
      ring.clear();
      for (int64_t oy = from; oy < to; ++oy) {
        const int64_t at = (plane * y.out + oy) * x.out + first;
        T* output = static_cast<T*>(p.to) + at;
        P* places = static_cast<P*>(p.places) + at;
        const Range taps = y.taps(oy);
        if (taps.begin >= taps.end) {  // all of the window lies in the padding
          for (int64_t j = 0; j < n; ++j) {
            store_one(output + j, -static_cast<A>(__builtin_inf()));
            if (kPlaces) places[j] = static_cast<P>(taps.begin * x.kernel + x.taps(first + j).begin);
          }
          continue;
        }
        for (int64_t r = taps.begin; r < taps.end; r += kRing) {  // taller kernels in parts
          const int64_t count = min_of(kRing, taps.end - r);
          int64_t slot[kRing];
          for (int64_t i = 0; i < count; ++i) {
            const int64_t in = y.start(oy) + (r + i) * y.dilation;
            slot[i] = (y.dilation == 1 ? in : in / y.dilation) % kRing;
            if (ring.row[slot[i]] == in) continue;
            ring.row[slot[i]] = in;
            pool_row<kPlaces, kStep, kWidth>(x, plan, image + in * p.from_stride[2], first, n,
                                             ring.best[slot[i]], ring.tap[slot[i]]);
          }
          pool_column<kPlaces>(ring, slot, count, r, x.kernel, n, r > taps.begin, output, places, carried,
                               carried_place, r + count == taps.end);
        }
      }
    });
  }
}

// Output rows [begin, end), counted over all images, of a channels_last output; the input's channels are
// dense.
template <bool kPlaces, class T, class P>
void channels(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const Axis y = vertical(p), x = horizontal(p);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t oy = row % y.out;
    const T* image = static_cast<const T*>(p.from) + row / y.out * p.from_stride[0];
    const Range rs = y.taps(oy);
    for (int64_t ox = 0; ox < x.out; ++ox) {
      const int64_t at = (row * x.out + ox) * p.channels;
      T* output = static_cast<T*>(p.to) + at;
      P* places = static_cast<P*>(p.places) + at;
      const Range ss = x.taps(ox);
      const bool some = rs.begin < rs.end && ss.begin < ss.end;
      const T* window = image + y.start(oy) * p.from_stride[2] + x.start(ox) * p.from_stride[3];
      const int64_t down = y.dilation * p.from_stride[2], right = x.dilation * p.from_stride[3];
      for (int64_t c = 0; c < p.channels; c += all) {
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
        if (kPlaces) store_integers(places + c, k, n);
      }
    }
  }
}

// The same, whatever the strides: pixel by pixel.
template <class T, class P>
void strided(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const Axis y = vertical(p), x = horizontal(p);
  const int64_t* stride = p.from_stride;
  T* output = static_cast<T*>(p.to);
  P* places = static_cast<P*>(p.places);
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
                 if (places != nullptr) places[offset] = static_cast<P>(place);
               });
}

template <bool kPlaces, int kStep, class T, class P>
void rows_of_width(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  if (sizeof(P) == 1 && p.kernel_width == 2 && p.dilation_width == 1)
    return rows<kPlaces, kStep, 2, T, P>(p, begin, end);
  if (sizeof(P) == 1 && p.kernel_width == 3 && p.dilation_width == 1)
    return rows<kPlaces, kStep, 3, T, P>(p, begin, end);
  rows<kPlaces, kStep, 0, T, P>(p, begin, end);
}

template <bool kPlaces, class T, class P>
void forward(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  if (p.channels_last && p.from_stride[1] == 1) return channels<kPlaces, T, P>(p, begin, end);
  if (!p.channels_last && p.from_stride[3] == 1 && p.stride_width == 1)
    return rows_of_width<kPlaces, 1, T, P>(p, begin, end);
  if (!p.channels_last && p.from_stride[3] == 1 && p.stride_width == 2)
    return rows_of_width<kPlaces, 2, T, P>(p, begin, end);
  strided<T, P>(p, begin, end);
}

template <class T, class P>
void gather_places(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  const Axis y = vertical(p), x = horizontal(p);
  const int64_t* stride = p.from_stride;
  const int64_t* at = p.places_stride;
  T* output = static_cast<T*>(p.to);
  each_written(p, y.out, x.out, begin, end,
               [&](int64_t n, int64_t c, int64_t oy, int64_t ox, int64_t offset) PYDL_INLINE_LAMBDA {
                 const int64_t place =
                     static_cast<const P*>(p.places)[n * at[0] + c * at[1] + oy * at[2] + ox * at[3]];
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
  const int64_t rows = rows_written(p, p.out_height);
  const int64_t pixels = p.in_width * p.stride_height * (p.channels_last ? p.channels : 1);
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    parallel(rows, ceil_div(kPoolGrain, max_of(pixels, 1)), [&](int64_t begin, int64_t end) {
      if (p.places == nullptr)
        forward<false, T, uint8_t>(p, begin, end);
      else if (p.byte_places)
        forward<true, T, uint8_t>(p, begin, end);
      else
        forward<true, T, int32_t>(p, begin, end);
    });
  });
}

void max_pool2d_gather(const MaxPool2dParams& p, const Parallel& parallel) {
  const int64_t rows = rows_written(p, p.out_height);
  const int64_t elements = p.out_width * (p.channels_last ? p.channels : 1);
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    parallel(rows, ceil_div(kPoolGrain, max_of(elements, 1)), [&](int64_t begin, int64_t end) {
      p.byte_places ? gather_places<T, uint8_t>(p, begin, end) : gather_places<T, int32_t>(p, begin, end);
    });
  });
}

}  // namespace pydl::cpu::PYDL_ISA
