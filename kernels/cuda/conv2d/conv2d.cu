// conv2d as an implicit matrix product on plain cores (fused multiply-add), for every dtype and every option: what
// serves where nothing else does.
//
// A block of 256 threads makes a tile of 64 x 64 results, a thread 4 x 4 of them, from slices of 16 terms (8 of float64)
// that go through shared memory, in two buffers: while one slice is multiplied, the next is on its way in
// registers. Operands are read from the tensors where they lie (kernels/cuda/conv2d/conv2d.h); lanes go along
// whichever direction is contiguous. Half types are widened as they are read and summed in float, where
// conv2d_tensor.cu cannot serve them.
//
// The weight gradient sums over all pixels, which few tiles share: the sum is cut into parts, each a block's,
// that are written to scratch and added up in order by a second kernel (conv2d_sums.cu).
#include "kernels/cuda/conv2d/conv2d.h"

#include "kernels/cuda/library.h"

namespace pydl::cuda {
namespace {

constexpr int kThreads = 256, kTile = 64, kMine = 4, kPad = 4;

// ---- the passes: operands a(row, k) and b(column, k), and where a result goes

template <class T>
struct Forward {
  Image<T> image;
  const T* weight;
  const T* bias;
  T* output;
  PYDL_METHOD Forward(const Geometry& g, int64_t group)
      : image{static_cast<const T*>(g.p.input) + group * g.in_per_group * g.p.input_stride[1]},
        weight(static_cast<const T*>(g.p.weight) + group * g.out_per_group * g.p.weight_stride[0]),
        bias(g.p.bias ? static_cast<const T*>(g.p.bias) + group * g.out_per_group : nullptr),
        output(static_cast<T*>(g.p.output) + group * g.out_per_group * g.p.output_stride[1]) {}
  PYDL_METHOD Part a_row(const Geometry& g, int64_t m) const { return image.pixel(g, m); }
  PYDL_METHOD Part a_term(const Geometry& g, int64_t k) const { return image.tap(g, k); }
  PYDL_METHOD acc_t<T> a(const Geometry& g, const Part& row, const Part& k) const {
    return image.value(g, row, k);
  }
  PYDL_METHOD Part b_row(const Geometry& g, int64_t o) const {
    return {o * g.p.weight_stride[0], 0, 0, o < g.out_per_group};
  }
  PYDL_METHOD Part b_term(const Geometry& g, int64_t k) const {
    const bool inside = k < g.in_per_group * g.area;
    return {inside ? weight_offset(g, 0, tap_of(g, g.in_group, k)) : 0, 0, 0, inside};
  }
  PYDL_METHOD acc_t<T> b(const Geometry&, const Part& row, const Part& k) const {
    return row.inside && k.inside ? widen(weight[row.offset + k.offset]) : acc_t<T>(0);
  }
  PYDL_METHOD void put(const Geometry& g, int64_t m, int64_t o, acc_t<T> x, int64_t) const {
    if (m >= g.p.batch * g.out_image.by || o >= g.out_per_group) return;
    if (bias) x += widen(bias[o]);
    output[output_offset(g, m) + o * g.p.output_stride[1]] = activated<T>(g.p, x);
  }
};

template <class T>
struct BackwardInput {
  Spread<T> spread;
  const T* weight;
  T* grad_input;
  PYDL_METHOD BackwardInput(const Geometry& g, int64_t group)
      : spread{static_cast<const T*>(g.p.output) + group * g.out_per_group * g.p.output_stride[1]},
        weight(static_cast<const T*>(g.p.weight) + group * g.out_per_group * g.p.weight_stride[0]),
        grad_input(static_cast<T*>(g.p.input) + group * g.in_per_group * g.p.input_stride[1]) {}
  PYDL_METHOD Part a_row(const Geometry& g, int64_t m) const { return spread.pixel(g, m); }
  PYDL_METHOD Part a_term(const Geometry& g, int64_t k) const { return spread.tap(g, k); }
  PYDL_METHOD acc_t<T> a(const Geometry& g, const Part& row, const Part& k) const {
    return spread.value(g, row, k);
  }
  PYDL_METHOD Part b_row(const Geometry& g, int64_t i) const {
    return {i * g.p.weight_stride[1], 0, 0, i < g.in_per_group};
  }
  PYDL_METHOD Part b_term(const Geometry& g, int64_t k) const {
    const bool inside = k < g.out_per_group * g.area;
    if (!inside) return {0, 0, 0, false};
    const Tap tap = tap_of(g, g.out_group, k);
    return {weight_offset(g, tap.channel, {0, tap.r, tap.s}), 0, 0, true};
  }
  PYDL_METHOD acc_t<T> b(const Geometry&, const Part& row, const Part& k) const {
    return row.inside && k.inside ? widen(weight[row.offset + k.offset]) : acc_t<T>(0);
  }
  PYDL_METHOD void put(const Geometry& g, int64_t m, int64_t i, acc_t<T> x, int64_t) const {
    if (m >= g.p.batch * g.in_image.by || i >= g.in_per_group) return;
    grad_input[input_offset(g, m) + i * g.p.input_stride[1]] = narrow<T>(x);
  }
};

// Rows are filters, columns taps, terms pixels; results go to the scratch: [splits][out_channels][taps].
template <class T>
struct BackwardWeight {
  Image<T> image;
  const T* grad_output;
  acc_t<T>* parts;
  PYDL_METHOD BackwardWeight(const Geometry& g, int64_t group)
      : image{static_cast<const T*>(g.p.input) + group * g.in_per_group * g.p.input_stride[1]},
        grad_output(static_cast<const T*>(g.p.output) + group * g.out_per_group * g.p.output_stride[1]),
        parts(static_cast<acc_t<T>*>(g.p.scratch) + group * g.out_per_group * g.in_per_group * g.area) {}
  PYDL_METHOD Part a_row(const Geometry& g, int64_t o) const {
    return {o * g.p.output_stride[1], 0, 0, o < g.out_per_group};
  }
  PYDL_METHOD Part a_term(const Geometry& g, int64_t m) const {
    const bool inside = m < g.p.batch * g.out_image.by;
    return {inside ? output_offset(g, m) : 0, 0, 0, inside};
  }
  PYDL_METHOD acc_t<T> a(const Geometry&, const Part& row, const Part& m) const {
    return row.inside && m.inside ? widen(grad_output[row.offset + m.offset]) : acc_t<T>(0);
  }
  PYDL_METHOD Part b_row(const Geometry& g, int64_t k) const { return image.tap(g, k); }
  PYDL_METHOD Part b_term(const Geometry& g, int64_t m) const { return image.pixel(g, m); }
  PYDL_METHOD acc_t<T> b(const Geometry& g, const Part& row, const Part& m) const {
    return image.value(g, m, row);
  }
  PYDL_METHOD void put(const Geometry& g, int64_t o, int64_t k, acc_t<T> x, int64_t split) const {
    const int64_t taps = g.in_per_group * g.area;
    if (o >= g.out_per_group || k >= taps) return;
    parts[(split * g.p.out_channels + o) * taps + k] = x;
  }
};

// ---- the product

template <class T, template <class> class Pass>
__global__ void __launch_bounds__(kThreads, 2)
    conv2d_gemm_kernel(PYDL_CONSTANT Geometry g, PYDL_CONSTANT Tiles tiles) {
  using A = acc_t<T>;
  // terms of a slice; of float64 half as many, or the registers of two blocks do not hold what is on its way
  constexpr int kDepth = sizeof(A) == 8 ? 8 : 16, kLoads = kTile * kDepth / kThreads;
  PYDL_SHARED(A, shared_a, 2 * kDepth * (kTile + kPad));
  PYDL_SHARED(A, shared_b, 2 * kDepth * (kTile + kPad));
  unsigned block = blockIdx.x;
  const int64_t column0 = static_cast<int64_t>(block % static_cast<unsigned>(tiles.columns)) * kTile;
  block /= static_cast<unsigned>(tiles.columns);
  const int64_t row0 = static_cast<int64_t>(block % static_cast<unsigned>(tiles.rows)) * kTile;
  block /= static_cast<unsigned>(tiles.rows);
  const int64_t split = block % static_cast<unsigned>(tiles.splits),
                group = block / static_cast<unsigned>(tiles.splits);
  const int64_t begin = split * tiles.split_terms, end = min_of(begin + tiles.split_terms, tiles.terms);
  const Pass<T> pass(g, group);
  const int t = static_cast<int>(threadIdx.x);

  // Which values of a slice this thread reads: kLoads rows of one term, or one row of kLoads terms.
  const int a_row = tiles.a_along_terms ? t / kDepth : t % kTile,
            a_term = tiles.a_along_terms ? t % kDepth : t / kTile;
  const int b_row = tiles.b_along_terms ? t / kDepth : t % kTile,
            b_term = tiles.b_along_terms ? t % kDepth : t / kTile;
  constexpr int kRowStep = kThreads / kDepth, kTermStep = kThreads / kTile;
  Part a_rows[kLoads], b_rows[kLoads];
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    a_rows[i] = pass.a_row(g, row0 + a_row + (tiles.a_along_terms ? i * kRowStep : 0));
    b_rows[i] = pass.b_row(g, column0 + b_row + (tiles.b_along_terms ? i * kRowStep : 0));
  }
  A a_value[kLoads], b_value[kLoads];
  auto fetch = [&](int64_t first) {
    if (tiles.a_along_terms) {
      Part k = pass.a_term(g, first + a_term);
      k.inside = k.inside && first + a_term < end;
#pragma unroll
      for (int i = 0; i < kLoads; ++i) a_value[i] = pass.a(g, a_rows[i], k);
    } else {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int64_t term = first + a_term + i * kTermStep;
        Part k = pass.a_term(g, term);
        k.inside = k.inside && term < end;
        a_value[i] = pass.a(g, a_rows[0], k);
      }
    }
    if (tiles.b_along_terms) {
      const Part k = pass.b_term(g, first + b_term);
#pragma unroll
      for (int i = 0; i < kLoads; ++i) b_value[i] = pass.b(g, b_rows[i], k);
    } else {
#pragma unroll
      for (int i = 0; i < kLoads; ++i)
        b_value[i] = pass.b(g, b_rows[0], pass.b_term(g, first + b_term + i * kTermStep));
    }
  };
  auto keep = [&](int buffer) {
    A* to_a = shared_a + buffer * kDepth * (kTile + kPad);
    A* to_b = shared_b + buffer * kDepth * (kTile + kPad);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      to_a[tiles.a_along_terms ? a_term * (kTile + kPad) + a_row + i * kRowStep
                               : (a_term + i * kTermStep) * (kTile + kPad) + a_row] = a_value[i];
      to_b[tiles.b_along_terms ? b_term * (kTile + kPad) + b_row + i * kRowStep
                               : (b_term + i * kTermStep) * (kTile + kPad) + b_row] = b_value[i];
    }
  };

  A sum[kMine][kMine] = {};
  const int my_row = t / (kTile / kMine) * kMine, my_column = t % (kTile / kMine) * kMine;
  if (begin < end) {
    fetch(begin);
    keep(0);
  }
  __syncthreads();
  int buffer = 0;
  for (int64_t first = begin; first < end; first += kDepth) {
    const bool more = first + kDepth < end;
    if (more) fetch(first + kDepth);
    const A* from_a = shared_a + buffer * kDepth * (kTile + kPad) + my_row;
    const A* from_b = shared_b + buffer * kDepth * (kTile + kPad) + my_column;
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      A a[kMine], b[kMine];
#pragma unroll
      for (int i = 0; i < kMine; i += kPack<A>) {
        const Pack<A> pack_a = load_pack_cached(from_a + k * (kTile + kPad) + i),
                      pack_b = load_pack_cached(from_b + k * (kTile + kPad) + i);
#pragma unroll
        for (int h = 0; h < kPack<A>; ++h) {
          a[i + h] = pack_a.value[h];
          b[i + h] = pack_b.value[h];
        }
      }
#pragma unroll
      for (int i = 0; i < kMine; ++i)
#pragma unroll
        for (int j = 0; j < kMine; ++j) sum[i][j] += a[i] * b[j];
    }
    buffer ^= 1;
    if (more) keep(buffer);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kMine; ++i)
#pragma unroll
    for (int j = 0; j < kMine; ++j) pass.put(g, row0 + my_row + i, column0 + my_column + j, sum[i][j], split);
}

template <template <class> class Pass>
int multiply(const Geometry& g, const Tiles& tiles, void* stream) {
  int error = 0;
  const int64_t blocks = tiles.rows * tiles.columns * tiles.splits * g.p.groups;
  dispatch_dtype(g.p.dtype, [&](auto type) {
    error = launch(conv2d_gemm_kernel<decltype(type), Pass>, blocks, kThreads, stream, g, tiles);
  });
  return error;
}

}  // namespace

int64_t conv2d_weight_scratch(const Params& p) {
  if (conv2d_direct_weight_serves(p)) return conv2d_direct_weight_scratch(p);
  const Geometry g(p);
  const int64_t splits = conv2d_tensor_serves(p, Conv2dPass::backward_weight)
                             ? conv2d_tensor_weight_splits(p)
                             : weight_tiles(g, kTile, kTile).splits;
  return splits * p.out_channels * g.in_per_group * g.area * (p.dtype == DType::f64 ? 8 : 4);
}

int conv2d_forward(const Params& p, void* stream) {
  if (is_direct(p)) return conv2d_direct_forward(p, stream);
  if (conv2d_tensor_serves(p, Conv2dPass::forward)) return conv2d_tensor_forward(p, stream);
  if (conv2d_planes_serves(p, Conv2dPass::forward)) return conv2d_planes_forward(p, stream);
  Geometry g(p);
  g.channels_first = is_channels_last(p.input_stride);
  Tiles tiles{};
  tiles.rows = ceil_div(g.out_pixels(), kTile);
  tiles.columns = ceil_div(g.out_per_group, kTile);
  tiles.splits = 1;
  tiles.terms = tiles.split_terms = g.in_per_group * g.area;
  tiles.a_along_terms = g.channels_first;
  tiles.b_along_terms = true;
  return multiply<Forward>(g, tiles, stream);
}

int conv2d_backward_input(const Params& p, void* stream) {
  if (is_direct(p)) return conv2d_direct_backward_input(p, stream);
  if (conv2d_tensor_serves(p, Conv2dPass::backward_input)) return conv2d_tensor_backward_input(p, stream);
  if (conv2d_planes_serves(p, Conv2dPass::backward_input)) return conv2d_planes_backward_input(p, stream);
  Geometry g(p);
  g.channels_first = is_channels_last(p.output_stride);
  Tiles tiles{};
  tiles.rows = ceil_div(g.in_pixels(), kTile);
  tiles.columns = ceil_div(g.in_per_group, kTile);
  tiles.splits = 1;
  tiles.terms = tiles.split_terms = g.out_per_group * g.area;
  tiles.a_along_terms = g.channels_first;
  tiles.b_along_terms = p.weight_stride[1] != 1;
  return multiply<BackwardInput>(g, tiles, stream);
}

int conv2d_backward_weight(const Params& p, void* stream) {
  if (conv2d_direct_weight_serves(p)) return conv2d_direct_backward_weight(p, stream);
  Geometry g(p);
  int error;
  int64_t splits;
  if (conv2d_tensor_serves(p, Conv2dPass::backward_weight)) {
    splits = conv2d_tensor_weight_splits(p);
    g.channels_first = true;
    error = conv2d_tensor_backward_weight(p, stream);
  } else {
    g.channels_first = is_channels_last(p.input_stride);
    Tiles tiles = weight_tiles(g, kTile, kTile);
    splits = tiles.splits;
    tiles.a_along_terms = !is_channels_last(p.output_stride);
    tiles.b_along_terms = !g.channels_first;
    error = splits > 0 ? multiply<BackwardWeight>(g, tiles, stream) : 0;
  }
  return error == 0 ? conv2d_weight_sum(p, splits, g.channels_first, stream) : error;
}

}  // namespace pydl::cuda
