// Rows times one panel of columns: the register blocks of microkernel.h, one under the other.
//
//   result[i][j] (+)= alpha * (bias[j] + sum_k left(i, k) * right[k][j])       i < rows, j < columns <= kNr
#pragma once

#include "kernels/cpu/gemm/microkernel.h"

namespace pydl::cpu::PYDL_ISA::gemm {

template <class A>
static constexpr int kTile = kMr * kNr<A>;  // elements of a register block's result

// k that are summed in one go: a register block of left (14 KB) stays in L1, and rounding errors grow with the root of it
// and of the number of such parts.
static constexpr int64_t kDepth = 256;
// Elements between packed rows of left: more than kDepth, and no power of two, so that rows fall into different sets.
static constexpr int64_t kPitch = 272;

// Steps of the depth between prefetches: so few lines at a time that the loads of the multiply-adds need not wait.
static constexpr int64_t kFetchSteps = 16;

// Rows that are read next, fetched into the second cache some lines each turn: its multiply-adds hide them.
class Ahead {
 public:
  static constexpr int kMost = 5;  // calls of add
  // Fetches all that was added, in so many turns.
  void spread_over(int64_t turns) {
    int64_t lines = 0;
    for (int i = 0; i < count_; ++i) lines += of_[i].count * ceil_div(of_[i].bytes, kLine);
    per_turn_ = ceil_div(lines, max_of(turns, 1));
  }
  void add(const void* data, int64_t pitch, int64_t bytes, int64_t count) {  // pitch in bytes
    if (count > 0) of_[count_++] = {static_cast<const char*>(data), pitch, bytes, count};
  }
  PYDL_INLINE void fetch() {
    for (int64_t i = 0; i < per_turn_ && at_ < count_; ++i) {
      Rows& rows = of_[at_];
      prefetch_l2(rows.data + byte_);
      if ((byte_ += kLine) < rows.bytes) continue;
      byte_ = 0;
      rows.data += rows.pitch;
      if (--rows.count == 0) ++at_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  struct Rows {
    const char* data;
    int64_t pitch, bytes, count;
  };
  Rows of_[kMost];
  int at_ = 0, count_ = 0;
  int64_t per_turn_ = 0, byte_ = 0;
};

// The sums of elements E, which are of type acc_of<E>.
template <class E>
struct PanelProduct {
  using A = acc_of<E>;
  int64_t rows, columns, depth;
  const E* left;
  int64_t left_pitch;  // left(i, k) at left[i * left_pitch + k]
  bool left_columns;   // or at left[k * left_pitch + i]
  bool strips;         // such, where each register block has its own: left_pitch is kMr
  const E* right;      // kNr elements for each k, right_pitch apart
  int64_t right_pitch;
  const A* bias;  // kNr numbers, or null
  A alpha = 1;
  bool add;  // to what lies in result
  bool relu;
  A* result;  // one vector a row is written where columns <= lanes, else two
  int64_t result_pitch;
  bf16* rounded;  // of pairs: where the sums go in place of result, unless null
  int64_t rounded_pitch;
  bool as_bf16;  // the sums are rounded to bf16 where they stay floats
  bool
      streams;  // past the caches: both vectors of rows that begin lines, not added to before; the caller fences
  Ahead* ahead;  // or null
};

// Rows are cut into register blocks of equal size, as far as that goes: the first rows % blocks have one more.
//
// In strips each register block has its rows side by side, left(i, k) at strip[k * kMr + i], and a vector of room behind
// it.
template <class E>
constexpr int64_t strip_numbers(int64_t depth) {
  return kMr * depth + lanes<acc_of<E>>;
}

// Defined in panel.cpp for float and double, and for bf16_pair where PYDL_BF16_DOT.
template <class E>
void multiply_panel(const PanelProduct<E>& product);

}  // namespace pydl::cpu::PYDL_ISA::gemm
