#include "csrc/volumes.h"

#include "csrc/scratch.h"

namespace pydl {
namespace {

// A few bytes, without a call of memcpy for the runs of a 3x3 kernel or of three channels.
void copy_words(char* to, const char* from, int64_t bytes) {
  if (bytes > 64) {
    memcpy(to, from, static_cast<size_t>(bytes));
    return;
  }
  for (; bytes >= 8; bytes -= 8, to += 8, from += 8) memcpy(to, from, 8);
  if (bytes >= 4) memcpy(to, from, 4), bytes -= 4, to += 4, from += 4;
  if (bytes >= 2) memcpy(to, from, 2);
}

}  // namespace

void copy_runs(char* to, const char* from, int64_t element, const Runs& runs, const Parallel& parallel) {
  const int64_t* size = runs.sizes;
  const int64_t inner = size[2] * size[3], bytes = runs.run * element;
  constexpr int64_t kTaskBytes = 1 << 16;
  const int64_t grain = max_of(kTaskBytes / max_of(inner * bytes, 1), 1);
  parallel(size[0] * size[1], grain, [&](int64_t first, int64_t last) {
    const auto offset = [&](size_t d, int64_t at) {
      const bool ordered = d == runs.ordered && !runs.order.empty();
      return (ordered ? runs.order[static_cast<size_t>(at)] : at) * runs.strides[d] * element;
    };
    for (int64_t outer = first; outer < last; ++outer) {
      const char* block = from + offset(0, outer / size[1]) + offset(1, outer % size[1]);
      char* target = to + outer * inner * bytes;
      for (int64_t i = 0; i < size[2]; ++i) {
        const char* row = block + offset(2, i);
        for (int64_t j = 0; j < size[3]; ++j, target += bytes) copy_words(target, row + offset(3, j), bytes);
      }
    }
  });
}

DepthOrder::DepthOrder(int64_t depth, int64_t step) : step_(step) {
  for (int64_t first = 0; first < step; ++first) {
    begin_.push_back(static_cast<int64_t>(depths_.size()));
    for (int64_t d = first; d < depth; d += step) depths_.push_back(d);
  }
}

Volume volume_of(const Tensor& t, bool channels_last) {
  const std::vector<int64_t> sizes = sizes_of(t);
  const bool last = has_strides(t, channels_last_strides(sizes));
  const bool rows = t.is_contiguous();
  Volume v{};
  if (!last && !rows) {
    Tensor copy = channels_last ? empty_strided(t, t.scalar_type(), sizes, channels_last_strides(sizes))
                                : empty(t, t.scalar_type(), sizes);
    torch::stable::copy_(copy, t);
    v.keeps = copy;
  } else {
    v.keeps = t;
    channels_last = last && (channels_last || !rows);
  }
  v.data = static_cast<char*>(const_cast<void*>(v.keeps->const_data_ptr()));
  std::copy(sizes.begin(), sizes.end(), v.sizes);
  const int64_t channels = sizes[1], plane = sizes[3] * sizes[4], all = channels * sizes[2] * plane;
  v.channels_last = channels_last;
  v.n = all;
  v.c = channels_last ? 1 : sizes[2] * plane;
  v.w = channels_last ? channels : 1;
  v.h = sizes[4] * v.w;
  v.d = plane * v.w;
  return v;
}

Volume channels_of(const Volume& v, int64_t first, int64_t count, int64_t element) {
  Volume part = v;
  part.data += first * v.c * element;
  part.sizes[1] = count;
  return part;
}

Volume deep_channels(const Volume& v, const DepthOrder& order, int64_t element, const Parallel& parallel) {
  const int64_t images = v.sizes[0], channels = v.sizes[1], depth = v.sizes[2], plane = v.plane();
  Volume to = v;
  if (channels == 1 && order.step() == 1) {  // depths are channels as they lie
    to.c = v.d;
    return to;
  }
  to.data = static_cast<char*>(Scratch::of_copies(images * channels * depth * plane * element, 0));
  if (v.channels_last) {
    to.d = channels;
    to.w = depth * channels;
    to.h = v.sizes[4] * to.w;
    copy_runs(to.data, v.data, element,
              {{images, v.sizes[3], v.sizes[4], depth}, {v.n, v.h, v.w, v.d}, channels, 3, order.depths()},
              parallel);
  } else {
    to.c = plane;
    to.d = channels * plane;
    copy_runs(to.data, v.data, element,
              {{images, depth, channels, 1}, {v.n, v.d, v.c, 0}, plane, 1, order.depths()}, parallel);
  }
  to.n = depth * channels * plane;
  return to;
}

Volume deep_images(const Volume& v, const DepthOrder& order, int64_t element, size_t which,
                   const Parallel& parallel) {
  const int64_t images = v.sizes[0], channels = v.sizes[1], depth = v.sizes[2], plane = v.plane();
  Volume to = v;
  to.data = static_cast<char*>(Scratch::of_copies(images * channels * depth * plane * element, which));
  to.n = channels * plane;
  to.d = images * to.n;
  if (!v.channels_last) {
    to.c = plane;
    copy_runs(to.data, v.data, element,
              {{depth, images, channels, 1}, {v.d, v.n, v.c, 0}, plane, 0, order.depths()}, parallel);
  } else {
    const bool whole = v.w == channels;
    to.w = channels;
    to.h = v.sizes[4] * to.w;
    copy_runs(to.data, v.data, element,
              {{depth, images, whole ? 1 : plane, 1},
               {v.d, v.n, v.w, 0},
               whole ? plane * channels : channels,
               0,
               order.depths()},
              parallel);
  }
  return to;
}

void fill_depth(const Volume& v, int64_t at, const char* numbers, int64_t element, const Parallel& parallel) {
  const int64_t channels = v.sizes[1], plane = v.plane();
  // runs of equal numbers in rows of pixels, of all channels in turn where they lie side by side
  const bool rows = v.w == 1 && v.c != 1;
  const int64_t runs = rows ? channels : plane, run = rows ? plane : channels;
  parallel(v.sizes[0] * runs, max_of((1 << 14) / max_of(run, 1), 1), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t within = i % runs;
      char* to = v.data + (i / runs * v.n + at * v.d + within * (rows ? v.c : v.w)) * element;
      if (numbers == nullptr) {
        memset(to, 0, static_cast<size_t>(run * element));
      } else if (rows) {
        for (int64_t x = 0; x < run; ++x) copy_words(to + x * element, numbers + within * element, element);
      } else {
        copy_words(to, numbers, run * element);
      }
    }
  });
}

}  // namespace pydl
