// Maximum pooling over rows of pixels, lanes being outputs of a row.
//
// Each input row is pooled along itself first, once, and kept in a ring in the first cache; an output row is
// the maximum of some of them. Both steps take the first of equals in the order of taps, so that their
// composition does. Nothing else is stored.
#include "kernels/cpu/pool2d/max_pool2d.h"
#include "kernels/cpu/rows/walk.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kChunk = 128;  // outputs of a row at once
constexpr int64_t kRing = 8;     // input rows kept

// Input rows, each pooled along itself for the outputs [first, first + n) of every output row.
template <class A>
struct Ring {
  using Tap = decltype(mask<A>{}[0] + 0);
  alignas(64) A best[kRing][kChunk];
  alignas(64) Tap tap[kRing][kChunk];
  int64_t row[kRing];  // which input row stands here

  void clear() {
    for (int64_t i = 0; i < kRing; ++i) row[i] = -1;
  }
};

// Lanes of integers that lie at p, and back.
template <class A>
PYDL_INLINE mask<A> load_taps(const typename Ring<A>::Tap* p) {
  mask<A> v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class A>
PYDL_INLINE void store_taps(typename Ring<A>::Tap* p, mask<A> v) {
  memcpy(p, &v, sizeof v);
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

// For the outputs of one chunk: which lanes of each tap's vectors lie in the image. For kernels of widths of
// their own (Inlined).
constexpr int kMostTaps = 3;
template <class A>
struct RowPlan {
  Lanes inside[kChunk / lanes<A>][kMostTaps][2];

  void make(const Axis& x, int64_t first, int64_t n) {
    constexpr int64_t all = lanes<A>;
    for (int64_t j = 0; j < n; j += all)
      for (int s = 0; s < x.kernel; ++s)
        for (int half = 0; half < x.stride; ++half) {
          const int64_t at = x.start(first + j) + s + half * all;
          inside[j / all][s][half] = lanes_between(-at, x.in - at);
        }
  }
};

template <int kStep, class T>
PYDL_INLINE vec<acc_t<T>> load_planned(const T* p, const Lanes* inside, acc_t<T> fill) {
  if constexpr (kStep == 1)
    return load_lanes(p, inside[0], fill);
  else
    return even_lanes(load_lanes(p, inside[0], fill), load_lanes(p + lanes<acc_t<T>>, inside[1], fill));
}

// One input row pooled along itself. kWidth: the kernel's, without dilation, or 0 where only x says it.
template <bool kPlaces, int kStep, int kWidth, class T>
PYDL_INLINE void pool_row(const Axis& x, const RowPlan<acc_t<T>>& plan, const T* row, int64_t first,
                          int64_t n, acc_t<T>* best, typename Ring<acc_t<T>>::Tap* tap) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  const A lowest = -__builtin_inf();
  for (int64_t j = 0; j < n; j += all) {
    const int64_t at = x.start(first + j);
    for (int64_t line = 0; line < kStep * all; line += 64 / static_cast<int64_t>(sizeof(T)))
      prefetch_far_ahead(row + at + line, kFarAheadBytes / static_cast<int64_t>(sizeof(T)));
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
    if (kPlaces) store_taps<A>(tap + j, k);
  }
}

// Some rows of a window: those `dilation` apart from input row `in` on, which are tap rows r and on.
struct Part {
  int64_t in, rows, r;
  bool goes_on, last;  // whether another part of the window came before, and whether none comes after
};

// Brings a part's rows into the ring; slot: where each of them stands.
template <class T, class Way>
PYDL_INLINE void pool_rows(const MaxPool2dParams& p, const Way& way, const Axis& x,
                           const RowPlan<acc_t<T>>& plan, const T* image, const Part& part, int64_t first,
                           int64_t n, Ring<acc_t<T>>& ring, int64_t* slot) {
  int64_t in = part.in;
  for (int64_t i = 0; i < part.rows; ++i, in += p.dilation_height) {
    const int64_t at = (p.dilation_height == 1 ? in : in / p.dilation_height) % kRing;
    slot[i] = at;
    if (ring.row[at] == in) continue;
    ring.row[at] = in;
    way.row(x, plan, image + in * p.from_stride[2], first, n, ring.best[at], ring.tap[at]);
  }
}

// The maxima that one part of a window leaves to the next.
template <class A>
struct Carried {
  alignas(64) A best[kChunk];
  alignas(64) typename Ring<A>::Tap tap[kChunk];
};

// The maximum of a part's rows, for the n outputs from offset `at` on.
template <bool kPlaces, class T>
PYDL_INLINE void pool_column(const MaxPool2dParams& params, const Ring<acc_t<T>>& ring, const Part part,
                             const int64_t* slot, Carried<acc_t<T>>& carried, int64_t at, int64_t n) {
  using A = acc_t<T>;
  constexpr int64_t all = lanes<A>;
  // copies: a place stored as a byte may be anything's byte to the compiler, but not these
  const MaxPool2dParams p = params;
  const A* values[kRing];
  const typename Ring<A>::Tap* taps[kRing];
  for (int64_t i = 0; i < part.rows; ++i) {
    values[i] = ring.best[slot[i]];
    taps[i] = ring.tap[slot[i]];
  }
  T* const output = static_cast<T*>(p.to) + at;
  for (int64_t j = 0; j < n; j += all) {
    vec<A> m;
    mask<A> k{};
    const auto value = [&](int64_t i) PYDL_INLINE_LAMBDA { return load(values[i] + j); };
    const auto place = [&](int64_t i) PYDL_INLINE_LAMBDA {
      if (!kPlaces) return mask<A>{};
      return load_taps<A>(taps[i] + j) + splat_integer<A>((part.r + i) * p.kernel_width);
    };
    int64_t i = 0;
    if (part.goes_on) {
      m = load(carried.best + j);
      if (kPlaces) k = load_taps<A>(carried.tap + j);
    } else {
      m = value(0);
      k = place(0);
      i = 1;
    }
    for (; i < part.rows; ++i) take_greater<A>(m, k, value(i), place(i));
    if (!part.last) {
      store(carried.best + j, m);
      if (kPlaces) store_taps<A>(carried.tap + j, k);
    } else {
      j + all <= n ? store(output + j, m) : store_n(output + j, m, n - j);
      if (kPlaces) put_places(p, at + j, k, n - j);
    }
  }
}

// Both steps, inlined: for the windows of networks, in float32 and, with places, bf16. Rows of a few
// pixels are a vector or two, which a call of its own would double.
template <bool kPlaces, int kStep, int kWidth, class T>
struct Inlined {
  using A = acc_t<T>;
  static constexpr bool planned = true;
  PYDL_INLINE void row(const Axis& x, const RowPlan<A>& plan, const T* row, int64_t first, int64_t n, A* best,
                       typename Ring<A>::Tap* tap) const {
    pool_row<kPlaces, kStep, kWidth>(x, plan, row, first, n, best, tap);
  }
  PYDL_INLINE void column(const MaxPool2dParams& p, const Ring<A>& ring, const Part& part,
                          const int64_t* slot, Carried<A>& carried, int64_t at, int64_t n) const {
    pool_column<kPlaces, T>(p, ring, part, slot, carried, at, n);
  }
};
// The same for any window, by pointers: what differs in places and steps is then a loop, not all around it.
template <class T>
struct Called {
  using A = acc_t<T>;
  static constexpr bool planned = false;
  void (*row)(const Axis&, const RowPlan<A>&, const T* row, int64_t first, int64_t n, A* best,
              typename Ring<A>::Tap* tap);
  void (*column)(const MaxPool2dParams&, const Ring<A>&, const Part&, const int64_t* slot, Carried<A>&,
                 int64_t at, int64_t n);
};
template <bool kPlaces, int kStep, class T>
Called<T> called() {
  using A = acc_t<T>;
  return {[](const Axis& x, const RowPlan<A>& plan, const T* row, int64_t first, int64_t n, A* best,
             typename Ring<A>::Tap* tap) { pool_row<kPlaces, kStep, 0>(x, plan, row, first, n, best, tap); },
          [](const MaxPool2dParams& p, const Ring<A>& ring, const Part& part, const int64_t* slot,
             Carried<A>& carried, int64_t at,
             int64_t n) { pool_column<kPlaces, T>(p, ring, part, slot, carried, at, n); }};
}

template <class T, class Way>
void rows(const MaxPool2dParams& p, const Way& way, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const Axis y = vertical(p), x = horizontal(p);
  Ring<A> ring;
  Carried<A> carried;
  RowPlan<A> plan;
  for (int64_t first = 0; first < x.out; first += kChunk) {
    const int64_t n = min_of(kChunk, x.out - first);
    if constexpr (Way::planned) plan.make(x, first, n);
    each_plane(y.out, begin, end, [&](int64_t plane, int64_t from, int64_t to) PYDL_INLINE_LAMBDA {
      const T* image = plane_read<T>(p, plane);
      ring.clear();
      for (int64_t oy = from; oy < to; ++oy) {
        const int64_t at = (plane * y.out + oy) * x.out + first;
        const Range taps = y.taps(oy);
        if (taps.begin >= taps.end) {  // all of the window lies in the padding
          for (int64_t j = 0; j < n; ++j) {
            store_one(static_cast<T*>(p.to) + at + j, -static_cast<A>(__builtin_inf()));
            if (p.places != nullptr) put_place(p, at + j, taps.begin * x.kernel + x.taps(first + j).begin);
          }
          continue;
        }
        for (int64_t r = taps.begin; r < taps.end; r += kRing) {  // taller kernels in parts
          const Part part{y.start(oy) + r * y.dilation, min_of(kRing, taps.end - r), r, r > taps.begin,
                          r + kRing >= taps.end};
          int64_t slot[kRing];
          pool_rows<T>(p, way, x, plan, image, part, first, n, ring, slot);
          way.column(p, ring, part, slot, carried, at, n);
        }
      }
    });
  }
}

template <bool kPlaces, class T>
void rows_of_window(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  const bool two = p.stride_width == 2;
  if constexpr (!kPlain && (__is_same(T, float) || (kPlaces && __is_same(T, bf16)))) {
    const int64_t width = p.dilation_width == 1 ? p.kernel_width : 0;
    if (width == 2 && two) return rows<T>(p, Inlined<kPlaces, 2, 2, T>{}, begin, end);
    if (width == 3 && two) return rows<T>(p, Inlined<kPlaces, 2, 3, T>{}, begin, end);
    if (width == 3) return rows<T>(p, Inlined<kPlaces, 1, 3, T>{}, begin, end);
  }
  rows<T>(p, two ? called<kPlaces, 2, T>() : called<kPlaces, 1, T>(), begin, end);
}

}  // namespace

template <class T>
void max_pool2d_rows(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  p.places != nullptr ? rows_of_window<true, T>(p, begin, end) : rows_of_window<false, T>(p, begin, end);
}

template void max_pool2d_rows<float>(const MaxPool2dParams&, int64_t, int64_t);
template void max_pool2d_rows<double>(const MaxPool2dParams&, int64_t, int64_t);
#if !defined(PYDL_PLAIN)
template void max_pool2d_rows<bf16>(const MaxPool2dParams&, int64_t, int64_t);
#endif

}  // namespace pydl::cpu::PYDL_ISA
