// Winograd weight gradient on the CPU, of 3 x 3, stride 1. See conv2d_winograd_points.h for the transforms.
//
//   V = B^T d B     of every tile and input channel     (36 frequencies)
//   Z = G g G^T     of every tile of the output gradient and output channel
//   D = V^T Z       one matrix product per frequency, summed over tiles
//   dW = A^T D A    of every pair of channels
//
// 36 multiplications per tile instead of 144. Tiles are taken in passes whose V and Z stay in L3. Within a
// pass a task is a block of input channels with a panel of output channels: it multiplies 96 tiles at a time,
// so that one frequency's piece of V, Z and D lies in L1. D is kept between passes only where there are
// several; with one pass, which is when there are many channels and few tiles, each task turns its piece of D
// into weights at once.
//
// Every element of D is summed by one task per pass, in the order of the tiles, so the result does not depend
// on the number of threads. Never stored: padding, reordered images.
#include "kernels/conv2d.h"

#include "kernels/cpu/conv2d_algorithms.h"
#include "kernels/cpu/conv2d_winograd_gemm.h"
#include "kernels/cpu/conv2d_winograd_tasks.h"
#include "kernels/cpu/conv2d_winograd_tiles.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int L = lanes<float>;

// A frequency-major array: channels of tile t at t * tile, frequency f at f * frequency.
struct Transformed {
  int64_t tile, frequency, floats;

  Transformed(int64_t channels, int64_t tiles) {
    tile =
        (ceil_div(channels, 16) | 1) * 16;  // an odd number of cache lines: tiles spread over all cache sets
    frequency = tile * tiles + 48;  // no power of two, which would put all frequencies into a few cache sets
    floats = piece(frequency * kFrequencies);
  }
};

struct Plan {
  Tiles tiles;
  int64_t pass_tiles, passes;
  int64_t rows;  // input channels per task
  int64_t blocks, panels;
  int64_t d_stride;  // between frequencies of D
  int64_t d_floats;  // of one task
  Transformed v, z;

  static int64_t tiles_per_pass(const Conv2dParams& p, int64_t tiles) {
    const int64_t per_tile = kFrequencies * (ceil_div(p.in_channels, L) + ceil_div(p.out_channels, L)) * L;
    const int64_t most = max_of(kDepth, kPassFloats / per_tile / kDepth * kDepth);
    return max_of(1, ceil_div(tiles, max_of(1, ceil_div(tiles, most))));
  }

  explicit Plan(const Conv2dParams& p)
      : tiles(p.batch, p.out_height, p.out_width),
        pass_tiles(tiles_per_pass(p, tiles.count())),
        passes(max_of(1, ceil_div(tiles.count(), pass_tiles))),
        v(p.in_channels, pass_tiles),
        z(p.out_channels, pass_tiles) {
    panels = ceil_div(p.out_channels, kPanel);
    blocks = ceil_div(p.in_channels, kRowBlocks * kMaxRows);
    rows = ceil_div(p.in_channels, blocks);
    d_stride = rows * kPanel + 48;
    d_floats = piece(kFrequencies * d_stride);
  }

  int64_t scratch_floats(int64_t threads) const {
    return v.floats + z.floats + d_floats * (passes > 1 ? blocks * panels : threads);
  }

  static constexpr int64_t kDepth = 96;                         // tiles per multiplication
  static constexpr int64_t kPassFloats = 12 << 20 >> 2;         // 12 MB of V and Z
  static constexpr int64_t kRowBlocks = kMaxRows > 8 ? 5 : 10;  // about 64 input channels
};

// dW of input channels [c, c + rows) and output channels from o on, out of d[frequency][row][lane].
template <class T>
void finish(const Conv2dParams& p, const Plan& plan, int64_t c, int64_t rows, int64_t o, const float* d) {
  const int64_t* s = p.weight_stride;
  constexpr int kSome = 16;
  alignas(64) float taps[kSome * 9 * L];
  for (int64_t i = 0; i < rows; i += kSome) {
    const int64_t some = min_of(kSome, rows - i);
    for (int64_t half = 0; half < 2 && o + half * L < p.out_channels; ++half) {
      const int64_t width = min_of(L, p.out_channels - o - half * L);
      for (int64_t k = 0; k < some; ++k) {
        const float* from = d + (i + k) * kPanel + half * L;
        vec<float> column[kPoints][3];
#pragma GCC unroll 6
        for (int q = 0; q < kPoints; ++q) {
          vec<float> m[kPoints];
#pragma GCC unroll 6
          for (int r = 0; r < kPoints; ++r) {
            const float* at = from + (r * kPoints + q) * plan.d_stride;
            m[r] = load(at);
            prefetch(at + 2 * kPanel);  // 36 streams are more than the hardware follows
          }
          transform_weight_gradient_1d(m, column[q]);
        }
#pragma GCC unroll 3
        for (int r = 0; r < 3; ++r) {
          vec<float> m[kPoints], w[3];
#pragma GCC unroll 6
          for (int q = 0; q < kPoints; ++q) m[q] = column[q][r];
          transform_weight_gradient_1d(m, w);
#pragma GCC unroll 3
          for (int q = 0; q < 3; ++q) store(taps + (k * 9 + r * 3 + q) * L, w[q]);
        }
      }
      T* to = static_cast<T*>(p.weight) + (o + half * L) * s[0] + (c + i) * s[1];
      if (s[3] == 1 && s[2] == 3 && (s[1] == 9 || some == 1)) {
        transpose_out(taps, L, some * 9, width, to, s[0]);
      } else if (s[1] == 1) {
        for (int tap = 0; tap < 9; ++tap)
          transpose_out(taps + tap * L, 9 * L, some, width, to + tap / 3 * s[2] + tap % 3 * s[3], s[0]);
      } else {
        for (int64_t j = 0; j < some * 9; ++j)
          for (int64_t l = 0; l < width; ++l)
            store_n(to + l * s[0] + j / 9 * s[1] + j % 9 / 3 * s[2] + j % 3 * s[3],
                    vec<float>{} + taps[j * L + l], 1);
      }
    }
  }
}

template <class T>
void run(const Conv2dParams& p, const Parallel& parallel) {
  const Plan plan(p);
  const Tiles& tiles = plan.tiles;
  const Image input{p.input,           p.input_stride[0], p.input_stride[1], p.input_stride[2],
                    p.input_stride[3], p.in_channels,     p.in_height,       p.in_width};
  const Image gradient{p.output,           p.output_stride[0], p.output_stride[1], p.output_stride[2],
                       p.output_stride[3], p.out_channels,     p.out_height,       p.out_width};
  float *v = static_cast<float*>(p.scratch), *z = v + plan.v.floats, *d = z + plan.z.floats;
  for (int64_t pass = 0; pass < plan.passes; ++pass) {
    const int64_t begin = pass * plan.pass_tiles, end = min_of(begin + plan.pass_tiles, tiles.count());
    // strips of a row where channels are not adjacent, a few tiles where they are
    const int64_t some = max_of(4, min_of(kStripTiles, tiles.full_columns)),
                  groups = ceil_div(end - begin, some);
    run_tasks(parallel, parallel.threads, 2 * groups, [&](int64_t task, int64_t) {
      const int64_t first = begin + task / 2 * some, last = min_of(first + some, end);
      if (task % 2)
        transform_tiles<T, true>(gradient, tiles, first, last, 0, 0, z + (first - begin) * plan.z.tile,
                                 plan.z.tile, plan.z.frequency);
      else
        transform_tiles<T, false>(input, tiles, first, last, p.pad_top, p.pad_left,
                                  v + (first - begin) * plan.v.tile, plan.v.tile, plan.v.frequency);
    });
    run_tasks(parallel, parallel.threads, plan.blocks * plan.panels, [&](int64_t task, int64_t worker) {
      const int64_t c = task / plan.panels * plan.rows, o = task % plan.panels * kPanel;
      const int64_t rows = min_of(plan.rows, p.in_channels - c);
      float* sum = d + (plan.passes > 1 ? task : worker) * plan.d_floats;
      const Ahead ahead{plan.v.frequency, plan.z.frequency};
      for (int f = 0; f < kFrequencies; ++f) {
        int64_t first, last;
        tiles.range(f / kPoints, f % kPoints, begin, end, first, last);
        float* to = sum + f * plan.d_stride;
        if (pass == 0 && first >= last) memset(to, 0, static_cast<size_t>(rows * kPanel) * sizeof(float));
        for (int64_t t = first; t < last; t += Plan::kDepth)
          gemm<Rows::adjacent>(rows, p.out_channels - o, min_of(Plan::kDepth, last - t),
                               v + f * plan.v.frequency + t * plan.v.tile + c, plan.v.tile,
                               z + f * plan.z.frequency + t * plan.z.tile + o, plan.z.tile, to, kPanel,
                               pass > 0 || t > first, &ahead);
      }
      if (pass == plan.passes - 1) finish<T>(p, plan, c, rows, o, sum);
    });
  }
}

}  // namespace

int64_t conv2d_winograd_weight_scratch(const Conv2dParams& p, int64_t threads) {
  return Plan(p).scratch_floats(threads) * static_cast<int64_t>(sizeof(float));
}

void conv2d_winograd_backward_weight(const Conv2dParams& p, const Parallel& parallel) {
  switch (p.dtype) {
    case DType::bf16:
      return run<bf16>(p, parallel);
    case DType::f16:
      return run<f16>(p, parallel);
    default:
      return run<float>(p, parallel);
  }
}

}  // namespace pydl::cpu::PYDL_ISA
