// The weight gradient of convolutions of few channels, depthwise ones and a network's first ones:
//
//   grad_weight[o, i, r, s] = sum over images and pixels of grad_output[o] * image[i] moved by (r, s)
//
// Bound by memory, so a pair of channels reads both tensors once: a block brings a band of one channel's image to
// shared memory, with the rows and columns around it, or small images as a whole, several at a time; every thread
// multiplies its pixels of the gradient with all taps from there, a sum in registers for each. channels_last has a
// sector's worth of channels side by side in the band and along the lanes. Where a pair of channels has more taps
// than registers hold, several blocks take a part of them each.
//
// Blocks leave parts of the sum in scratch, which conv2d_weight_sum adds up.
#include "kernels/cuda/conv2d/conv2d.h"

namespace pydl::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kBytes = 32 << 10;             // of shared memory
constexpr int kFewTaps = 9, kManyTaps = 25;  // sums of a thread
constexpr int kLoads = 8, kPixels = 4;       // values of the image, and of the gradient, on the way
constexpr int kEnough = 8;                   // pixels of a thread, beside which joining the sums is short

// Channels of a band: those of a sector where they are neighbours.
template <class T, bool kLast>
constexpr int kChannels = kLast ? 32 / static_cast<int>(sizeof(T)) : 1;

// How the sum is cut: images into bands of images x height x width pixels of the gradient, bands among pieces.
struct Bands {
  int images;
  int height, width, rows, columns;  // of the band in the gradient, and in the image
  int64_t down, across;              // bands of an image
  int64_t bands, each, pieces;       // bands in all and in a piece
  int64_t parts;                     // of the taps
  Divisor by_columns, by_rows, by_width, by_height;
  bool fits;  // else one window is larger than shared memory
};

// Two blocks on a multiprocessor at least: ptxas, left alone or asked for three, spills some bytes.
template <class T, bool kLast, int kTaps>
__global__ void __launch_bounds__(kThreads, 2)
    conv2d_direct_weight_kernel(PYDL_CONSTANT Geometry g, PYDL_CONSTANT Bands b) {
  using A = acc_t<T>;
  constexpr int kSide = kChannels<T, kLast>, kStep = kThreads / kSide;
  PYDL_SHARED(A, shared, kBytes / static_cast<int>(sizeof(A)));
  T* const band = reinterpret_cast<T*>(shared);
  int64_t block = blockIdx.x / b.pieces;
  const int64_t piece = blockIdx.x - block * b.pieces, part = block % b.parts;
  block /= b.parts;
  const int64_t i = block % g.in_per_group;
  const int t = static_cast<int>(threadIdx.x), side = t % kSide, place = t / kSide;
  const int64_t o = block / g.in_per_group * kSide + side;
  const bool inside = o < g.p.out_channels;
  const int64_t channel = inside ? o / g.out_per_group * g.in_per_group + i : 0;
  const T* const image = static_cast<const T*>(g.p.input) + channel * g.p.input_stride[1];
  const T* const gradient = static_cast<const T*>(g.p.output) + (inside ? o : 0) * g.p.output_stride[1];

  int offset[kTaps];  // of the taps, in the band; those past the last are summed and not kept
#pragma unroll
  for (int k = 0; k < kTaps; ++k) {
    const int tap = static_cast<int>(part) * kTaps + k, width = static_cast<int>(g.p.kernel_width);
    const int r = tap / width, s = tap - r * width;
    offset[k] = tap < g.area ? (r * static_cast<int>(g.p.dilation_height) * b.columns +
                                s * static_cast<int>(g.p.dilation_width)) *
                                   kSide
                             : 0;
  }

  A sum[kTaps] = {};
  for (int64_t at = piece * b.each, end = min_of(at + b.each, b.bands); at < end; ++at) {
    const int64_t row = at / b.across, entry = row / b.down, n = entry * b.images;
    const int y0 = static_cast<int>(row - entry * b.down) * b.height,
              x0 = static_cast<int>(at - row * b.across) * b.width;
    const int top = y0 * static_cast<int>(g.p.stride_height) - static_cast<int>(g.p.pad_top),
              left = x0 * static_cast<int>(g.p.stride_width) - static_cast<int>(g.p.pad_left);
    const T* const from = image + n * g.p.input_stride[0];
    const int count = b.images * b.rows * b.columns;
    for (int first = place; first < count; first += kLoads * kStep) {
      T value[kLoads];
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        int y, x;
        const int64_t entry = split(b.by_rows, split(b.by_columns, first + j * kStep, x), y);
        y += top;
        x += left;
        value[j] = inside && first + j * kStep < count && n + entry < g.p.batch && y >= 0 && x >= 0 &&
                           y < g.p.in_height && x < g.p.in_width
                       ? from[entry * g.p.input_stride[0] + y * g.p.input_stride[2] + x * g.p.input_stride[3]]
                       : narrow<T>(A(0));
      }
#pragma unroll
      for (int j = 0; j < kLoads; ++j)
        if (first + j * kStep < count) band[(first + j * kStep) * kSide + side] = value[j];
    }
    __syncthreads();
    const T* const grad = gradient + n * g.p.output_stride[0];
    const int pixels = b.images * b.height * b.width;
    for (int first = place; first < pixels; first += kPixels * kStep) {
      A value[kPixels];
      int corner[kPixels];  // of the pixel's window in the band, -1 for no pixel
#pragma unroll
      for (int j = 0; j < kPixels; ++j) {
        int y, x;
        const int entry = split(b.by_height, split(b.by_width, first + j * kStep, x), y);
        const bool is_pixel = inside && first + j * kStep < pixels && n + entry < g.p.batch &&
                              y0 + y < g.p.out_height && x0 + x < g.p.out_width;
        value[j] = is_pixel ? widen(grad[entry * g.p.output_stride[0] + (y0 + y) * g.p.output_stride[2] +
                                         (x0 + x) * g.p.output_stride[3]])
                            : A(0);
        corner[j] = is_pixel ? ((entry * b.rows + y * static_cast<int>(g.p.stride_height)) * b.columns +
                                x * static_cast<int>(g.p.stride_width)) *
                                       kSide +
                                   side
                             : -1;
      }
#pragma unroll
      for (int j = 0; j < kPixels; ++j) {
        if (corner[j] < 0) continue;  // 0 times an infinity of the image would be nan
#pragma unroll
        for (int k = 0; k < kTaps; ++k) sum[k] += value[j] * widen(band[corner[j] + offset[k]]);
      }
    }
    __syncthreads();  // the next band overwrites this one
  }

  // over the lanes of a channel, then over the warps, through the memory of the band
  const int lane = t % kWarp, warp = t / kWarp;
#pragma unroll
  for (int k = 0; k < kTaps; ++k)
#pragma unroll
    for (int distance = kWarp / 2; distance >= kSide; distance /= 2)
      sum[k] += __shfl_xor_sync(kAllLanes, sum[k], distance);
  if (lane < kSide)
#pragma unroll
    for (int k = 0; k < kTaps; ++k) shared[(k * kWarps + warp) * kSide + lane] = sum[k];
  __syncthreads();
  const int taps = static_cast<int>(g.in_per_group * g.area);
  for (int at = t; at < kTaps * kSide; at += kThreads) {
    const int k = at / kSide, tap = static_cast<int>(part) * kTaps + k;
    const int64_t to = block / g.in_per_group * kSide + at % kSide;
    if (tap >= g.area || to >= g.p.out_channels) continue;
    A all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) all += shared[(k * kWarps + w) * kSide + at % kSide];
    static_cast<A*>(g.p.scratch)[(piece * g.p.out_channels + to) * taps + i * g.area + tap] = all;
  }
}

// Windows that no band holds (kernels dilated over thousands of pixels): a block sums one filter element.
template <class T>
__global__ void __launch_bounds__(kThreads) conv2d_far_weight_kernel(PYDL_CONSTANT Geometry g) {
  PYDL_SHARED(double, shared, kThreads / kWarp);
  const int taps = static_cast<int>(g.in_per_group * g.area), o = static_cast<int>(blockIdx.x) / taps;
  const Tap tap = tap_of(g, g.in_group, static_cast<int>(blockIdx.x) - o * taps);
  const int64_t group = o / g.out_per_group;
  const Image<T> image{static_cast<const T*>(g.p.input) +
                       (group * g.in_per_group + tap.channel) * g.p.input_stride[1]};
  const T* grad_output = static_cast<const T*>(g.p.output) + o * g.p.output_stride[1];
  const Part step{0, static_cast<int>(tap.r * g.p.dilation_height),
                  static_cast<int>(tap.s * g.p.dilation_width), true};
  double sum = 0;
  for (int64_t m = threadIdx.x; m < g.p.batch * g.out_image.by; m += kThreads)
    sum += static_cast<double>(widen(grad_output[output_offset(g, m)])) *
           static_cast<double>(image.value(g, image.pixel(g, m), step));
  sum = block_sum<kThreads>(sum, shared);
  if (threadIdx.x == 0) static_cast<acc_t<T>*>(g.p.scratch)[blockIdx.x] = static_cast<acc_t<T>>(sum);
}

bool is_last(const Params& p) {
  return is_channels_last(p.input_stride) && is_channels_last(p.output_stride);
}
// 25 sums of float64 would leave no registers for anything else.
int taps_of(const Geometry& g) {
  return g.area <= kFewTaps || g.p.dtype == DType::f64 ? kFewTaps : kManyTaps;
}

// Bands as large as shared memory allows, of even sizes; pieces enough to keep a large GPU busy to the end.
Bands bands_of(const Geometry& g) {
  const Params& p = g.p;
  const int64_t size = p.dtype == DType::f64 ? 8 : p.dtype == DType::f32 ? 4 : 2;
  const int64_t side = is_last(p) ? 32 / size : 1, most = kBytes / size / side;
  const int64_t reach_y = (p.kernel_height - 1) * p.dilation_height + 1,
                reach_x = (p.kernel_width - 1) * p.dilation_width + 1;
  Bands b{};
  const int64_t widest = (most / reach_y - reach_x) / p.stride_width + 1;
  b.fits = most / reach_y >= reach_x;
  if (!b.fits) return b;
  const auto even = [](int64_t all, int64_t at_most) { return ceil_div(all, ceil_div(all, at_most)); };
  const int64_t width = even(p.out_width, min_of(widest, p.out_width));
  const int64_t columns = (width - 1) * p.stride_width + reach_x;
  const int64_t highest = (most / columns - reach_y) / p.stride_height + 1;
  const int64_t height = even(p.out_height, min_of(highest, p.out_height));
  b.width = static_cast<int>(width);
  b.height = static_cast<int>(height);
  b.columns = static_cast<int>(columns);
  b.rows = static_cast<int>((height - 1) * p.stride_height + reach_y);
  b.across = ceil_div(p.out_width, width);
  b.down = ceil_div(p.out_height, height);
  const int64_t pixels = width * height * side;  // of a band of one image, for all threads
  b.images = 1;
  if (b.across * b.down == 1)
    b.images = static_cast<int>(min_of(most / (b.rows * b.columns), ceil_div(kThreads * kEnough, pixels)));
  b.bands = ceil_div(p.batch, b.images) * b.down * b.across;
  b.parts = ceil_div(g.area, taps_of(g));
  b.by_columns = Divisor(columns);
  b.by_rows = Divisor(b.rows);
  b.by_width = Divisor(width);
  b.by_height = Divisor(height);
  const int64_t sums = ceil_div(p.out_channels, side) * g.in_per_group * b.parts;
  const int64_t room = kScratchMost / (p.out_channels * g.in_per_group * g.area * 8);
  const int64_t wanted = max_of(min_of(ceil_div(8192, sums), min_of(b.bands, room)), 1);
  b.each = ceil_div(max_of(b.bands, 1), wanted);
  b.pieces = max_of(ceil_div(b.bands, b.each), 1);
  return b;
}

}  // namespace

// Few channels fill half a tile of a matrix product at the most. Here shared memory is read once for each product,
// there once for two, those with the empty part of a tile included.
bool conv2d_direct_weight_serves(const Params& p) {
  if (is_direct(p)) return true;
  if (p.groups != 1 || p.out_channels >= 64 || is_channels_last(p.input_stride) ||
      is_channels_last(p.output_stride) || conv2d_tensor_serves(p, Conv2dPass::backward_weight))
    return false;
  const Geometry g(p);
  const int64_t taps = g.in_per_group * g.area, tile = 64;
  return ceil_div(taps, tile) * tile * tile >= 2 * taps * p.out_channels && bands_of(g).fits;
}

int64_t conv2d_direct_weight_scratch(const Params& p) {
  const Geometry g(p);
  const Bands b = bands_of(g);
  return (b.fits ? b.pieces : 1) * p.out_channels * g.in_per_group * g.area * (p.dtype == DType::f64 ? 8 : 4);
}

int conv2d_direct_backward_weight(const Params& p, void* stream) {
  const Geometry g(p);
  const Bands b = bands_of(g);
  const bool few = taps_of(g) == kFewTaps;
  int error = 0;
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    const auto run = [&](auto last_) {
      constexpr bool last = decltype(last_)::value == 1;
      const int64_t blocks =
          ceil_div(p.out_channels, kChannels<T, last>) * g.in_per_group * b.parts * b.pieces;
      constexpr int many = sizeof(T) == 8 ? kFewTaps : kManyTaps;
      error = few ? launch(conv2d_direct_weight_kernel<T, last, kFewTaps>, blocks, kThreads, stream, g, b)
                  : launch(conv2d_direct_weight_kernel<T, last, many>, blocks, kThreads, stream, g, b);
    };
    if (!b.fits)
      error =
          launch(conv2d_far_weight_kernel<T>, p.out_channels * g.in_per_group * g.area, kThreads, stream, g);
    else
      is_last(p) ? run(Constant<1>{}) : run(Constant<0>{});
  });
  return error == 0 ? conv2d_weight_sum(p, b.fits ? b.pieces : 1, false, stream) : error;
}

}  // namespace pydl::cuda
