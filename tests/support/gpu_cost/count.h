// Counts what kernels do on the host twin: every access to memory, warp by warp, and what the twin tells its
// listener.
//
// The compiler reports the accesses: g++ -fsanitize=thread puts a call before each one, and count.cpp defines
// those calls, so that kernels carry no annotation. Launches run with the sizes of a real call, but of their
// blocks only some, spread evenly; their counts are scaled to the whole grid. So a case costs milliseconds,
// and the tensors (never touched but by those blocks, and zero) cost no memory.
#pragma once

#include <stdint.h>

#include <string>

namespace cost {

// Memory of `bytes` zeros under a name that the counts are kept by.
void* tensor(const std::string& name, int64_t bytes);

// Starts a case, of whose launches `blocks` blocks each are run; ends it, prints its counts as a line of JSON
// and frees its tensors.
void begin(const std::string& name, int blocks);
void end();

// Multiply-adds of the case's first launch, which the twin cannot tell from other arithmetic.
void multiply_adds(double count);

}  // namespace cost
