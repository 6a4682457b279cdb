// Dropout: output[i] = keep(i) ? input[i] / (1 - p) : 0, keep(i) from word i mod 4 of Philox4x32-10 at
// counter i / 4.
//
// Bound by memory as long as the generator keeps up: 20 wide multiplications for four elements. So a thread
// owns whole counters, reads and writes 16 bytes at a time, and has all its loads on the way before it draws
// a word. The seed is read on the device (a captured graph draws a new mask at each replay); no mask is ever
// stored, and the backward is the same kernel on the gradient.
//
// Tensors that are not one dense run go through a second kernel, in the order of the output's memory. Where
// the dimension that holds whole counters is not the innermost (channels_last), a thread still takes the four
// elements of one counter, each next to its neighbours' in memory.
#include "kernels/dropout.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/library.h"
#include "kernels/philox.h"

namespace pydl::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPacks = 4;  // 16-byte loads that a thread has on the way

template <class A>
struct Rule {
  const int64_t* seed;
  uint32_t threshold;
  bool drops_all;  // p = 1: 2^32 is no uint32_t
  A scale;
};

// x / (1 - p) where kept, else 0 (of inf and nan too).
template <class T>
PYDL_DEVICE T dropped(const Rule<acc_t<T>>& rule, T x, uint32_t word) {
  const bool kept = word >= rule.threshold && !rule.drops_all;
  return narrow<T>(kept ? widen(x) * rule.scale : acc_t<T>(0));
}

// Elements of one or several whole counters, and whole packs.
template <class T>
constexpr int kGroup = kPack<T> < 4 ? 4 : kPack<T>;
template <class T>
constexpr int kGroups = kPacks * kPack<T> / kGroup<T>;
template <class T>
constexpr int kTile = kThreads * kGroup<T> * kGroups<T>;

template <class T>
__global__ void __launch_bounds__(kThreads)
    dropout_dense_kernel(const T* __restrict__ input,  // [numel], 16-byte aligned
                         T* __restrict__ output,       // [numel], 16-byte aligned
                         int64_t numel, Rule<acc_t<T>> rule) {
  constexpr int kPerGroup = kGroup<T> / kPack<T>;
  const int64_t start = static_cast<int64_t>(blockIdx.x) * kTile<T>;
  const uint64_t seed = static_cast<uint64_t>(*rule.seed);
  if (start + kTile<T> > numel) {  // the last tile: element by element
    for (int64_t i = start + threadIdx.x; i < numel; i += kThreads) {
      const PhiloxWords words = philox4x32_10(seed, static_cast<uint64_t>(i) / 4);
      const uint32_t low = i % 2 ? words.word[1] : words.word[0],
                     high = i % 2 ? words.word[3] : words.word[2];
      output[i] = dropped(rule, input[i], i % 4 < 2 ? low : high);
    }
    return;
  }
  Pack<T> packs[kGroups<T>][kPerGroup];
#pragma unroll
  for (int g = 0; g < kGroups<T>; ++g)
#pragma unroll
    for (int k = 0; k < kPerGroup; ++k)
      packs[g][k] = load_pack(input + start + (g * kThreads + threadIdx.x) * kGroup<T> + k * kPack<T>);
#pragma unroll
  for (int g = 0; g < kGroups<T>; ++g) {
    const int64_t first = start + (g * kThreads + threadIdx.x) * kGroup<T>;
#pragma unroll
    for (int c = 0; c < kGroup<T> / 4; ++c) {
      const PhiloxWords words = philox4x32_10(seed, static_cast<uint64_t>(first) / 4 + c);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = c * 4 + j;
        T& x = packs[g][at / kPack<T>].value[at % kPack<T>];
        x = dropped(rule, x, words.word[j]);
      }
    }
#pragma unroll
    for (int k = 0; k < kPerGroup; ++k) store_pack(output + first + k * kPack<T>, packs[g][k]);
  }
}

// Dimensions in the order of the output's memory, innermost first.
struct Walk {
  int dims;
  int64_t size[DropoutParams::max_dims], index[DropoutParams::max_dims], input[DropoutParams::max_dims],
      output[DropoutParams::max_dims];
  // Where a thread takes a counter's four elements: steps between them; index strides and sizes count
  // counters.
  bool quad;
  int64_t input_step, output_step;
};

template <class T, class Integer>  // Integer: of the walk; 64-bit divisions are slow
__global__ void __launch_bounds__(kThreads)
    dropout_strided_kernel(const T* __restrict__ input, T* __restrict__ output, Integer numel, Walk walk,
                           Rule<acc_t<T>> rule) {
  Integer rest = static_cast<Integer>(blockIdx.x) * kThreads + threadIdx.x;
  if (rest >= numel) return;
  int64_t index = 0, from = 0, to = 0;
#pragma unroll
  for (int d = 0; d < DropoutParams::max_dims; ++d) {
    if (d == walk.dims) break;
    const Integer size = static_cast<Integer>(walk.size[d]);
    const int64_t k = static_cast<int64_t>(rest % size);
    rest /= size;
    index += k * walk.index[d];
    from += k * walk.input[d];
    to += k * walk.output[d];
  }
  const uint64_t seed = static_cast<uint64_t>(*rule.seed);
  if (walk.quad) {
    const PhiloxWords words = philox4x32_10(seed, static_cast<uint64_t>(index));
#pragma unroll
    for (int j = 0; j < 4; ++j)
      output[to + j * walk.output_step] = dropped(rule, input[from + j * walk.input_step], words.word[j]);
  } else {
    const PhiloxWords words = philox4x32_10(seed, static_cast<uint64_t>(index) / 4);
    const uint32_t low = index % 2 ? words.word[1] : words.word[0],
                   high = index % 2 ? words.word[3] : words.word[2];
    output[to] = dropped(rule, input[from], index % 4 < 2 ? low : high);
  }
}

Walk walk_of(const DropoutParams& p) {
  Walk walk{};
  for (int d = 0; d < p.dims; ++d) {  // by rising output stride; insertion sort of at most eight
    int at = walk.dims++;
    for (; at > 0 && walk.output[at - 1] > p.output_stride[d]; --at) {
      walk.size[at] = walk.size[at - 1];
      walk.index[at] = walk.index[at - 1];
      walk.input[at] = walk.input[at - 1];
      walk.output[at] = walk.output[at - 1];
    }
    walk.size[at] = p.size[d];
    walk.index[at] = p.index_stride[d];
    walk.input[at] = p.input_stride[d];
    walk.output[at] = p.output_stride[d];
  }
  // Whole counters along one dimension, and counters from all others: no element's decision is shared then.
  int quad = -1;
  bool whole = true;
  for (int d = 0; d < walk.dims; ++d) {
    if (walk.index[d] == 1 && walk.size[d] % 4 == 0 && walk.output[d] != 1)
      quad = d;
    else
      whole &= walk.index[d] % 4 == 0 && walk.index[d] > 0;
  }
  if (quad < 0 || !whole) return walk;
  walk.quad = true;
  walk.input_step = walk.input[quad];
  walk.output_step = walk.output[quad];
  for (int d = 0; d < walk.dims; ++d) walk.index[d] = d == quad ? 1 : walk.index[d] / 4;
  walk.size[quad] /= 4;
  walk.input[quad] *= 4;
  walk.output[quad] *= 4;
  return walk;
}

template <class T>
int run(const DropoutParams& p, void* stream) {
  const T* input = static_cast<const T*>(p.input);
  T* output = static_cast<T*>(p.output);
  const Rule<acc_t<T>> rule{p.device_seed, static_cast<uint32_t>(p.threshold), p.threshold >> 32 != 0,
                            static_cast<acc_t<T>>(p.scale)};
  const bool dense =
      p.dims == 1 && p.input_stride[0] == 1 && p.output_stride[0] == 1 && p.index_stride[0] == 1;
  if (dense && reinterpret_cast<uintptr_t>(input) % 16 == 0 && reinterpret_cast<uintptr_t>(output) % 16 == 0)
    return launch(dropout_dense_kernel<T>, ceil_div(p.numel, kTile<T>), kThreads, stream, input, output,
                  p.numel, rule);
  const Walk walk = walk_of(p);
  const int64_t numel = walk.quad ? p.numel / 4 : p.numel;
  const int64_t blocks = ceil_div(numel, kThreads);
  if (numel + kThreads <= 0xFFFFFFFFll)
    return launch(dropout_strided_kernel<T, uint32_t>, blocks, kThreads, stream, input, output,
                  static_cast<uint32_t>(numel), walk, rule);
  return launch(dropout_strided_kernel<T, uint64_t>, blocks, kThreads, stream, input, output,
                static_cast<uint64_t>(numel), walk, rule);
}

}  // namespace

int dropout(const DropoutParams& p, void* stream) {
  int error = 0;
  dispatch_dtype(p.dtype, [&](auto type) { error = run<decltype(type)>(p, stream); });
  return error;
}

}  // namespace pydl::cuda
