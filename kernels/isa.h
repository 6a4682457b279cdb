// Instruction sets: each CPU kernel source is compiled once per set, in a namespace of that name, and picked
// here.
//
//   PYDL_CPU_ENTRY(void dropout(const DropoutParams&, const Parallel&));   // in kernels/<op>.h, inside pydl::cpu
//   PYDL_CPU_CALL(dropout)(params, parallel);                              // in csrc/<op>.cpp
#pragma once

namespace pydl::cpu {

enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2 };

const char* isa_name(Isa isa);
Isa isa_supported();       // the highest set that this CPU and operating system run
Isa isa_current();         // the one in use: the highest, or what PYDL_CPU_ISA or isa_select() asked for
bool isa_select(Isa isa);  // false when this CPU does not have it
bool cpu_has_bf16_dot();   // vdpbf16ps, which AVX-512 alone does not promise
// Whether kernels use it where the CPU has it: they do, unless a test asks for what a CPU without it runs.
void cpu_use_bf16_dot(bool use);
// Whether they are the plain build for x86 CPUs without AVX2 (PYDL_PLAIN of CMakeLists.txt), of which other architectures
// have none.
bool isa_is_plain();
int isa_number();  // one for each state of the above: a part of what plans are kept by
// Whether the avx512 kernels are compiled for AVX2: PYDL_EMULATE_AVX512 of CMakeLists.txt, a build for tests.
bool avx512_is_emulated();

template <class F>
inline F isa_pick(F baseline, F avx2, F avx512) {
  F table[] = {baseline, avx2, avx512};
  return table[static_cast<int>(isa_current())];
}

}  // namespace pydl::cpu

#if defined(__x86_64__)
#define PYDL_CPU_ENTRY(...) \
  namespace baseline {      \
  __VA_ARGS__;              \
  }                         \
  namespace avx2 {          \
  __VA_ARGS__;              \
  }                         \
  namespace avx512 {        \
  __VA_ARGS__;              \
  }
#define PYDL_CPU_CALL(name) \
  ::pydl::cpu::isa_pick(::pydl::cpu::baseline::name, ::pydl::cpu::avx2::name, ::pydl::cpu::avx512::name)
#else  // one portable build, which the compiler's vector types turn into NEON and the like
#define PYDL_CPU_ENTRY(...) \
  namespace baseline {      \
  __VA_ARGS__;              \
  }
#define PYDL_CPU_CALL(name) ::pydl::cpu::baseline::name
#endif
