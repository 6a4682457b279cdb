// The numbers that windows' sums are divided by (avg_pool2d.cpp, avg_pool3d.cpp).
#pragma once

#include "csrc/torch.h"
#include "kernels/avg_pool2d.h"

namespace pydl {

// 1 / (number of pixels in window o along one dimension), for every o: those of the image, or those of the
// padded image too.
inline std::vector<double> scales(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad,
                                  bool count_include_pad) {
  std::vector<double> scale(static_cast<size_t>(out));
  for (int64_t o = 0; o < out; ++o) {
    const int64_t begin = o * stride - pad, end = min_of(begin + kernel, in + pad);
    const int64_t count = count_include_pad ? end - begin : min_of(end, in) - max_of(begin, 0);
    scale[static_cast<size_t>(o)] = count > 0 ? 1.0 / static_cast<double>(count) : 0.0;
  }
  return scale;
}

inline bool all_equal(const std::vector<double>& v) {
  for (double a : v)
    if (a != v[0]) return false;
  return true;
}

// The scales of one call, in the type that the kernel accumulates in.
class Scales {
 public:
  Scales(AvgPool2dParams& p, bool count_include_pad, int64_t divisor) {
    if (divisor != 0) {
      p.scale = 1.0 / static_cast<double>(divisor);
      return;
    }
    const auto rows =
        scales(p.in_height, p.out_height, p.kernel_height, p.stride_height, p.pad_top, count_include_pad);
    const auto columns =
        scales(p.in_width, p.out_width, p.kernel_width, p.stride_width, p.pad_left, count_include_pad);
    if (all_equal(rows) && all_equal(columns)) {
      p.scale = rows[0] * columns[0];
    } else if (p.dtype == DType::f64) {
      p.row_scale = (doubles_[0] = rows).data();
      p.column_scale = (doubles_[1] = columns).data();
    } else {
      floats_[0].assign(rows.begin(), rows.end());
      floats_[1].assign(columns.begin(), columns.end());
      p.row_scale = floats_[0].data();
      p.column_scale = floats_[1].data();
    }
  }

 private:
  std::vector<double> doubles_[2];
  std::vector<float> floats_[2];
};

}  // namespace pydl
