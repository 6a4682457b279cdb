// Which algorithm an op is asked to use and which one served its last call, for tests, comparisons and reports.
#pragma once

#include <atomic>
#include <string>
#include <vector>

namespace pydl {

struct Selection {
  std::atomic<const char*> wanted[3] =
      {};  // of each pass: a name, or its part before the dot; null: the best
  std::atomic<const char*> served{nullptr};  // of the last call, in whichever thread
};

// Of all ops: none but algorithms that multiply each pair of numbers once, as torch's do.
extern std::atomic<bool> exact;

extern Selection conv2d_selection;

// The names of conv2d's algorithms, best first; pass: "forward", "backward_input" or "backward_weight".
std::vector<std::string> conv2d_algorithms(const std::string& pass);

// Asks for an algorithm of conv2d in one pass, or, where `pass` is empty, in every pass that has it; an empty name takes
// that back. Throws std::invalid_argument for an unknown name.
void use_conv2d_algorithm(const std::string& name, const std::string& pass);

}  // namespace pydl
