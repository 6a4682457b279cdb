// Plans of one op, made once for each shape: which algorithm, and how much scratch.
//
// Each calling thread keeps its own, so that a look-up takes no lock; an entry that another shape wants is made anew.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace pydl {

template <class Plan, size_t kNumbers>
class Plans {
 public:
  using Key = std::array<int64_t, kNumbers>;  // all that a plan depends on

  // The plan of `key`, by make() where it is not kept; valid until this thread's next call.
  template <class F>
  const Plan& at(const Key& key, const F& make) {
    if (entries_ == nullptr) entries_ = std::make_unique<Entry[]>(kEntries);
    Entry& entry = entries_[hash(key) % kEntries];
    if (!entry.full || entry.key != key) {
      entry.full = false;  // should make() throw
      entry.plan = make();
      entry.key = key;
      entry.full = true;
    }
    return entry.plan;
  }

 private:
  static constexpr size_t kEntries = 256;
  struct Entry {
    bool full = false;
    Key key{};
    Plan plan{};
  };

  static size_t hash(const Key& key) {
    uint64_t h = 0;
    for (int64_t number : key) h = (h ^ static_cast<uint64_t>(number)) * 0x9E3779B97F4A7C15u;
    return static_cast<size_t>(h >> 32);
  }

  std::unique_ptr<Entry[]> entries_;
};

}  // namespace pydl
