// Softmax along another dimension than the last (softmax_columns.cpp), and what it shares with rows.
#pragma once

#include "kernels/cpu/rows/along.h"
#include "kernels/softmax.h"

namespace pydl::cpu::PYDL_ISA {

// Rows, or vectors of columns, in step; float64 and SSE2, which few train in, do without the text.
template <class T>
static constexpr int kSoftmaxGroup = kVectorBytes == 16 || sizeof(T) == 8 ? 1 : 4;
static constexpr int64_t kSoftmaxTask = 8192;  // elements: for fewer a thread is not woken

void softmax_columns_forward(const SoftmaxParams& p, const Parallel& parallel);
void softmax_columns_backward(const SoftmaxParams& p, const Parallel& parallel);

}  // namespace pydl::cpu::PYDL_ISA
