// conv2d of NCHW tensors on plain cores, forward and input gradient, from planes in shared memory:
//
//   result[n, c, y, x] = sum over d, r, s of source[n, d, y stride + r dilation - pad, ...] weight[c, d, r, s]
//
// Of the forward the source is the input; of the input gradient of a convolution of stride 1 it is the output's
// gradient, with the kernel turned around and the padding that belongs to it.
//
// As a matrix product (conv2d.cu) each value would be fetched once for every tap, and a tile of 64 columns would be
// empty but for the six channels of a LeNet. Here a block brings a band of the source to shared memory once, some
// channels at a time, with their weights; a thread makes four pixels of 8 or 16 channels (4 in float64): for each tap
// it reads four values, neighbours of its lane's, and the tap's weights, which all lanes share. Where pixels are too
// few to fill a GPU, groups of threads take every second or fourth channel of the source each, and their sums are
// joined in order.
#include "kernels/cuda/conv2d/conv2d.h"

namespace pydl::cuda {
namespace {

constexpr int kThreads = 256, kPixels = 4, kMostGroups = 4;
constexpr int kBytes = 32 << 10;        // of shared memory: weights, then the band
constexpr int64_t kTileWidth = 64;      // at most: the wider a tile, the more of its band is border
constexpr int64_t kEnoughBlocks = 256;  // that a large GPU is full

// The convolution, and how it is cut: tiles of images x height x width pixels, channels of the source in slices.
struct Planes {
  Params p;  // bias and activation
  const void *source, *weight;
  void* result;
  int64_t batch, source_stride[4], result_stride[4];
  int64_t column_stride, depth_stride, row_stride, tap_stride;  // of the weight
  int depth, columns;                                           // channels of the source and of the result
  int source_height, source_width, result_height, result_width;
  int kernel_height, kernel_width, area, stride_height, stride_width, dilation_height, dilation_width;
  int pad_top, pad_left;
  int images, height, width, rows, pitch;  // of a tile, and of its band
  int slice, groups;                       // channels of the source at a time, and threads that share a pixel
  unsigned column_blocks, across, down;
  Divisor by_pitch, by_rows, by_images, by_width, by_height, by_area, by_kernel_width, by_terms;
};

// Two blocks on a multiprocessor at least.
template <class T, int kColumns>
__global__ void __launch_bounds__(kThreads, 2) conv2d_planes_kernel(PYDL_CONSTANT Planes k) {
  using A = acc_t<T>;
  // values on the way, as many as the registers of the sums leave room for
  constexpr int kLoads = kColumns * sizeof(A) > 32 ? 4 : 8;
  PYDL_SHARED(A, shared, kBytes / static_cast<int>(sizeof(A)));
  unsigned block = blockIdx.x;
  const int column0 = static_cast<int>(block % k.column_blocks) * kColumns;
  block /= k.column_blocks;
  const int x0 = static_cast<int>(block % k.across) * k.width;
  block /= k.across;
  const int y0 = static_cast<int>(block % k.down) * k.height;
  const int64_t n0 = static_cast<int64_t>(block / k.down) * k.images;
  const int t = static_cast<int>(threadIdx.x), lanes = kThreads / k.groups, group = t / lanes,
            lane = t % lanes;
  A* const weights = shared;                             // [slice][area][kColumns]
  A* const band = shared + k.slice * k.area * kColumns;  // [slice][images][rows][pitch]
  const int plane = k.images * k.rows * k.pitch;

  int corner[kPixels];  // of each pixel's window in the band
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    int x, y;
    const int image = split(k.by_height, split(k.by_width, lane + i * lanes, x), y);
    corner[i] = image < k.images ? (image * k.rows + y * k.stride_height) * k.pitch + x * k.stride_width : 0;
  }
  A sum[kPixels][kColumns] = {};
  for (int first = 0; first < k.depth; first += k.slice) {
    const int channels = min_of(k.slice, k.depth - first), cells = channels * plane;
    for (int at = t; at < cells; at += kLoads * kThreads) {
      T value[kLoads];
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        int x, y, image;
        const int channel =
            split(k.by_images, split(k.by_rows, split(k.by_pitch, at + j * kThreads, x), y), image);
        x += x0 * k.stride_width - k.pad_left;
        y += y0 * k.stride_height - k.pad_top;
        const bool inside = at + j * kThreads < cells && n0 + image < k.batch && x >= 0 && y >= 0 &&
                            x < k.source_width && y < k.source_height;
        value[j] =
            inside
                ? static_cast<const T*>(
                      k.source)[(n0 + image) * k.source_stride[0] + (first + channel) * k.source_stride[1] +
                                y * k.source_stride[2] + x * k.source_stride[3]]
                : narrow<T>(A(0));
      }
#pragma unroll
      for (int j = 0; j < kLoads; ++j)
        if (at + j * kThreads < cells) band[at + j * kThreads] = widen(value[j]);
    }
    const int terms = k.slice * k.area;
    for (int at = t; at < terms * kColumns; at += kLoads * kThreads) {
      T value[kLoads];
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        int term, tap, s;
        const int column = split(k.by_terms, at + j * kThreads, term), channel = split(k.by_area, term, tap),
                  r = split(k.by_kernel_width, tap, s);
        value[j] =
            column < kColumns && column0 + column < k.columns && channel < channels
                ? static_cast<const T*>(
                      k.weight)[(column0 + column) * k.column_stride + (first + channel) * k.depth_stride +
                                r * k.row_stride + s * k.tap_stride]
                : narrow<T>(A(0));
      }
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        int term;
        const int column = split(k.by_terms, at + j * kThreads, term);
        if (column < kColumns) weights[term * kColumns + column] = widen(value[j]);
      }
    }
    __syncthreads();
    for (int channel = group; channel < channels; channel += k.groups) {
      const A* weight = weights + channel * k.area * kColumns;
      for (int r = 0; r < k.kernel_height; ++r) {
        const A* from = band + channel * plane + r * k.dilation_height * k.pitch;
        for (int s = 0; s < k.kernel_width; ++s) {
          A b[kColumns];
#pragma unroll
          for (int c = 0; c < kColumns; c += kPack<A>) {
            const Pack<A> pack = load_pack_cached(weight + c);
#pragma unroll
            for (int h = 0; h < kPack<A>; ++h) b[c + h] = pack.value[h];
          }
#pragma unroll
          for (int i = 0; i < kPixels; ++i) {
            const A a = from[corner[i]];
#pragma unroll
            for (int c = 0; c < kColumns; ++c) sum[i][c] += a * b[c];
          }
          from += k.dilation_width;
          weight += kColumns;
        }
      }
    }
    __syncthreads();  // the next slice overwrites this one
  }

#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    if (k.groups > 1) {
      if (group > 0)
#pragma unroll
        for (int c = 0; c < kColumns; ++c) shared[c * kThreads + t] = sum[i][c];
      __syncthreads();
      if (group == 0)
        for (int other = 1; other < k.groups; ++other)
#pragma unroll
          for (int c = 0; c < kColumns; ++c) sum[i][c] += shared[c * kThreads + other * lanes + t];
      __syncthreads();
    }
    int x, y;
    const int image = split(k.by_height, split(k.by_width, lane + i * lanes, x), y);
    if (group > 0 || image >= k.images || n0 + image >= k.batch || y0 + y >= k.result_height ||
        x0 + x >= k.result_width)
      continue;
    T* const to = static_cast<T*>(k.result) + (n0 + image) * k.result_stride[0] +
                  (y0 + y) * k.result_stride[2] + (x0 + x) * k.result_stride[3];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (column0 + c >= k.columns) continue;
      if (k.p.bias) sum[i][c] += widen(static_cast<const T*>(k.p.bias)[column0 + c]);
      to[(column0 + c) * k.result_stride[1]] = activated<T>(k.p, sum[i][c]);
    }
  }
}

// Channels of the result that a thread makes: their sums are in registers.
constexpr int kFew = 8, kMany = 16, kDoubles = 4;
int columns_of(const Params& p, int64_t columns) {
  return p.dtype == DType::f64 ? kDoubles : columns <= kFew ? kFew : kMany;
}

// Cuts `all` into parts of even sizes, of at most `at_most`; returns the size.
int64_t even(int64_t all, int64_t at_most) { return ceil_div(all, ceil_div(all, at_most)); }

// A tile of kPixels * kThreads / groups pixels at most; false where its band does not fit.
bool cut(Planes& k, int64_t groups) {
  const int64_t pixels = kPixels * kThreads / groups, columns = columns_of(k.p, k.columns);
  const int64_t width = even(k.result_width, kTileWidth), height = even(k.result_height, pixels / width);
  const bool whole = width == k.result_width && height == k.result_height;
  const int64_t images = whole ? even(k.batch, max_of(pixels / (width * height), 1)) : 1;
  const int64_t rows = (height - 1) * k.stride_height + (k.kernel_height - 1) * k.dilation_height + 1,
                pitch = (width - 1) * k.stride_width + (k.kernel_width - 1) * k.dilation_width + 1;
  const int64_t size = k.p.dtype == DType::f64 ? 8 : 4, room = kBytes / size;
  const int64_t fitting = min_of(room / (images * rows * pitch + k.area * columns), int64_t{k.depth});
  if (fitting < groups) return false;
  const int64_t slice = ceil_div(even(k.depth, fitting / groups * groups), groups) * groups;
  k.images = static_cast<int>(images);
  k.height = static_cast<int>(height);
  k.width = static_cast<int>(width);
  k.rows = static_cast<int>(rows);
  k.pitch = static_cast<int>(pitch);
  k.slice = static_cast<int>(slice);
  k.groups = static_cast<int>(groups);
  k.column_blocks = static_cast<unsigned>(ceil_div(k.columns, columns));
  k.across = static_cast<unsigned>(ceil_div(k.result_width, width));
  k.down = static_cast<unsigned>(ceil_div(k.result_height, height));
  k.by_pitch = Divisor(pitch);
  k.by_rows = Divisor(rows);
  k.by_images = Divisor(images);
  k.by_width = Divisor(width);
  k.by_height = Divisor(height);
  k.by_area = Divisor(k.area);
  k.by_kernel_width = Divisor(k.kernel_width);
  k.by_terms = Divisor(slice * k.area);
  return true;
}

int64_t blocks_of(const Planes& k) {
  return ceil_div(k.batch, k.images) * k.down * k.across * k.column_blocks;
}

// False where no tile fits; as few threads share a pixel as leave enough blocks.
bool plan(const Params& p, Conv2dPass pass, Planes& k) {
  const bool forward = pass == Conv2dPass::forward;
  k.p = p;
  k.source = forward ? p.input : p.output;
  k.result = forward ? p.output : p.input;
  k.batch = p.batch;
  for (int d = 0; d < 4; ++d) {
    k.source_stride[d] = (forward ? p.input_stride : p.output_stride)[d];
    k.result_stride[d] = (forward ? p.output_stride : p.input_stride)[d];
  }
  k.depth = static_cast<int>(forward ? p.in_channels : p.out_channels);
  k.columns = static_cast<int>(forward ? p.out_channels : p.in_channels);
  k.source_height = static_cast<int>(forward ? p.in_height : p.out_height);
  k.source_width = static_cast<int>(forward ? p.in_width : p.out_width);
  k.result_height = static_cast<int>(forward ? p.out_height : p.in_height);
  k.result_width = static_cast<int>(forward ? p.out_width : p.in_width);
  k.kernel_height = static_cast<int>(p.kernel_height);
  k.kernel_width = static_cast<int>(p.kernel_width);
  k.area = k.kernel_height * k.kernel_width;
  k.dilation_height = static_cast<int>(p.dilation_height);
  k.dilation_width = static_cast<int>(p.dilation_width);
  k.stride_height = static_cast<int>(p.stride_height);
  k.stride_width = static_cast<int>(p.stride_width);
  k.pad_top = static_cast<int>(p.pad_top);
  k.pad_left = static_cast<int>(p.pad_left);
  k.weight = p.weight;
  k.column_stride = p.weight_stride[forward ? 0 : 1];
  k.depth_stride = p.weight_stride[forward ? 1 : 0];
  k.row_stride = p.weight_stride[2];
  k.tap_stride = p.weight_stride[3];
  if (!forward) {  // the kernel is turned around
    k.p.bias = nullptr;
    k.p.activation = Activation::none;
    k.pad_top = (k.kernel_height - 1) * k.dilation_height - k.pad_top;
    k.pad_left = (k.kernel_width - 1) * k.dilation_width - k.pad_left;
    const int64_t last = (k.kernel_height - 1) * k.row_stride + (k.kernel_width - 1) * k.tap_stride;
    const int64_t size = p.dtype == DType::f64 ? 8 : p.dtype == DType::f32 ? 4 : 2;
    k.weight = static_cast<const char*>(p.weight) + last * size;
    k.row_stride = -k.row_stride;
    k.tap_stride = -k.tap_stride;
  }
  bool fits = false;
  for (int64_t groups = 1; groups <= min_of(int64_t{k.depth}, int64_t{kMostGroups}); groups *= 2)
    if (!(fits && blocks_of(k) >= kEnoughBlocks)) fits = cut(k, groups) || fits;
  return fits;
}

bool in_rows(const int64_t* stride, int64_t width) { return stride[3] == 1 || width == 1; }

int run(const Params& p, Conv2dPass pass, void* stream) {
  Planes k{};
  plan(p, pass, k);
  int error = 0;
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int few = sizeof(T) == 8 ? kDoubles : kFew, many = sizeof(T) == 8 ? kDoubles : kMany;
    error = columns_of(p, k.columns) == many
                ? launch(conv2d_planes_kernel<T, many>, blocks_of(k), kThreads, stream, k)
                : launch(conv2d_planes_kernel<T, few>, blocks_of(k), kThreads, stream, k);
  });
  return error;
}

}  // namespace

// One tap leaves a thread four values to read for 32 or 64 products, whatever their number; but each value of the
// source is fetched again for every 8 or 16 channels of the result, where a matrix product does so for every 64.
bool conv2d_planes_serves(const Params& p, Conv2dPass pass) {
  if (p.groups != 1 || pass == Conv2dPass::backward_weight) return false;
  const bool forward = pass == Conv2dPass::forward;
  if (!forward && (p.stride_height != 1 || p.stride_width != 1)) return false;
  if (p.kernel_height * p.kernel_width < 4 && (forward ? p.out_channels : p.in_channels) > 16) return false;
  Planes k{};
  return in_rows(p.input_stride, p.in_width) && in_rows(p.output_stride, p.out_width) && plan(p, pass, k);
}

int conv2d_planes_forward(const Params& p, void* stream) { return run(p, Conv2dPass::forward, stream); }
int conv2d_planes_backward_input(const Params& p, void* stream) {
  return run(p, Conv2dPass::backward_input, stream);
}

}  // namespace pydl::cuda
