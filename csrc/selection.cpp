#include "csrc/selection.h"

#include <set>
#include <stdexcept>

#include "csrc/errors.h"
#include "kernels/conv2d.h"

namespace pydl {

std::atomic<bool> exact{false};
Selection conv2d_selection;

namespace {

constexpr std::pair<const char*, Conv2dPass> kPasses[] = {{"forward", Conv2dPass::forward},
                                                          {"backward_input", Conv2dPass::backward_input},
                                                          {"backward_weight", Conv2dPass::backward_weight}};

}  // namespace

std::vector<std::string> conv2d_algorithms(const std::string& pass) {
  std::vector<std::string> names;
  for (const auto& [known, number] : kPasses) {
    if (pass != known) continue;
    for (int64_t i = 0; const char* name = PYDL_CPU_CALL(conv2d_algorithms)(number, i); ++i)
      names.emplace_back(name);
    return names;
  }
  throw std::invalid_argument(
      join("conv2d: expected the pass to be forward, backward_input or backward_weight, got ", pass));
}

void use_conv2d_algorithm(const std::string& name, const std::string& pass) {
  static std::set<std::string> kept;           // plans are looked up by the address of a name: one for each
  if (!pass.empty()) conv2d_algorithms(pass);  // throws where there is no such pass
  std::set<std::string> known;
  bool found = name.empty();
  for (const auto& [which, number] : kPasses) {
    if (!pass.empty() && pass != which) continue;
    bool has = false;
    for (const std::string& algorithm : conv2d_algorithms(which)) {
      const std::string family = algorithm.substr(0, algorithm.find('.'));
      has |= name == algorithm || name == family;
      known.insert({algorithm, family});
    }
    found |= has;
    conv2d_selection.wanted[static_cast<int>(number)] = has ? kept.insert(name).first->c_str() : nullptr;
  }
  if (found) return;
  std::string all;
  for (const std::string& one : known) all += (all.empty() ? "" : ", ") + one;
  throw std::invalid_argument(join("conv2d: expected the algorithm to be one of ", all, ", got ", name));
}

}  // namespace pydl
