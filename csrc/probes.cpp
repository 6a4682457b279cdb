// pydl::probe_copy(Tensor input, Tensor(a!) output) -> ()
// pydl::probe_read(Tensor input) -> Tensor
// pydl::probe_fma(Tensor(a!) result, int rounds) -> float
// pydl::probe_round_trip(Tensor device, int rounds) -> int
//
// Probes of the machine for the benchmarks (benchmarks/probes.py), run by the threads that serve the ops.
#include "kernels/cpu/base/probes.h"

#include "csrc/torch.h"

namespace pydl {
namespace {

void check_buffer(const char* op, const Tensor& t) {
  PYDL_CHECK(t.scalar_type() == ScalarType::Float && t.is_contiguous() && t.numel() % 64 == 0 &&
                 reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 64 == 0,
             op,
             ": expected buffers to be contiguous float32 of a multiple of 64 elements, aligned, got shape ",
             shape_of(t));
}

void probe_copy(const Tensor& input, const Tensor& output) {
  check_buffer("probe_copy", input);
  check_buffer("probe_copy", output);
  PYDL_CHECK(input.numel() == output.numel(), "probe_copy: expected output to have ", input.numel(),
             " elements, got ", output.numel());
  PYDL_CPU_CALL(probe_copy)
  (static_cast<const float*>(input.const_data_ptr()), static_cast<float*>(output.mutable_data_ptr()),
   input.numel(), torch_threads());
}

Tensor probe_read(const Tensor& input) {
  check_buffer("probe_read", input);
  Tensor sum = empty(input, ScalarType::Float, {1});
  *static_cast<float*>(sum.mutable_data_ptr()) = PYDL_CPU_CALL(probe_read)(
      static_cast<const float*>(input.const_data_ptr()), input.numel(), torch_threads());
  return sum;
}

double probe_fma(const Tensor& result, int64_t rounds) {
  PYDL_CHECK(result.scalar_type() == ScalarType::Float && result.numel() == 1,
             "probe_fma: expected result to be one float32, got shape ", shape_of(result));
  PYDL_CHECK_VALUE(rounds > 0, "probe_fma: expected rounds to be positive, got ", rounds);
  return PYDL_CPU_CALL(probe_fma)(rounds, static_cast<float*>(result.mutable_data_ptr()), torch_threads());
}

int64_t probe_round_trip(const Tensor&, int64_t rounds) {
  PYDL_CHECK_VALUE(rounds > 0, "probe_round_trip: expected rounds to be positive, got ", rounds);
  return PYDL_CPU_CALL(probe_round_trip)(rounds, torch_threads());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pydl, CPU, m) {
  m.impl("probe_copy", TORCH_BOX(&probe_copy));
  m.impl("probe_read", TORCH_BOX(&probe_read));
  m.impl("probe_fma", TORCH_BOX(&probe_fma));
  m.impl("probe_round_trip", TORCH_BOX(&probe_round_trip));
}

}  // namespace pydl
