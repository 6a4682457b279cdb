#include "kernels/matmul.h"

#include "kernels/cpu/base/activation.h"
#include "kernels/cpu/base/simd.h"

namespace pydl::cpu::PYDL_ISA {
namespace {
template <class T>
acc_t<T> at(const Matrix& m, int64_t i, int64_t j) { return load_n(static_cast<const T*>(m.data) + i * m.row + j * m.column, 1)[0]; }
}  // namespace

int64_t matmul_scratch(const MatmulParams&, int64_t) { return 64; }
void matmul(const MatmulParams& p, const Parallel&) {
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    for (int64_t i = 0; i < p.rows; ++i)
      for (int64_t j = 0; j < p.columns; ++j) {
        A sum = p.bias ? load_n(static_cast<const T*>(p.bias) + j, 1)[0] : A(0);
        for (int64_t k = 0; k < p.depth; ++k) sum += at<T>(p.left, i, k) * at<T>(p.right, k, j);
        store_n(static_cast<T*>(p.output.data) + i * p.output.row + j, activate<A>(vec<A>{} + sum, p.activation), 1);
      }
  });
}
int64_t column_sums_scratch(const ColumnSumsParams&) { return 64; }
void column_sums(const ColumnSumsParams& p, const Parallel&) {
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    for (int64_t j = 0; j < p.columns; ++j) {
      acc_t<T> sum = 0;
      for (int64_t i = 0; i < p.rows; ++i) sum += at<T>(p.input, i, j);
      store_n(static_cast<T*>(p.sums) + j, vec<acc_t<T>>{} + sum, 1);
    }
  });
}
}  // namespace pydl::cpu::PYDL_ISA
