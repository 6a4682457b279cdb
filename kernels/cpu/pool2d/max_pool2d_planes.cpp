// Maximum pooling over small planes by windows one pixel apart, one for each pixel (3x3 with padding 1, in the branches of
// GoogLeNet), and its gradient. AVX-512.
//
// A row of 3 to 15 pixels fills a part of a vector. So lanes are the pixels of a plane as they lie, over the ends of
// rows: what a tap reads lies at one distance for all of them, and which lanes it finds in the image is the same for
// all planes and worked out once.
#include "kernels/cpu/pool2d/max_pool2d.h"
#include "kernels/cpu/rows/walk.h"

namespace pydl::cpu::PYDL_ISA {
#if defined(PYDL_AVX512)
namespace {

constexpr int64_t kMostPixels = 256, kMostTaps = 25;
constexpr int64_t kAll = lanes<float>;

struct PlanePlan {
  int64_t pixels, taps;
  int64_t offset[kMostTaps];                     // from a pixel to what the tap reads
  Lanes inside[kMostPixels / kAll][kMostTaps];   // which pixels of a vector find it in the image
  Lanes windows[kMostPixels / kAll][kMostTaps];  // which have a window there of which they are the tap
  Lanes whole[kMostPixels / kAll];               // which are pixels
  mask<float> first[kMostPixels / kAll];         // the first tap in the image

  explicit PlanePlan(const MaxPool2dParams& p)
      : pixels(p.in_height * p.in_width), taps(p.kernel_height * p.kernel_width) {
    const auto is_inside = [&](int64_t i, int64_t j) {
      return i >= 0 && i < p.in_height && j >= 0 && j < p.in_width;
    };
    for (int64_t t = 0; t < taps; ++t)
      offset[t] = (t / p.kernel_width - p.pad_top) * p.in_width + t % p.kernel_width - p.pad_left;
    for (int64_t v = 0; v * kAll < pixels; ++v) {
      const int64_t n = min_of(pixels - v * kAll, kAll);
      whole[v] = lanes_between(0, n);
      first[v] = mask<float>{};
      for (int64_t t = 0; t < taps; ++t) {
        const int64_t down = t / p.kernel_width - p.pad_top, right = t % p.kernel_width - p.pad_left;
        uint32_t in = 0, at = 0;
        for (int64_t i = 0; i < n; ++i) {
          const int64_t y = (v * kAll + i) / p.in_width, x = (v * kAll + i) % p.in_width;
          in |= static_cast<uint32_t>(is_inside(y + down, x + right)) << i;
          at |= static_cast<uint32_t>(is_inside(y - down, x - right)) << i;
        }
        inside[v][t].bits = in;
        windows[v][t].bits = at;
      }
      for (int64_t i = 0; i < n; ++i) {
        const int64_t y = (v * kAll + i) / p.in_width, x = (v * kAll + i) % p.in_width;
        first[v][i] =
            static_cast<int32_t>(max_of(p.pad_top - y, 0) * p.kernel_width + max_of(p.pad_left - x, 0));
      }
    }
  }
};

template <class T>
void forward(const MaxPool2dParams& params, const PlanePlan& plan, int64_t begin, int64_t end) {
  constexpr float lowest = -__builtin_inff();
  const MaxPool2dParams p = params;  // a copy: bytes are stored below, which may alias anything
  for (int64_t plane = begin; plane < end; ++plane) {
    const T* const from = plane_read<T>(p, plane);
    const int64_t to = plane * plan.pixels;
    for (int64_t v = 0; v * kAll < plan.pixels; ++v) {
      const T* const q = from + v * kAll;
      prefetch_far_ahead(q, kFarAheadBytes / static_cast<int64_t>(sizeof(T)));
      vec<float> best = broadcast(lowest);
      mask<float> place = plan.first[v];
      for (int64_t t = 0; t < plan.taps; ++t)
        take_greater<float>(best, place, load_lanes(q + plan.offset[t], plan.inside[v][t], lowest),
                            splat_integer<float>(t));
      store_lanes(static_cast<T*>(p.to) + to + v * kAll, best, plan.whole[v]);
      if (p.places != nullptr) put_places(p, to + v * kAll, place, plan.pixels - v * kAll);
    }
  }
}

template <class T>
void backward(const MaxPool2dParams& p, const PlanePlan& plan, int64_t begin, int64_t end) {
  for (int64_t plane = begin; plane < end; ++plane) {
    const T* const grads = plane_read<T>(p, plane);
    const uint8_t* const places = static_cast<const uint8_t*>(p.places) +
                                  plane / p.channels * p.places_stride[0] +
                                  plane % p.channels * p.places_stride[1];
    T* const to = static_cast<T*>(p.to) + plane * plan.pixels;
    for (int64_t v = 0; v * kAll < plan.pixels; ++v) {
      prefetch_far_ahead(grads + v * kAll, kFarAheadBytes / static_cast<int64_t>(sizeof(T)));
      vec<float> sum{};
      for (int64_t t = plan.taps; t-- > 0;) {  // windows in order: the later the tap, the earlier the window
        const int64_t at = v * kAll - plan.offset[t];
        const Lanes windows = plan.windows[v][t];
        sum = add_where_equal<float>(sum, load_lanes(grads + at, windows, 0.0f),
                                     load_integers<float>(places + at, windows), splat_integer<float>(t));
      }
      store_lanes(to + v * kAll, sum, plan.whole[v]);
    }
  }
}

bool are_planes(const MaxPool2dParams& p, const int64_t* stride) {
  return stride[3] == 1 && (stride[2] == p.in_width || p.in_height == 1);
}

bool serves(const MaxPool2dParams& p) {
  return !p.channels_last && (p.dtype == DType::f32 || p.dtype == DType::bf16) && p.byte_places &&
         p.stride_height == 1 && p.stride_width == 1 && p.dilation_height == 1 && p.dilation_width == 1 &&
         p.out_height == p.in_height && p.out_width == p.in_width &&
         p.kernel_height * p.kernel_width <= kMostTaps && p.in_height * p.in_width <= kMostPixels &&
         p.in_width % kAll != 0 && are_planes(p, p.from_stride);
}

template <class F>
void each_plane_of(const MaxPool2dParams& p, const Parallel& parallel, const F& body) {
  const PlanePlan plan(p);
  parallel(p.batch * p.channels, ceil_div(kPoolGrain, plan.pixels),
           [&](int64_t begin, int64_t end) { body(plan, begin, end); });
}

}  // namespace

bool max_pool2d_planes(const MaxPool2dParams& p, const Parallel& parallel) {
  if (!serves(p)) return false;
  each_plane_of(p, parallel, [&](const PlanePlan& plan, int64_t begin, int64_t end) {
    p.dtype == DType::f32 ? forward<float>(p, plan, begin, end) : forward<bf16>(p, plan, begin, end);
  });
  return true;
}

bool max_pool2d_planes_backward(const MaxPool2dParams& p, const Parallel& parallel) {
  if (!serves(p) || !are_planes(p, p.places_stride)) return false;
  each_plane_of(p, parallel, [&](const PlanePlan& plan, int64_t begin, int64_t end) {
    p.dtype == DType::f32 ? backward<float>(p, plan, begin, end) : backward<bf16>(p, plan, begin, end);
  });
  return true;
}
#else  // lanes that are no range are not to be had
bool max_pool2d_planes(const MaxPool2dParams&, const Parallel&) { return false; }
bool max_pool2d_planes_backward(const MaxPool2dParams&, const Parallel&) { return false; }
#endif

}  // namespace pydl::cpu::PYDL_ISA
