// 1x1 kernels with a stride, or over planes: the pixels that are read are copied, channels side by side, as are those
// that are written. What is left is a 1x1 kernel of stride 1 over channels_last images, for whichever algorithm is best.
#include <string.h>

#include "kernels/cpu/conv2d/im2col.h"

namespace pydl::cpu::PYDL_ISA::implicit::gathered {
namespace {

constexpr int64_t L = lanes<float>;
constexpr int64_t kChannels = 2 * L;  // of a task over planes: at least a line of the copy
constexpr int64_t kPixels = 128;      // that are transposed at a time

// Numbers from pixel to pixel of a copy: whole vectors, and no power of two.
int64_t pitch_of(int64_t channels) {
  const int64_t whole = ceil_div(channels, L) * L;
  return whole % 256 == 0 ? whole + L : whole;
}

// The pixels of a tensor at every step_y-th row and step_x-th column, of which there are height x width an image.
struct Grid {
  float* data;
  const int64_t* stride;
  int64_t batch, channels, height, width, step_y, step_x;
  int64_t all_rows, all_columns;  // of the tensor

  bool by_channel() const { return stride[1] == 1; }
  float* at(int64_t image, int64_t channel, int64_t row, int64_t column) const {
    return data + image * stride[0] + channel * stride[1] + row * step_y * stride[2] +
           column * step_x * stride[3];
  }
};
Grid grid_of_input(const Conv2dParams& p) {
  return {static_cast<float*>(p.input),
          p.input_stride,
          p.batch,
          p.in_channels,
          p.out_height,
          p.out_width,
          p.stride_height,
          p.stride_width,
          p.in_height,
          p.in_width};
}
Grid grid_of_output(const Conv2dParams& p) {
  return {static_cast<float*>(p.output),
          p.output_stride,
          p.batch,
          p.out_channels,
          p.out_height,
          p.out_width,
          1,
          1,
          p.out_height,
          p.out_width};
}

// Calls body(image, first channel, channels, first pixel, pixels, runs, number of runs) for a vector of channels and a
// few pixels at a time, which may be at work on several threads.
template <class F>
void each_square(const Grid& g, const Parallel& parallel, const F& body) {
  const int64_t blocks = ceil_div(g.channels, kChannels), pixels = g.height * g.width;
  parallel(g.batch * blocks, 1, [&](int64_t begin, int64_t end) {
    Run runs[kPixels];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / blocks, from = task % blocks * kChannels,
                    to = min_of(from + kChannels, g.channels);
      for (int64_t first = 0; first < pixels; first += kPixels) {
        const int64_t count = min_of(kPixels, pixels - first);
        const int64_t n = cut_runs(first, count, g.height, g.width, runs);
        for (int64_t c = from; c < to; c += L) body(image, c, min_of(L, to - c), first, count, runs, n);
      }
    }
  });
}

void gather(const Grid& g, float* to, int64_t pitch, const Parallel& parallel) {
  if (g.by_channel())
    return parallel(g.batch * g.height, 1, [&](int64_t begin, int64_t end) {
      for (int64_t line = begin; line < end; ++line)
        for (int64_t x = 0; x < g.width; ++x)
          copy_strided(to + (line * g.width + x) * pitch, g.at(line / g.height, 0, line % g.height, x), 1,
                       g.channels);
    });
  each_square(g, parallel,
              [&](int64_t image, int64_t c, int64_t channels, int64_t first, int64_t count, const Run* runs,
                  int64_t n) {
                float lines[L * kPixels];
                for (int64_t r = 0; r < n; ++r)
                  for (int64_t i = 0; i < channels; ++i) {
                    const float* from = g.at(image, c + i, runs[r].row, runs[r].column);
                    float* line = lines + i * kPixels + runs[r].at;
                    const int64_t step = g.step_x * g.stride[3];
                    if (step == 2)
                      copy_span<2>(line, from, 0, runs[r].count, runs[r].count);
                    else
                      copy_strided(line, from, step, runs[r].count);
                  }
                transpose_in(lines, kPixels, channels, count,
                             to + (image * g.height * g.width + first) * pitch + c, pitch);
              });
}

// The way back: the tensor's other pixels become zero.
void scatter(const float* from, int64_t pitch, const Grid& g, const Parallel& parallel) {
  const bool sparse = g.step_y * g.step_x > 1;
  if (g.by_channel())
    return parallel(g.batch * g.all_rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t line = begin; line < end; ++line) {
        const int64_t image = line / g.all_rows, y = line % g.all_rows;
        const bool read = y % g.step_y == 0 && y / g.step_y < g.height;
        float* to = g.data + image * g.stride[0] + y * g.stride[2];
        for (int64_t x = 0; x < g.all_columns; ++x, to += g.stride[3])
          if (read && x % g.step_x == 0 && x / g.step_x < g.width)
            copy_strided(to, from + ((image * g.height + y / g.step_y) * g.width + x / g.step_x) * pitch, 1,
                         g.channels);
          else
            memset(to, 0, static_cast<size_t>(g.channels) * sizeof(float));
      }
    });
  each_square(g, parallel,
              [&](int64_t image, int64_t c, int64_t channels, int64_t first, int64_t count, const Run* runs,
                  int64_t n) {
                float lines[L * kPixels];
                transpose_out(from + (image * g.height * g.width + first) * pitch + c, pitch, count, channels,
                              lines, kPixels);
                for (int64_t i = 0; i < channels; ++i) {
                  if (sparse && first == 0)
                    for (int64_t y = 0; y < g.all_rows; ++y) {
                      float* row = g.data + image * g.stride[0] + (c + i) * g.stride[1] + y * g.stride[2];
                      for (int64_t x = 0; x < g.all_columns; ++x) row[x * g.stride[3]] = 0;
                    }
                  for (int64_t r = 0; r < n; ++r) {
                    float* to = g.at(image, c + i, runs[r].row, runs[r].column);
                    const float* line = lines + i * kPixels + runs[r].at;
                    for (int64_t x = 0; x < runs[r].count; ++x) to[x * g.step_x * g.stride[3]] = line[x];
                  }
                }
              });
}

// The problem that is left, and how many numbers the copies have: none of what can stay where it lies.
struct Rest {
  Conv2dParams p;
  int64_t input, output;

  explicit Rest(const Conv2dParams& whole) : p(whole), input(0), output(0) {
    p.in_height = p.out_height;
    p.in_width = p.out_width;
    p.stride_height = p.stride_width = 1;
    const bool strided = whole.stride_height * whole.stride_width > 1;
    if (strided || p.input_stride[1] != 1) input = copied(p.in_channels, p.input_stride);
    if (p.output_stride[1] != 1) output = copied(p.out_channels, p.output_stride);
  }

 private:
  int64_t copied(int64_t channels, int64_t* stride) const {
    stride[1] = 1;
    stride[3] = pitch_of(channels);
    stride[2] = p.out_width * stride[3];
    stride[0] = p.out_height * stride[2];
    return p.batch * stride[0];
  }
};

}  // namespace

bool serves(const Conv2dParams& p, Conv2dPass) {
  const bool one = p.kernel_height == 1 && p.kernel_width == 1 && p.pad_top == 0 && p.pad_left == 0 &&
                   (p.out_height - 1) * p.stride_height < p.in_height &&
                   (p.out_width - 1) * p.stride_width < p.in_width;
  const bool whole =
      p.stride_height * p.stride_width > 1 || (p.in_height == p.out_height && p.in_width == p.out_width);
  if (p.dtype != DType::f32 || p.groups != 1 || !one || !whole) return false;
  const Rest rest(p);
  return rest.input + rest.output > 0;
}

int64_t scratch(const Conv2dParams& p, Conv2dPass pass, int64_t threads) {
  const Rest rest(p);
  return Pieces::bytes<float>(rest.input) + Pieces::bytes<float>(rest.output) +
         conv2d_plan(rest.p, pass, threads, nullptr, true).scratch;
}

void run(const Conv2dParams& p, Conv2dPass pass, const Parallel& parallel) {
  Rest rest(p);
  Conv2dParams& left = rest.p;
  Pieces pieces{static_cast<char*>(p.scratch)};
  const int64_t in_pitch = left.input_stride[3], out_pitch = left.output_stride[3];
  if (rest.input) {
    float* copy = pieces.take<float>(rest.input);
    left.input = copy;
    if (pass != Conv2dPass::backward_input) gather(grid_of_input(p), copy, in_pitch, parallel);
  }
  if (rest.output) {
    float* copy = pieces.take<float>(rest.output);
    left.output = copy;
    if (pass != Conv2dPass::forward) gather(grid_of_output(p), copy, out_pitch, parallel);
  }
  left.scratch = pieces.next;
  conv2d_run(conv2d_plan(left, pass, parallel.threads, nullptr, true), left, pass, parallel);
  if (rest.input && pass == Conv2dPass::backward_input)
    scatter(static_cast<float*>(left.input), in_pitch, grid_of_input(p), parallel);
  if (rest.output && pass == Conv2dPass::forward)
    scatter(static_cast<float*>(left.output), out_pitch, grid_of_output(p), parallel);
}

}  // namespace pydl::cpu::PYDL_ISA::implicit::gathered
