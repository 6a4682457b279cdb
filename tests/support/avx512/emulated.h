// The AVX-512 intrinsics of kernels/cpu in AVX2 and plain C++, for tests of the avx512 kernels on a CPU without it
// (PYDL_EMULATE_AVX512 in CMakeLists.txt, which puts this file in front of simd.h).
//
// The functions have the names of the intrinsics and stand in the namespace of the kernels, where they hide the
// compiler's own. They give what the instructions give, which compare.cpp looks at on a CPU that has them: lanes,
// rounding, what becomes of nan; a lane masked off touches no memory. What they do not show: how long instructions
// take, and faults of vectors that the compiler takes for aligned to 64 bytes, since it splits them into halves of 32.
// The one aligned access that is asked for by name, stream, checks.
#pragma once

#include "tests/support/avx512/arithmetic.h"
#include "tests/support/avx512/memory.h"

#if !defined(__AVX512F__)  // the kernels ask for these two; the compiler's own headers have been read by now
#define __AVX512F__ 1
#define __AVX512BF16__ 1
#endif
