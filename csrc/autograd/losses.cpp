#include "csrc/autograd/losses.h"

#include <cstring>

namespace pydl::autograd {

int64_t reduction(const char* name) {
  constexpr const char* names[] = {"none", "mean", "sum"};
  for (int64_t i = 0; i < 3; ++i) {
    if (std::strcmp(name, names[i]) == 0) return i;
  }
  throw NotPlain();
}

}  // namespace pydl::autograd
