// Compiled for the baseline: it runs everywhere.
#include "kernels/machine.h"

#include <unistd.h>
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace pydl {
namespace {

constexpr Machine kUsual{32 << 10, 1 << 20, 32 << 20};

#if defined(__APPLE__)
int64_t asked(const char* name) {
  int64_t bytes = 0;
  size_t size = sizeof(bytes);
  return sysctlbyname(name, &bytes, &size, nullptr, 0) == 0 ? bytes : 0;
}
Machine detect() {
  // Apple's last level is what the second is elsewhere, shared by a cluster; behind it lies a cache of the whole chip.
  return {asked("hw.perflevel0.l1dcachesize"), asked("hw.perflevel0.l2cachesize") / 4,
          asked("hw.perflevel0.l2cachesize")};
}
#elif defined(_SC_LEVEL1_DCACHE_SIZE)
Machine detect() {
  return {sysconf(_SC_LEVEL1_DCACHE_SIZE), sysconf(_SC_LEVEL2_CACHE_SIZE), sysconf(_SC_LEVEL3_CACHE_SIZE)};
}
#else
Machine detect() { return {0, 0, 0}; }
#endif

int64_t known(int64_t bytes, int64_t usual) { return bytes > 0 ? bytes : usual; }

Machine current = [] {
  const Machine found = detect();
  // a CPU without a third level has its second as the last
  return Machine{known(found.level1, kUsual.level1), known(found.level2, kUsual.level2),
                 known(found.level3, known(found.level2, kUsual.level3))};
}();

}  // namespace

const Machine& machine() { return current; }

void machine_set(Machine caches) { current = caches; }

}  // namespace pydl
