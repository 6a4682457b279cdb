// Finds out once which instruction sets this CPU has. Compiled for the baseline: it runs everywhere.
#include "kernels/isa.h"

#include <stdlib.h>
#include <string.h>

#include <initializer_list>

namespace pydl::cpu {
namespace {

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // x86-64-v3 and -v4: what -march of the same name lets the compiler use
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return v4 || (v3 && avx512_is_emulated()) ? Isa::avx512 : v3 ? Isa::avx2 : Isa::baseline;
#else
  return Isa::baseline;
#endif
}

// An unknown or unsupported PYDL_CPU_ISA is left for Python to refuse in words (src/pydl/backend.py).
Isa initial() {
  const Isa best = detect();
  const char* asked = getenv("PYDL_CPU_ISA");
  if (asked == nullptr) return best;
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
    if (strcmp(asked, isa_name(isa)) == 0 && isa <= best) return isa;
  return best;
}

Isa current = initial();
bool uses_bf16_dot = true;

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::baseline:
      return "baseline";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
  }
  return "unknown";
}

Isa isa_supported() {
  static const Isa best = detect();
  return best;
}

Isa isa_current() { return current; }

bool isa_is_plain() {
#if defined(__x86_64__)
  return current == Isa::baseline;
#else
  return false;
#endif
}

bool isa_select(Isa isa) {
  if (isa > isa_supported()) return false;
  current = isa;
  return true;
}

bool avx512_is_emulated() {
#if defined(PYDL_EMULATE_AVX512)
  return true;
#else
  return false;
#endif
}

bool cpu_has_bf16_dot() {
#if defined(__x86_64__)
  static const bool has = avx512_is_emulated() || __builtin_cpu_supports("avx512bf16");
  return has && uses_bf16_dot;
#else
  return false;
#endif
}

void cpu_use_bf16_dot(bool use) { uses_bf16_dot = use; }

int isa_number() { return 2 * static_cast<int>(isa_current()) + cpu_has_bf16_dot(); }

}  // namespace pydl::cpu
