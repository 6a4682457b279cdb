#include "count.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "twin.h"

namespace cost {
namespace {

constexpr int kWarp = 32, kWord = 4;
constexpr size_t kMostPieces = 32;
constexpr int kShared = -1, kElsewhere = -2;
constexpr uint64_t kSector = 32;

struct Range {
  std::string name;
  uint64_t begin, bytes;
};

// One direction of traffic with one tensor.
struct Traffic {
  double requests = 0, sectors = 0, ideal = 0;
  std::unordered_set<uint64_t> touched;
};

struct Launch {
  const void* kernel;
  int64_t blocks, run = 0;  // run: of them, on the twin
  int threads;
  std::map<std::pair<size_t, bool>, Traffic> traffic;  // of (range, whether it is written)
  double shared = 0, wavefronts = 0, ideal_wavefronts = 0, barriers = 0, shuffles = 0, matrix = 0,
         special = 0;
  double links = 0, link_bytes = 0, thread_links = 0;
};

// Where an access stands in the code.
struct Site {
  int bytes = 0;
  bool store = false;
  int range = kShared;
  std::vector<uint32_t> turns;                 // of each thread
  std::vector<std::vector<uint64_t>> address;  // of each warp: [turn][lane], 0 where the lane is not there
};

// What a thread waits for: loads that are asked for together, and how often it waited.
struct Chain {
  std::vector<int> open;  // sites
  double links = 0, bytes = 0;
};

class Counter : public twin::Listener {
 public:
  std::string name;
  int wanted = 0;
  double multiply_adds = 0;
  std::vector<Range> ranges;
  std::vector<Launch> launches;

  void begin_launch(const void* kernel, int64_t blocks, int threads) override {
    launches.push_back({kernel, blocks, 0, threads, {}});
    sites_.clear();
    number_.clear();
    chains_.assign(static_cast<size_t>(threads), {});
  }
  bool wants(int64_t block) override {
    const int64_t blocks = launches.back().blocks, most = std::min<int64_t>(blocks, wanted);
    for (int64_t i = 0; i < most; ++i)
      if (block == (most == 1 ? 0 : i * (blocks - 1) / (most - 1))) return true;
    return false;
  }
  void end_block() override {
    ++now().run;
    for (Site& site : sites_) {
      for (auto& turns : site.address)
        for (size_t turn = 0; turn + kWarp <= turns.size(); turn += kWarp) request(site, &turns[turn]);
      site.address.assign(site.address.size(), {});
      site.turns.assign(site.turns.size(), 0);
    }
    for (Chain& chain : chains_) {
      wait(chain);
      now().links = std::max(now().links, chain.links);
      now().thread_links += chain.links;
      now().link_bytes += chain.bytes;
      chain = {};
    }
  }
  void barrier() override {
    now().barriers += 1.0 / now().threads;
    wait(chains_[thread()]);
  }
  void exchange() override {
    now().shuffles += 1.0 / kWarp;
    wait(chains_[thread()]);
  }
  void multiply() override { now().matrix += 1.0 / kWarp; }
  void special() override { ++now().special; }
  void copy16(void* to, const void* from, bool valid, const void* site) override {
    access(to, 16, true, site, false, 1);
    if (!valid) return;
    access(const_cast<void*>(from), 16, false, site, false);
    chains_[thread()].bytes += 16;
  }
  void wait_copies(size_t groups, int left) override {
    // closed groups are all on their way: waiting for one of n takes the n-th part of a latency
    const int closed = static_cast<int>(groups) - 1, done = closed - left;
    if (done > 0) chains_[thread()].links += static_cast<double>(done) / closed;
  }
  void load_matrices(const void* row, const void* site) override {
    access(const_cast<void*>(row), 16, false, site, false);
  }

  // piece: of a place in the code with several accesses, which one
  void access(void* address, int bytes, bool store, const void* code, bool waits, size_t piece = 0) {
    if (launches.empty()) return;
    const uint64_t at = reinterpret_cast<uint64_t>(address);
    const int range = range_of(address);
    if (range == kElsewhere) return;
    const uint64_t key = reinterpret_cast<uint64_t>(code) * kMostPieces + piece;
    const auto [found, is_new] = number_.try_emplace(key, static_cast<int>(sites_.size()));
    if (is_new) sites_.emplace_back();
    Site& site = sites_[static_cast<size_t>(found->second)];
    const size_t threads = static_cast<size_t>(now().threads), t = thread();
    if (is_new || site.turns.empty()) {
      site.turns.resize(threads);
      site.address.resize(threads / kWarp);
    }
    site.bytes = bytes;
    site.store = store;
    site.range = range;
    auto& lanes = site.address[t / kWarp];
    const size_t turn = site.turns[t]++;
    if (lanes.size() < (turn + 1) * kWarp) lanes.resize((turn + 1) * kWarp);
    lanes[turn * kWarp + t % kWarp] = at;
    if (!waits) return;
    Chain& chain = chains_[t];
    if (store) return wait(chain);  // of what was loaded
    if (range == kShared) return;
    // the same load again is the next turn of a loop
    if (std::find(chain.open.begin(), chain.open.end(), found->second) != chain.open.end()) wait(chain);
    chain.open.push_back(found->second);
    chain.bytes += bytes;
  }

  // A struct of words as the compiler of a GPU accesses it, word by word.
  void access_words(void* address, size_t bytes, bool store, const void* code) {
    if (launches.empty() || range_of(address) == kElsewhere) return;
    if (bytes % kWord != 0 || bytes / kWord > kMostPieces) {
      fprintf(stderr, "cost: expected a struct to be of at most %zu words, got %zu bytes\n", kMostPieces,
              bytes);
      abort();
    }
    for (size_t piece = 0; piece < bytes / kWord; ++piece)
      access(static_cast<char*>(address) + piece * kWord, kWord, store, code, true, piece);
  }

  void print();

 private:
  Launch& now() { return launches.back(); }
  // The number of a tensor's range, or one of the two below 0. A thread's own stack and a launch's parameters are
  // registers and constants on a GPU.
  int range_of(const void* address) const {
    const uint64_t at = reinterpret_cast<uint64_t>(address);
    for (size_t r = 0; r < ranges.size(); ++r)
      if (at >= ranges[r].begin && at < ranges[r].begin + ranges[r].bytes) return static_cast<int>(r);
    return twin::is_shared(address) ? kShared : kElsewhere;
  }
  static size_t thread() { return twin::thread_index().x; }
  static void wait(Chain& chain) {
    if (!chain.open.empty()) ++chain.links;
    chain.open.clear();
  }

  // What one instruction of a warp asks for.
  void request(const Site& site, const uint64_t* address) {
    const uint64_t size = static_cast<uint64_t>(site.bytes);
    uint64_t found[2 * kWarp], bytes = 0;
    size_t count = 0;
    for (int lane = 0; lane < kWarp; ++lane) {
      if (address[lane] == 0) continue;
      bytes += size;
      for (uint64_t s = address[lane] / kSector; s <= (address[lane] + size - 1) / kSector; ++s)
        if (count == 0 || found[count - 1] != s) found[count++] = s;
    }
    if (count == 0) return;
    if (site.range == kShared) return shared_request(site, address);
    std::sort(found, found + count);
    count = static_cast<size_t>(std::unique(found, found + count) - found);
    Traffic& traffic = now().traffic[{static_cast<size_t>(site.range), site.store}];
    ++traffic.requests;
    traffic.sectors += static_cast<double>(count);
    traffic.ideal += static_cast<double>((bytes + kSector - 1) / kSector);
    traffic.touched.insert(found, found + count);
  }

  // 32 banks of 4 bytes serve as many lanes at a time as take 128 bytes; different words of a bank take turns.
  void shared_request(const Site& site, const uint64_t* address) {
    ++now().shared;
    const int words = std::max(site.bytes / 4, 1), group = kWarp / words;
    for (int first = 0; first < kWarp; first += group) {
      uint64_t word[32][kWarp];
      int count[32] = {}, most = 0;
      for (int lane = first; lane < first + group; ++lane)
        for (int w = 0; address[lane] != 0 && w < words; ++w) {
          const uint64_t at = address[lane] / 4 + static_cast<uint64_t>(w);
          uint64_t* const list = word[at % 32];
          int& n = count[at % 32];
          if (std::find(list, list + n, at) == list + n) list[n++] = at;
          most = std::max(most, n);
        }
      now().wavefronts += most;
      now().ideal_wavefronts += most > 0;
    }
  }

  std::vector<Site> sites_;
  std::unordered_map<uint64_t, int> number_;
  std::vector<Chain> chains_;
};

Counter& counter() {
  static Counter* counter = new Counter;
  return *counter;
}

void Counter::print() {
  printf("{\"case\": \"%s\", \"multiply_adds\": %.0f, \"launches\": [", name.c_str(), multiply_adds);
  for (size_t i = 0; i < launches.size(); ++i) {
    Launch& l = launches[i];
    Dl_info info{};
    dladdr(l.kernel, &info);
    const auto offset = static_cast<const char*>(l.kernel) - static_cast<const char*>(info.dli_fbase);
    const double scale = static_cast<double>(l.blocks) / static_cast<double>(l.run);
    printf("%s{\"kernel\": %lld, \"blocks\": %lld, \"threads\": %d, \"tensors\": {", i ? ", " : "",
           static_cast<long long>(offset), static_cast<long long>(l.blocks), l.threads);
    bool first = true;
    for (auto& [key, t] : l.traffic) {
      const Range& range = ranges[key.first];
      const double all = static_cast<double>((range.bytes + kSector - 1) / kSector);
      const double different = std::min(all, static_cast<double>(t.touched.size()) * scale);
      printf("%s\"%s %s\": {\"requests\": %.0f, \"sectors\": %.0f, \"ideal\": %.0f, \"different\": %.0f}",
             first ? "" : ", ", range.name.c_str(), key.second ? "store" : "load", t.requests * scale,
             t.sectors * scale, t.ideal * scale, different);
      first = false;
    }
    const double per_link = l.thread_links > 0 ? l.link_bytes / l.thread_links : 0;
    printf(
        "}, \"chain\": %.1f, \"bytes_per_link\": %.1f, \"shared\": %.0f, \"wavefronts\": %.0f, "
        "\"ideal_wavefronts\": %.0f, "
        "\"barriers\": %.0f, \"shuffles\": %.0f, \"matrix\": %.0f, \"special\": %.0f}",
        l.links, per_link, l.shared * scale, l.wavefronts * scale, l.ideal_wavefronts * scale,
        l.barriers * scale, l.shuffles * scale, l.matrix * scale, l.special * scale);
  }
  printf("]}\n");
  fflush(stdout);
}

}  // namespace

void* tensor(const std::string& name, int64_t bytes) {
  const size_t size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  void* data =
      mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) abort();
  counter().ranges.push_back({name, reinterpret_cast<uint64_t>(data), size});
  return data;
}

void begin(const std::string& name, int blocks) {
  counter().name = name;
  counter().wanted = blocks;
  counter().multiply_adds = 0;
  twin::listener = &counter();
}

void multiply_adds(double count) { counter().multiply_adds = count; }

void end() {
  twin::listener = nullptr;
  counter().print();
  for (const Range& range : counter().ranges) munmap(reinterpret_cast<void*>(range.begin), range.bytes);
  counter().ranges.clear();
  counter().launches.clear();
}

}  // namespace cost

// What g++ -fsanitize=thread calls before each access.
#define CODE __builtin_return_address(0)
#define ACCESS(n)                                                                             \
  void __tsan_read##n(void* p) { cost::counter().access(p, n, false, CODE, true); }           \
  void __tsan_write##n(void* p) { cost::counter().access(p, n, true, CODE, true); }           \
  void __tsan_unaligned_read##n(void* p) { cost::counter().access(p, n, false, CODE, true); } \
  void __tsan_unaligned_write##n(void* p) { cost::counter().access(p, n, true, CODE, true); }
extern "C" {
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void* p, size_t n) { cost::counter().access_words(p, n, false, CODE); }
void __tsan_write_range(void* p, size_t n) { cost::counter().access_words(p, n, true, CODE); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void* __tsan_memcpy(void* to, const void* from, size_t n) { return memcpy(to, from, n); }
void* __tsan_memset(void* to, int byte, size_t n) { return memset(to, byte, n); }
}
