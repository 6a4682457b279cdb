// What every kernel of kernels/cuda is written in: 16-byte packs, dtypes, warp and block reductions,
// launches.
//
// Kernels are CUDA C++ for nvcc, and plain C++ for the host compiler beside the host twin of grids, warps and
// shared memory (tests/support/cuda_on_host), which runs them block by block without a GPU. So they use what this
// header and ptx.h offer, and nothing of the CUDA headers: shared memory through PYDL_SHARED, launches
// through launch().
#pragma once

#include "kernels/common.h"

#if defined(__CUDACC__)
#define PYDL_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define PYDL_DEVICE __device__ __forceinline__
#define PYDL_CONSTANT const __grid_constant__  // a parameter struct, read where it lies and never copied
#else
#include "twin.h"
#define PYDL_DEVICE static inline __attribute__((always_inline))
#define PYDL_CONSTANT const
#endif

#include "kernels/cuda/ptx.h"

namespace pydl::cuda {

// Launchers return cudaError_t as a number, 0 for none; csrc turns it into an error.
#if defined(__CUDACC__)
template <class... Parameters, class... Arguments>
inline int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, void* stream,
                  const Arguments&... arguments) {
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0,
           static_cast<cudaStream_t>(stream)>>>(arguments...);
  return static_cast<int>(cudaGetLastError());
}
#else
template <class... Parameters, class... Arguments>
inline int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, void*,
                  const Arguments&... arguments) {
  return twin::run(reinterpret_cast<const void*>(kernel), blocks, threads, [&] { kernel(arguments...); });
}
#endif

// A number as a type, for generic lambdas.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// ---- dtypes: arithmetic is in acc_t<T>

PYDL_DEVICE float widen(float x) { return x; }
PYDL_DEVICE double widen(double x) { return x; }
PYDL_DEVICE float widen(bf16 x) { return ptx::float_of_bf16(x.bits); }
PYDL_DEVICE float widen(f16 x) { return ptx::float_of_f16(x.bits); }

template <class T>
struct Narrow;
template <>
struct Narrow<float> {
  static PYDL_METHOD float of(float x) { return x; }
};
template <>
struct Narrow<double> {
  static PYDL_METHOD double of(double x) { return x; }
};
template <>
struct Narrow<bf16> {
  static PYDL_METHOD bf16 of(float x) { return {ptx::bf16_of_float(x)}; }
};
template <>
struct Narrow<f16> {
  static PYDL_METHOD f16 of(float x) { return {ptx::f16_of_float(x)}; }
};
// Rounds to T, to nearest even.
template <class T>
PYDL_DEVICE T narrow(acc_t<T> x) {
  return Narrow<T>::of(x);
}

// A number whose dtype is known at run time: losses, class weights, parameters of a channel.
template <class A>
PYDL_DEVICE A read_as(DType dtype, const void* data, int64_t i) {
  switch (dtype) {
    case DType::f32:
      return static_cast<A>(static_cast<const float*>(data)[i]);
    case DType::f64:
      return static_cast<A>(static_cast<const double*>(data)[i]);
    case DType::bf16:
      return static_cast<A>(widen(static_cast<const bf16*>(data)[i]));
    case DType::f16:
      return static_cast<A>(widen(static_cast<const f16*>(data)[i]));
  }
  return A(0);
}
template <class A>
PYDL_DEVICE void write_as(DType dtype, void* data, int64_t i, A x) {
  switch (dtype) {
    case DType::f32:
      static_cast<float*>(data)[i] = static_cast<float>(x);
      break;
    case DType::f64:
      static_cast<double*>(data)[i] = static_cast<double>(x);
      break;
    case DType::bf16:
      static_cast<bf16*>(data)[i] = narrow<bf16>(static_cast<float>(x));
      break;
    case DType::f16:
      static_cast<f16*>(data)[i] = narrow<f16>(static_cast<float>(x));
      break;
  }
}

// ---- packs: the elements of one 16-byte access

template <class T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

template <class T>
struct alignas(16) Pack {
  T value[kPack<T>];
};

template <class T>
PYDL_DEVICE Pack<T> load_pack(const T* from) {
  const uint4 raw = ptx::load16(from);
  Pack<T> pack;
  memcpy(&pack, &raw, 16);
  return pack;
}
template <class T>
PYDL_DEVICE void store_pack(T* to, const Pack<T>& pack) {
  uint4 raw;
  memcpy(&raw, &pack, 16);
  ptx::store16(to, raw);
}
// The same for data that is soon read again.
template <class T>
PYDL_DEVICE Pack<T> load_pack_cached(const T* from) {
  const uint4 raw = ptx::load16_cached(from);
  Pack<T> pack;
  memcpy(&pack, &raw, 16);
  return pack;
}
template <class T>
PYDL_DEVICE void store_pack_cached(T* to, const Pack<T>& pack) {
  uint4 raw;
  memcpy(&raw, &pack, 16);
  ptx::store16_cached(to, raw);
}

// Elements before the first address that is a multiple of 16 bytes, at most n.
template <class T>
PYDL_DEVICE int64_t misaligned(const T* data, int64_t n) {
  const int64_t past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(data) % 16);
  return min_of(n, past == 0 ? 0 : (16 - past) / static_cast<int64_t>(sizeof(T)));
}
PYDL_DEVICE bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// ---- quotients by a number that is known before the launch

struct Divisor {
  uint32_t divisor, factor, shift;
  Divisor() = default;
  // a divisor of 0 stands for one too large
  explicit Divisor(int64_t d)
      : divisor(d < (int64_t{1} << 30) ? static_cast<uint32_t>(d) : 0), factor(0), shift(0) {
    if (divisor == 0) return;
    while ((uint64_t{1} << shift) < divisor) ++shift;
    factor = static_cast<uint32_t>((((uint64_t{1} << shift) - divisor) << 32) / divisor + 1);
  }
  // n / divisor for n < 2^31
  PYDL_METHOD uint32_t quotient(uint32_t n) const {
    const uint32_t high = static_cast<uint32_t>(static_cast<uint64_t>(n) * factor >> 32);
    return (high + n) >> shift;
  }
};

// ---- reductions in a fixed order

template <class A>
PYDL_DEVICE A warp_sum(A x) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kAllLanes, x, distance);
  return x;
}

// Blocks of 256 that a multiprocessor shall hold at least. Not asked (0), ptxas takes registers to the next step of
// occupancy and keeps what is over in memory: one or two in float64, and inside of loops on sm_100.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
template <class T>
constexpr int kLeastBlocks = 2;
#else
template <class T>
constexpr int kLeastBlocks = sizeof(acc_t<T>) == 8 ? 2 : 0;
#endif

// The sum over a block of kThreads, for every thread; `shared` holds kThreads / kWarp numbers and may be used
// again after the next barrier.
template <int kThreads, class A>
PYDL_DEVICE A block_sum(A x, A* shared) {
  x = warp_sum(x);
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = x;
  __syncthreads();
  A sum = 0;
#pragma unroll
  for (int w = 0; w < kThreads / kWarp; ++w) sum += shared[w];
  return sum;
}

}  // namespace pydl::cuda
