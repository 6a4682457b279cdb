// Dropout of strided tensors: channels_last, transposed, sliced, expanded, and channels that share a
// decision.
//
// The words come in logical order, memory is walked in the output's order. Where the two orders run along the
// same dimension, a row takes its words directly. Where they cross (channels_last: words run along width,
// memory along channels), a tile of both dimensions is decided first, one bit per element: word w of lane v
// holds the decisions of 32 logical neighbours of channel v, so that the vector of those words is the mask of
// a whole row of channels at each of the 32 places, picked by one bit test and no transposition. Besides one
// such tile (8 KB of stack) no mask is stored.
#include "kernels/cpu/dropout/dropout_strided.h"

#include "kernels/cpu/base/philox_simd.h"
#include "kernels/cpu/rows/along.h"
#include "kernels/cpu/rows/walk.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kRow = 4096;    // elements of a row per tile, where no tile of bits is needed
constexpr int64_t kTileV = 256;   // elements along memory per tile of bits
constexpr int64_t kTileR = 256;   // elements along the words per tile of bits; a multiple of 32
constexpr int64_t kGrain = 4096;  // elements per task

// How the tensor is cut: along v the output is dense, along r the words are; every other dimension is an
// outer loop.
struct Plan {
  int v, r;  // r: where words and memory cross, the words' dimension; where words run along v, one
             // that shares them; else none, -1
  int64_t v_step, r_step;    // size of a tile
  int64_t v_tiles, r_tiles;  // tiles along each
  int64_t tiles;             // in all
};

Plan make_plan(const DropoutParams& p) {
  Plan plan{};
  plan.r = -1;
  for (int d = 0; d < p.dims; ++d)
    if (p.output_stride[d] == 1) plan.v = d;
  // the last dimension that decides has index stride 1, so r is found whenever v decides and is not it
  const int64_t along_v = p.index_stride[plan.v];
  for (int d = 0; along_v > 0 && d < p.dims; ++d)
    if (d != plan.v && p.index_stride[d] == (along_v > 1 ? 1 : 0)) plan.r = d;
  plan.v_step = along_v > 1 ? kTileV : kRow;
  plan.r_step = kTileR;
  plan.v_tiles = ceil_div(p.size[plan.v], plan.v_step);
  plan.r_tiles = plan.r >= 0 ? ceil_div(p.size[plan.r], plan.r_step) : 1;
  plan.tiles = plan.v_tiles * plan.r_tiles;
  for (int d = 0; d < p.dims; ++d)
    if (d != plan.v && d != plan.r) plan.tiles *= p.size[d];
  return plan;
}

// Bit i of bits is set where element first + i is kept, for i in [0, n); bits has room for ceil(n / 32) + 1
// words.
void keep_run(const DropoutParams& p, const RoundKeys& keys, int64_t first, int64_t n, uint32_t* bits) {
  const int skip = static_cast<int>(first % 4);  // words come in fours
  uint32_t raw[kRow / 32 + 3];
  const int64_t steps = ceil_div(n + skip, kElements);
  for (int64_t s = 0; s < steps; ++s) {
    const uint32_t kept = kept_bits(keys, static_cast<uint64_t>(first - skip + s * kElements),
                                    static_cast<uint32_t>(p.threshold));
    const int64_t at = s * kElements;
    if (at % 32 == 0) raw[at / 32] = 0;
    raw[at / 32] |= kept << (at % 32);
  }
  raw[ceil_div(steps * kElements, 32)] = 0;
  for (int64_t w = 0; w < ceil_div(n, 32); ++w)
    bits[w] = static_cast<uint32_t>((static_cast<uint64_t>(raw[w + 1]) << 32 | raw[w]) >> skip);
}

// Lane i of v where words[i] has this bit, else 0: bits, not a product, so that a dropped inf or nan is 0.
PYDL_INLINE vec<float> where_bit(vec<float> v, const uint32_t* words, uint32_t bit) {
  u32v word;
  memcpy(&word, words, sizeof word);
  return bit_cast<vec<float>>(((word & bit) != 0) & bit_cast<i32v>(v));
}
PYDL_INLINE vec<double> where_bit(vec<double> v, const uint32_t* words, uint32_t bit) {
  typedef uint32_t half __attribute__((vector_size(kVectorBytes / 2)));
  half word;
  memcpy(&word, words, sizeof word);
  return bit_cast<vec<double>>((__builtin_convertvector(word & bit, u64v) != 0) & bit_cast<i64v>(v));
}

// n <= lanes elements of x, `stride` apart.
template <class T>
PYDL_INLINE vec<acc_t<T>> gather(const T* x, int64_t stride, int64_t n) {
  if (stride == 1) return n == lanes<acc_t<T>> ? load(x) : load_n(x, n);
  T buffer[lanes<acc_t<T>>];
  memset(buffer, 0, sizeof buffer);
  for (int64_t i = 0; i < n; ++i) buffer[i] = x[i * stride];
  return load(buffer);
}

// One row of n elements, written densely: y[i] = pick(x[i * stride] * scale, i), pick zeroing what is
// dropped.
template <class T, class Pick>
PYDL_INLINE void row(const T* x, int64_t stride, T* y, int64_t n, acc_t<T> scale, bool streams,
                     const Pick& pick) {
  constexpr int kLanes = lanes<acc_t<T>>;
  auto put = [&](T* q, auto v) { streams ? stream(q, v) : store(q, v); };
  int64_t i = 0;
  if (stride == 1) {
    for (; i + kLanes <= n; i += kLanes) {
      prefetch_ahead(x + i);  // the rows to come
      put(y + i, pick(load(x + i) * scale, i));
    }
  } else if (stride == 0) {
    const vec<acc_t<T>> same = vec<acc_t<T>>{} + (gather(x, 1, 1) * scale)[0];
    for (; i + kLanes <= n; i += kLanes) put(y + i, pick(same, i));
  } else {
    for (; i + kLanes <= n; i += kLanes) put(y + i, pick(gather(x + i * stride, stride, kLanes) * scale, i));
  }
  if (i < n) store_n(y + i, pick(gather(x + i * stride, stride, n - i) * scale, i), n - i);
}

template <bool kStream, class T>
void tile(const DropoutParams& p, const Plan& plan, const RoundKeys& keys, int64_t t, bool past_cache) {
  const bool streams = kOneWalk<T> ? past_cache : kStream;
  using A = acc_t<T>;
  const A scale = static_cast<A>(p.scale);
  const int v = plan.v;
  const int64_t v0 = t % plan.v_tiles * plan.v_step, v_n = min_of(plan.v_step, p.size[v] - v0);
  t /= plan.v_tiles;
  const int64_t r0 = t % plan.r_tiles * plan.r_step;
  t /= plan.r_tiles;
  int64_t from = v0 * p.input_stride[v], to = v0, index = v0 * p.index_stride[v];
  for (int d = p.dims - 1; d >= 0; --d) {
    if (d == v || d == plan.r) continue;
    const int64_t k = t % p.size[d];
    t /= p.size[d];
    from += k * p.input_stride[d];
    to += k * p.output_stride[d];
    index += k * p.index_stride[d];
  }
  const T* x = static_cast<const T*>(p.input) + from;
  T* y = static_cast<T*>(p.output) + to;

  const int64_t r_n = plan.r >= 0 ? min_of(plan.r_step, p.size[plan.r] - r0) : 1;
  const int64_t x_step = plan.r >= 0 ? p.input_stride[plan.r] : 0,
                y_step = plan.r >= 0 ? p.output_stride[plan.r] : 0;
  if (p.index_stride[v] > 1) {                                             // words and memory cross
    uint32_t bits[kTileR / 32][kTileV + 16] __attribute__((aligned(64)));  // rows apart by no power of two
    for (int64_t i = 0; i < v_n; ++i) {
      uint32_t run[kTileR / 32];
      keep_run(p, keys, index + i * p.index_stride[v] + r0, r_n, run);
      for (int64_t w = 0; w < ceil_div(r_n, 32); ++w) bits[w][i] = run[w];
    }
    for (int64_t i = v_n; i % 16 != 0; ++i)  // what the last vector of a row reads beyond v_n
      for (int64_t w = 0; w < ceil_div(r_n, 32); ++w) bits[w][i] = 0;
    for (int64_t r = r0; r < r0 + r_n; ++r) {
      const uint32_t* words = bits[(r - r0) / 32];
      const uint32_t bit = 1u << ((r - r0) % 32);
      row(x + r * x_step, p.input_stride[v], y + r * y_step, v_n, scale, streams,
          [&](vec<A> value, int64_t i) { return where_bit(value, words + i, bit); });
    }
  } else if (p.index_stride[v] == 1) {  // words along memory, the same ones for every row of r
    uint32_t bits[kRow / 32 + 1];
    keep_run(p, keys, index, v_n, bits);
    for (int64_t r = r0; r < r0 + r_n; ++r)
      row(x + r * x_step, p.input_stride[v], y + r * y_step, v_n, scale, streams,
          [&](vec<A> value, int64_t i) { return where_lane(value, bits[i / 32] >> (i % 32)); });
  } else {  // one word for the row
    const uint32_t word = philox4x32_10(p.seed, static_cast<uint64_t>(index) / 4).word[index % 4];
    if (word < p.threshold)
      memset(y, 0, static_cast<size_t>(v_n) * sizeof(T));
    else
      row(x, p.input_stride[v], y, v_n, scale, streams, [](vec<A> value, int64_t) { return value; });
  }
}

// Whether every row starts at a whole vector and has no remainder.
template <class T>
bool rows_aligned(const DropoutParams& p, int v) {
  constexpr int kLanes = lanes<acc_t<T>>;
  if (reinterpret_cast<uintptr_t>(p.output) % kVectorBytes != 0 || p.size[v] % kLanes != 0) return false;
  for (int d = 0; d < p.dims; ++d)
    if (d != v && p.output_stride[d] % kLanes != 0) return false;
  return true;
}

}  // namespace

void dropout_strided(const DropoutParams& p, bool past_cache, const Parallel& parallel) {
  dispatch_rows(p.dtype, [&](auto type) {
    using T = decltype(type);
    const Plan plan = make_plan(p);
    const bool streams = past_cache && rows_aligned<T>(p, plan.v);
    parallel(plan.tiles, ceil_div(kGrain, ceil_div(p.numel, plan.tiles)), [&](int64_t begin, int64_t end) {
      const RoundKeys keys = round_keys(p.seed);
      for (int64_t t = begin; t < end; ++t)
        streams ? tile<!kOneWalk<T>, T>(p, plan, keys, t, true) : tile<false, T>(p, plan, keys, t, false);
      if (streams) stream_fence();
    });
  });
}

}  // namespace pydl::cpu::PYDL_ISA
