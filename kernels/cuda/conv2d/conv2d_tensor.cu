// conv2d of half types as an implicit matrix product on tensor cores (mma.sync m16n8k16, sums in float),
// channels_last.
//
// A block of 8 warps makes a tile of 128 x 64 results, a warp 32 x 32. Slices of 32 terms come to shared
// memory by asynchronous copies of 16 bytes, eight channels of one tap, in a ring of three: two slices are on
// their way while one is multiplied. Padding is a copy of no bytes, which fills in zeros. Chunks are
// swizzled, so that ldmatrix finds its eight rows in different banks; operands whose terms are not contiguous
// in memory (the weight in the input gradient, both tensors in the weight gradient) are stored as they are
// read and transposed by ldmatrix.
//
// The weight gradient's sum over pixels is cut into parts, as in conv2d.cu. Needs compute capability 8.0, and
// channel counts of a group that are multiples of 8.
#include "kernels/cuda/conv2d/conv2d.h"

namespace pydl::cuda {
namespace {

constexpr int kThreads = 256, kRows = 128, kColumns = 64, kDepth = 32, kStages = 3;
constexpr int kChunk = 8;  // elements of a copy

// A tile of rows of kChunks chunks; where a chunk of a row lies, in elements.
template <int kChunks>
PYDL_DEVICE int chunk_at(int row, int chunk) {
  const int swizzle = kChunks == 4 ? row >> 1 & 3 : row & 7;
  return (row * kChunks + (chunk ^ swizzle)) * kChunk;
}

template <class T>
PYDL_DEVICE void put_pair(T* to, T x, T y) {
  *reinterpret_cast<uint32_t*>(to) = static_cast<uint32_t>(y.bits) << 16 | x.bits;
}

// ---- the passes: where chunk `copy` of this thread's comes from (null for zeros), and where results go

template <class T>
struct Forward {
  static constexpr bool kTransposeA = false, kTransposeB = false;
  Image<T> image;
  const T *weight, *bias;
  T* output;
  Part pixel[2];
  int64_t filter, column0;
  int chunk;
  PYDL_METHOD Forward(const Geometry& g, int64_t group, int64_t row0, int64_t column, int t)
      : image{static_cast<const T*>(g.p.input) + group * g.in_per_group * g.p.input_stride[1]},
        weight(static_cast<const T*>(g.p.weight) + group * g.out_per_group * g.p.weight_stride[0]),
        bias(g.p.bias ? static_cast<const T*>(g.p.bias) + group * g.out_per_group : nullptr),
        output(static_cast<T*>(g.p.output) + group * g.out_per_group * g.p.output_stride[1]),
        filter(column + t / 4),
        column0(column),
        chunk(t % 4 * kChunk) {
#pragma unroll
    for (int i = 0; i < 2; ++i) pixel[i] = image.pixel(g, row0 + t / 4 + i * 64);
  }
  // both operands of one slice
  PYDL_METHOD void sources(const Geometry& g, int64_t first, int64_t, const T* (&a)[2], const T*& b) const {
    const int64_t k = first + chunk;
    const bool inside = k < g.in_per_group * g.area;
    const Tap at = tap_of(g, g.in_group, inside ? k : 0);
    Part tap = image.part_of(g, at);
    tap.inside = inside;
#pragma unroll
    for (int i = 0; i < 2; ++i) a[i] = image.address(g, pixel[i], tap);
    b = inside && filter < g.out_per_group ? weight + filter * g.p.weight_stride[0] + weight_offset(g, 0, at)
                                           : nullptr;
  }
  PYDL_METHOD void put(const Geometry& g, int64_t m, int64_t o, float x, float y, int64_t) const {
    if (m >= g.p.batch * g.out_image.by || o >= g.out_per_group) return;
    if (bias) {
      x += widen(bias[o]);
      y += widen(bias[o + 1]);
    }
    put_pair(output + output_offset(g, m) + o, activated<T>(g.p, x), activated<T>(g.p, y));
  }
};

template <class T>
struct BackwardInput {
  static constexpr bool kTransposeA = false, kTransposeB = true;
  Spread<T> spread;
  const T* weight;
  T* grad_input;
  Part pixel[2];
  int64_t channel;
  int chunk, term;
  PYDL_METHOD BackwardInput(const Geometry& g, int64_t group, int64_t row0, int64_t column, int t)
      : spread{static_cast<const T*>(g.p.output) + group * g.out_per_group * g.p.output_stride[1]},
        weight(static_cast<const T*>(g.p.weight) + group * g.out_per_group * g.p.weight_stride[0]),
        grad_input(static_cast<T*>(g.p.input) + group * g.in_per_group * g.p.input_stride[1]),
        channel(column + t % 8 * kChunk),
        chunk(t % 4 * kChunk),
        term(t / 8) {
#pragma unroll
    for (int i = 0; i < 2; ++i) pixel[i] = spread.pixel(g, row0 + t / 4 + i * 64);
  }
  PYDL_METHOD void sources(const Geometry& g, int64_t first, int64_t, const T* (&a)[2], const T*& b) const {
    const Part tap = spread.tap(g, first + chunk);
#pragma unroll
    for (int i = 0; i < 2; ++i) a[i] = spread.address(g, pixel[i], tap);
    const int64_t k = first + term;
    b = nullptr;
    if (k >= g.out_per_group * g.area || channel >= g.in_per_group) return;
    const Tap at = tap_of(g, g.out_group, k);
    b = weight + weight_offset(g, at.channel, {0, at.r, at.s}) + channel;
  }
  PYDL_METHOD void put(const Geometry& g, int64_t m, int64_t i, float x, float y, int64_t) const {
    if (m >= g.p.batch * g.in_image.by || i >= g.in_per_group) return;
    put_pair(grad_input + input_offset(g, m) + i, narrow<T>(x), narrow<T>(y));
  }
};

template <class T>
struct BackwardWeight {
  static constexpr bool kTransposeA = true, kTransposeB = true;
  Image<T> image;
  const T* grad_output;
  float* parts;
  Part tap;
  int64_t filter;
  int a_term, b_term;
  PYDL_METHOD BackwardWeight(const Geometry& g, int64_t group, int64_t row0, int64_t column, int t)
      : image{static_cast<const T*>(g.p.input) + group * g.in_per_group * g.p.input_stride[1]},
        grad_output(static_cast<const T*>(g.p.output) + group * g.out_per_group * g.p.output_stride[1]),
        parts(static_cast<float*>(g.p.scratch) + group * g.out_per_group * g.in_per_group * g.area),
        tap(image.tap(g, column + t % 8 * kChunk)),
        filter(row0 + t % 16 * kChunk),
        a_term(t / 16),
        b_term(t / 8) {}
  PYDL_METHOD void sources(const Geometry& g, int64_t first, int64_t end, const T* (&a)[2],
                           const T*& b) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t m = first + a_term + i * 16;
      a[i] = m < end && filter < g.out_per_group ? grad_output + output_offset(g, m) + filter : nullptr;
    }
    const int64_t m = first + b_term;
    b = m < end ? image.address(g, image.pixel(g, m), tap) : nullptr;
  }
  PYDL_METHOD void put(const Geometry& g, int64_t o, int64_t k, float x, float y, int64_t split) const {
    const int64_t taps = g.in_per_group * g.area;
    if (o >= g.out_per_group || k >= taps) return;
    float* to = parts + (split * g.p.out_channels + o) * taps + k;
    to[0] = x;
    to[1] = y;
  }
};

// ---- the product

template <class T, template <class> class Pass>
__global__ void __launch_bounds__(kThreads, 2)
    conv2d_tensor_kernel(PYDL_CONSTANT Geometry g, PYDL_CONSTANT Tiles tiles) {
  constexpr bool kTransposeA = Pass<T>::kTransposeA, kTransposeB = Pass<T>::kTransposeB;
  constexpr int kChunksA = kTransposeA ? kRows / kChunk : kDepth / kChunk;
  constexpr int kChunksB = kTransposeB ? kColumns / kChunk : kDepth / kChunk;
  constexpr int kSizeA = kRows * kDepth, kSizeB = kColumns * kDepth;
  PYDL_SHARED(T, shared_a, kStages * kSizeA);
  PYDL_SHARED(T, shared_b, kStages * kSizeB);
  unsigned block = blockIdx.x;
  const int64_t column0 = static_cast<int64_t>(block % static_cast<unsigned>(tiles.columns)) * kColumns;
  block /= static_cast<unsigned>(tiles.columns);
  const int64_t row0 = static_cast<int64_t>(block % static_cast<unsigned>(tiles.rows)) * kRows;
  block /= static_cast<unsigned>(tiles.rows);
  const int64_t split = block % static_cast<unsigned>(tiles.splits),
                group = block / static_cast<unsigned>(tiles.splits);
  const int64_t begin = split * tiles.split_terms, end = min_of(begin + tiles.split_terms, tiles.terms);
  const int t = static_cast<int>(threadIdx.x), lane = t % kWarp, warp = t / kWarp;
  const Pass<T> pass(g, group, row0, column0, t);
  const T* const anywhere = static_cast<const T*>(g.p.output);  // a valid address for copies of no bytes

  auto fetch = [&](int64_t first, int stage) {
    const T *a[2], *b;
    pass.sources(g, first, end, a, b);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = kTransposeA ? t / 16 + i * 16 : t / 4 + i * 64, chunk = kTransposeA ? t % 16 : t % 4;
      ptx::copy16(shared_a + stage * kSizeA + chunk_at<kChunksA>(row, chunk), a[i] ? a[i] : anywhere,
                  a[i] != nullptr);
    }
    const int row = kTransposeB ? t / 8 : t / 4, chunk = kTransposeB ? t % 8 : t % 4;
    ptx::copy16(shared_b + stage * kSizeB + chunk_at<kChunksB>(row, chunk), b ? b : anywhere, b != nullptr);
  };

  const int my_row = warp / 2 * 32, my_column = warp % 2 * 32, eighth = lane % 8, quarter = lane / 8;
  float sum[2][4][4] = {};
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (begin + s * kDepth < end) fetch(begin + s * kDepth, s);
    ptx::commit_copies();
  }
  int stage = 0;
  for (int64_t first = begin; first < end; first += kDepth) {
    ptx::wait_copies<kStages - 2>();
    __syncthreads();  // the slice is there for every thread, and nobody reads the one that is overwritten
                      // next
    const int64_t next = first + (kStages - 1) * kDepth;
    if (next < end) fetch(next, stage == 0 ? kStages - 1 : stage - 1);
    ptx::commit_copies();
    const T* from_a = shared_a + stage * kSizeA;
    const T* from_b = shared_b + stage * kSizeB;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t a[2][4], b[4][2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = my_row + i * 16;
        if constexpr (kTransposeA)
          ptx::load_matrices<true>(
              a[i], from_a + chunk_at<kChunksA>(k + quarter / 2 * 8 + eighth, row / kChunk + quarter % 2));
        else
          ptx::load_matrices<false>(a[i],
                                    from_a + chunk_at<kChunksA>(row + lane % 16, k / kChunk + lane / 16));
      }
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        const int column = my_column + j * 8;
        uint32_t pair[4];
        if constexpr (kTransposeB)
          ptx::load_matrices<true>(
              pair, from_b + chunk_at<kChunksB>(k + quarter % 2 * 8 + eighth, column / kChunk + quarter / 2));
        else
          ptx::load_matrices<false>(
              pair, from_b + chunk_at<kChunksB>(column + quarter / 2 * 8 + eighth, k / kChunk + quarter % 2));
        b[j][0] = pair[0];
        b[j][1] = pair[1];
        b[j + 1][0] = pair[2];
        b[j + 1][1] = pair[3];
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) ptx::multiply(sum[i][j], a[i], b[j], T{});
    }
    stage = stage == kStages - 1 ? 0 : stage + 1;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        pass.put(g, row0 + my_row + i * 16 + lane / 4 + h * 8, column0 + my_column + j * 8 + lane % 4 * 2,
                 sum[i][j][2 * h], sum[i][j][2 * h + 1], split);
}

template <template <class> class Pass>
int multiply(const Geometry& g, const Tiles& tiles, void* stream) {
  const int64_t blocks = tiles.rows * tiles.columns * tiles.splits * g.p.groups;
  if (g.p.dtype == DType::bf16)
    return launch(conv2d_tensor_kernel<bf16, Pass>, blocks, kThreads, stream, g, tiles);
  return launch(conv2d_tensor_kernel<f16, Pass>, blocks, kThreads, stream, g, tiles);
}

Geometry geometry_of(const Params& p) {
  Geometry g(p);
  g.channels_first = true;
  return g;
}

Tiles tiles_of(int64_t rows, int64_t columns, int64_t terms) {
  Tiles tiles{};
  tiles.rows = ceil_div(rows, kRows);
  tiles.columns = ceil_div(columns, kColumns);
  tiles.splits = 1;
  tiles.terms = tiles.split_terms = terms;
  return tiles;
}

bool has_tensor_cores() {
#if defined(__CUDACC__)
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major >= 8;
#else
  return true;
#endif
}

// Whether eight neighbouring channels are one aligned access everywhere.
bool in_chunks(const void* data, const int64_t* stride, int64_t height, int64_t width) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride[0] % kChunk == 0 && stride[1] == 1 &&
         (height == 1 || stride[2] % kChunk == 0) && (width == 1 || stride[3] % kChunk == 0);
}

}  // namespace

bool conv2d_tensor_serves(const Params& p, Conv2dPass pass) {
  if (p.dtype != DType::bf16 && p.dtype != DType::f16) return false;
  const bool channels = p.in_channels / p.groups % kChunk == 0 && p.out_channels / p.groups % kChunk == 0;
  return channels && in_chunks(p.input, p.input_stride, p.in_height, p.in_width) &&
         in_chunks(p.output, p.output_stride, p.out_height, p.out_width) &&
         (pass == Conv2dPass::backward_weight ||
          in_chunks(p.weight, p.weight_stride, p.kernel_height, p.kernel_width)) &&
         has_tensor_cores();
}

int64_t conv2d_tensor_weight_splits(const Params& p) {
  return weight_tiles(geometry_of(p), kRows, kColumns).splits;
}

int conv2d_tensor_forward(const Params& p, void* stream) {
  const Geometry g = geometry_of(p);
  return multiply<Forward>(g, tiles_of(g.out_pixels(), g.out_per_group, g.in_per_group * g.area), stream);
}

int conv2d_tensor_backward_input(const Params& p, void* stream) {
  const Geometry g = geometry_of(p);
  return multiply<BackwardInput>(g, tiles_of(g.in_pixels(), g.in_per_group, g.out_per_group * g.area),
                                 stream);
}

int conv2d_tensor_backward_weight(const Params& p, void* stream) {
  const Geometry g = geometry_of(p);
  return multiply<BackwardWeight>(g, weight_tiles(g, kRows, kColumns), stream);
}

}  // namespace pydl::cuda
