// Maximum pooling over rows of pixels that are in few windows: of one row each, or far apart. Lanes are outputs of a
// row, whose taps are taken one after another; where the plane is one window, lanes are its pixels as they lie.
#include "kernels/cpu/pool2d/max_pool2d.h"
#include "kernels/cpu/rows/along.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

// Lane i: element i * stride at p.
template <class T>
PYDL_INLINE vec<acc_t<T>> load_apart(const T* p, int64_t stride) {
  constexpr int64_t all = lanes<acc_t<T>>;
  if constexpr (sizeof(T) == 2) {
    T some[all];
#pragma GCC unroll 16
    for (int i = 0; i < all; ++i) some[i] = p[i * stride];
    return load(some);
  } else {
    vec<T> v;
#pragma GCC unroll 16
    for (int i = 0; i < all; ++i) v[i] = p[i * stride];
    return v;
  }
}
// Lane i: element at + i * stride of a row, `fill` outside of it.
template <class T>
PYDL_INLINE vec<acc_t<T>> load_edge(const T* row, int64_t at, int64_t stride, int64_t width, acc_t<T> fill) {
  if (stride == 1) return load_row<1>(row, at, width, fill);
  if (stride == 2) return load_row<2>(row, at, width, fill);
  vec<acc_t<T>> v;
  for (int i = 0; i < lanes<acc_t<T>>; ++i, at += stride)
    v[i] = at >= 0 && at < width ? load_one(row + at) : fill;
  return v;
}

template <bool kPlaces, class T>
void rows(const MaxPool2dParams& params, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  constexpr A lowest = -__builtin_inf();
  const MaxPool2dParams p =
      params;  // a copy: a place stored as a byte may be anything's byte to the compiler, but not its
  const Axis y = vertical(p), x = horizontal(p);
  // pixels that a vector of windows covers, and what even lanes read beside them
  const int64_t reach = (x.kernel - 1) * x.dilation + (x.stride == 2 ? 2 * all : (all - 1) * x.stride + 1);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t plane = row / y.out, oy = row - plane * y.out;
    const Range rs = y.taps(oy);
    const T* window = plane_read<T>(p, plane) + y.start(oy) * p.from_stride[2];
    for (int64_t ox = 0; ox < x.out; ox += all) {
      const int64_t at = x.start(ox), to = row * x.out + ox, n = x.out - ox;
      vec<A> m = broadcast(lowest);
      mask<A> k = splat_integer<A>(rs.begin * x.kernel);
      if (kPlaces && at < 0)
        for (int i = 0; i < min_of(all, n); ++i) k[i] += x.taps(ox + i).begin;
      const auto take = [&](auto load_tap) PYDL_INLINE_LAMBDA {
        for (int64_t r = rs.begin; r < rs.end; ++r) {
          const T* pixels = window + r * y.dilation * p.from_stride[2];
          for (int64_t s = 0; s < x.kernel; ++s)
            take_greater<A>(m, k, load_tap(pixels, at + s * x.dilation), splat_integer<A>(r * x.kernel + s));
        }
      };
      const bool inside = at >= 0 && at + reach <= x.in;
      if (inside && x.stride == 1)
        take([](const T* q, int64_t i) PYDL_INLINE_LAMBDA { return load(q + i); });
      else if (inside && x.stride == 2)
        take([](const T* q, int64_t i)
                 PYDL_INLINE_LAMBDA { return even_lanes(load(q + i), load(q + i + all)); });
      else if (inside)
        take([&](const T* q, int64_t i) PYDL_INLINE_LAMBDA { return load_apart(q + i, x.stride); });
      else
        take([&](const T* q, int64_t i)
                 PYDL_INLINE_LAMBDA { return load_edge(q, i, x.stride, x.in, lowest); });
      T* output = static_cast<T*>(p.to) + to;
      n >= all ? store(output, m) : store_n(output, m, n);
      if (kPlaces && p.places != nullptr) put_places(p, to, k, n);
    }
  }
}

// The one that take_greater() would have found, had it gone through all lanes in the order of their places.
template <class A>
PYDL_INLINE void choose(const A* values, const decltype(mask<A>{}[0] + 0)* places, A& best, int64_t& place) {
  best = values[0];
  auto at = places[0];
  for (int i = 1; i < lanes<A>; ++i) {  // without branches, which would be guessed wrong
    const A v = values[i];
    const auto here = places[i];
    const bool nan = v != v;
    const bool later = nan & ((best == best) | (here > at));
    const bool greater = (v > best) | ((v == best) & (here < at));
    const bool takes = later | greater;
    best = takes ? v : best;
    at = takes ? here : at;
  }
  place = at;
}

// Planes [begin, end), the only window of each, whose pixels lie one after another.
template <class T>
void planes(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  using Place = decltype(mask<A>{}[0] + 0);
  constexpr A lowest = -__builtin_inf();
  mask<A> lane;
#pragma GCC unroll 16
  for (int i = 0; i < lanes<A>; ++i) lane[i] = i;
  for (int64_t plane = begin; plane < end; ++plane) {
    const T* pixels = plane_read<T>(p, plane);
    vec<A> m = broadcast(lowest);
    mask<A> k{};
    along<A>(0, p.in_height * p.in_width, [&](int64_t j, auto part) PYDL_INLINE_LAMBDA {
      take_greater<A>(m, k, inside_part<A>(load_part(pixels + j, part), part, lowest),
                      lane + splat_integer<A>(j));
    });
    alignas(64) A values[lanes<A>];
    alignas(64) Place places[lanes<A>];
    store(values, m);
    memcpy(places, &k, sizeof k);
    A best;
    int64_t place;
    choose<A>(values, places, best, place);
    store_one(static_cast<T*>(p.to) + plane, best);
    if (p.places != nullptr) put_place(p, plane, place);
  }
}

}  // namespace

template <class T>
void max_pool2d_direct(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  const bool adjacent = p.in_height == 1 || p.from_stride[2] == p.in_width;
  if (is_plane(p) && adjacent && p.dilation_height == 1 && p.dilation_width == 1)
    return planes<T>(p, begin, end);
  if constexpr (kTrains<T>)  // others find places that nobody wants
    if (p.places == nullptr) return rows<false, T>(p, begin, end);
  rows<true, T>(p, begin, end);
}

template void max_pool2d_direct<float>(const MaxPool2dParams&, int64_t, int64_t);
template void max_pool2d_direct<double>(const MaxPool2dParams&, int64_t, int64_t);
#if !defined(PYDL_PLAIN)
template void max_pool2d_direct<bf16>(const MaxPool2dParams&, int64_t, int64_t);
#endif

}  // namespace pydl::cpu::PYDL_ISA
