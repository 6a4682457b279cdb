// The register-blocked microkernels of implicit GEMM over slabs (conv2d/implicit/slab.h): windows are read where
// they lie, without a packed panel.
//
//   gemm_windows:  out[pixel][m] = act(bias[m] + sum_t sum_k window[pixel][offsets[t] + k] * weights[t][k][m])
//   gemm_outer:    sums[row][o] (+)= sum_pixel left[pixel][row] * right[pixel][o]
//
// The vector axis is output channels, two vectors wide, so each number of a window is broadcast: it needs an
// address, not a place in a panel. Pixels come as up to four groups of neighbours, a pitch apart; the groups
// lie anywhere (other rows, other images), so that narrow images fill the registers too.
#pragma once

#include "kernels/cpu/gemm/microkernel.h"

namespace pydl::cpu::PYDL_ISA::gemm {

static constexpr int kMostPixels = kMr < 7 ? kMr : 7;  // of a group
static constexpr int kMostGroups = 4;

// How many groups of so many pixels the registers hold.
static constexpr int most_groups(int pixels) {
  return kMr / pixels < kMostGroups ? kMr / pixels : kMostGroups;
}

// What is prefetched on the way: bytes from `at` on, so many for each step, or none.
struct Fetch {
  const char* at;
  int64_t step;

  template <class Left, class E>
  PYDL_INLINE void turn(int steps, const Left&, const E*) {
    if (!step) return;
    for (int k = 0; k < steps; k += 2) prefetch(at + k * step);
    at += steps * step;
  }
};

constexpr int64_t kAheadStep = 32;
template <class E>
struct WindowsBlock {
  const E* window[kMostGroups];  // of the first pixel of each group
  int64_t pitch;                 // elements between the windows of neighbours
  const int64_t* offsets;        // where the segments of a window begin
  int64_t segments, depth;       // and how long each is
  const E* weights;              // [segment][k][2 vectors]
  const acc_of<E>* bias;         // 2 vectors
  void* out[kMostGroups];        // of the first pixel of each group: acc_of<E>, or bf16 if `narrow`
  int64_t out_pitch;             // in elements of that
  const char* ahead;             // prefetched on the way, for each number of a window
  int64_t ahead_step;            // so many bytes: kAheadStep, or 0 where nothing is wanted
  bool relu;
  bool narrow;  // for bf16_pair alone
  bool stream;  // past the caches; vectors of `out` are aligned
};

// groups <= most_groups(pixels), pixels <= kMostPixels; writes one vector where channels <= lanes, else two.
void gemm_windows(int64_t groups, int64_t pixels, int64_t channels, const WindowsBlock<float>& block);
#if defined(PYDL_BF16_DOT)
void gemm_windows(int64_t groups, int64_t pixels, int64_t channels, const WindowsBlock<bf16_pair>& block);
#endif

template <class E>
struct OuterBlock {
  const E* left;           // of the first row
  const int64_t* offsets;  // of each segment's first pixel
  int64_t step;            // elements between the pixels of a segment
  int64_t segments, depth;
  const E* right;   // [segment][pixel][2 vectors]
  acc_of<E>* sums;  // [row][2 vectors]
  bool accumulate;
  int64_t right_pitch = kNr<acc_of<E>>;  // elements from pixel to pixel
  Fetch ahead{};
};

// rows <= kMr.
void gemm_outer(int64_t rows, int64_t channels, const OuterBlock<float>& block);
void gemm_outer(int64_t rows, int64_t channels, const OuterBlock<double>& block);
#if defined(PYDL_BF16_DOT)
void gemm_outer(int64_t rows, int64_t channels, const OuterBlock<bf16_pair>& block);
#endif

}  // namespace pydl::cpu::PYDL_ISA::gemm
