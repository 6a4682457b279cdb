// Group normalisation on the CPU, of channels that lie side by side (channels_last, or one place alone). See
// kernels/group_norm.h for the formulas.
//
// A task is a block of groups of a sample, all of a row of channels where those are few: so that what it reads twice
// stays in a cache, and no line is read for a part of it only. Sums are of channels, in vectors along them; places come
// in steps, whose sums stay in registers.
#include "kernels/cpu/norm/group_norm.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

constexpr int64_t kTaskBytes = 256 << 10;  // of a tensor, so that a task stays in the second cache
constexpr int64_t kLeastChannels = 64;     // for fewer, lines are read in parts
constexpr int64_t kPlaces = 32;            // in step

// Groups in a task; no result depends on it. Where a task cannot stay in a cache it is a sample, as long as each thread
// has one.
int64_t groups_of_task(const GroupNormParams& p, int64_t threads) {
  const int64_t of_group = p.channels / p.groups, bytes = p.dtype == DType::f64   ? 8
                                                          : p.dtype == DType::f32 ? 4
                                                                                  : 2;
  int64_t channels = kTaskBytes / (bytes * p.spatial);
  if (channels < kLeastChannels) channels = max_of(ceil_div(p.channels * p.samples, threads), kLeastChannels);
  return min_of(max_of(channels / of_group, 1), p.groups);
}

constexpr int kArrays = 6;  // of A, as long as all channels
template <class A>
struct Arrays {
  A *near, *first, *second, *scale, *slope, *constant;
  Arrays(const GroupNorm& w, int64_t worker) {
    const int64_t channels = w.p.channels + lanes<A>;
    Pieces pieces{w.of_workers + worker * kArrays * Pieces::bytes<A>(channels)};
    A** const arrays[kArrays] = {&near, &first, &second, &scale, &slope, &constant};
    for (A** array : arrays) *array = pieces.take<A>(channels);
  }
};

// A task: `channels` numbers from `at` on, in each of the places of its sample.
struct Block {
  int64_t first_group, groups, channel, channels, at;
};

// One pass over a block.
using Pass = void (*)(const GroupNorm& w, const Block& block, int64_t worker, bool past_cache);

void each_block(const GroupNorm& w, const void* result, const Parallel& parallel, Pass pass) {
  const GroupNormParams& p = w.p;
  const int64_t groups = groups_of_task(p, parallel.threads), blocks = ceil_div(p.groups, groups);
  // rows of a block are whole lines, wherever it begins
  const bool past_cache = streams(p, result, p.channels) && streams(p, result, groups * w.of_group);
  auto run = [&](int64_t task, int64_t worker) {
    const int64_t sample = task / blocks, group = task % blocks * groups;
    const int64_t here = min_of(groups, p.groups - group), channel = group * w.of_group;
    pass(w,
         Block{sample * p.groups + group, here, channel, here * w.of_group,
               sample * p.spatial * p.channels + channel},
         worker, past_cache);
    if (past_cache) stream_fence();
  };
  if (p.samples * p.channels * p.spatial < 2 * kGroupTask) {
    for (int64_t task = 0; task < p.samples * blocks; ++task) run(task, 0);
  } else {
    run_tasks(parallel, p.samples * blocks, run);
  }
}

// into_first, into_second += term(place's numbers), over all places; term(j, at, part, a, b) adds those of channels j.. that
// lie at `at`.
template <class A, class F>
PYDL_INLINE void sums_over_places(const GroupNormParams& p, const Block& block, A* first, A* second,
                                  const F& term) {
  for (int64_t j = 0; j < block.channels; j += lanes<A>) {
    store(first + j, vec<A>{});
    store(second + j, vec<A>{});
  }
  for (int64_t begin = 0; begin < p.spatial; begin += kPlaces) {
    const int64_t places = min_of(kPlaces, p.spatial - begin);
    int64_t j = 0;
    constexpr int64_t kStep = 2 * lanes<A>;
    for (; j + kStep <= block.channels; j += kStep) {  // a line of float32 with AVX2
      vec<A> a[2] = {}, b[2] = {};
      int64_t at = block.at + begin * p.channels + j;
      for (int64_t s = 0; s < places; ++s, at += p.channels) {
        term(j, at, WholeVector{}, a[0], b[0]);
        term(j + lanes<A>, at + lanes<A>, WholeVector{}, a[1], b[1]);
      }
      for (int k = 0; k < 2; ++k) {
        store(first + j + k * lanes<A>, load(first + j + k * lanes<A>) + a[k]);
        store(second + j + k * lanes<A>, load(second + j + k * lanes<A>) + b[k]);
      }
    }
    for (; j < block.channels; j += lanes<A>) {
      vec<A> a{}, b{};
      int64_t at = block.at + begin * p.channels + j;
      const int64_t n = min_of(lanes<A>, block.channels - j);
      for (int64_t s = 0; s < places; ++s, at += p.channels) term(j, at, n, a, b);
      store(first + j, load(first + j) + a);
      store(second + j, load(second + j) + b);
    }
  }
}

// body(at, j, part) for the numbers of all places.
template <class A, class F>
PYDL_INLINE void over_places(const GroupNormParams& p, const Block& block, const F& body) {
  for (int64_t s = 0; s < p.spatial; ++s) {
    const int64_t at = block.at + s * p.channels;
    along<A>(0, block.channels, [&](int64_t j, auto part) PYDL_INLINE_LAMBDA { body(at + j, j, part); });
  }
}

template <class T>
void normalise(const GroupNorm& w, const Block& block, int64_t worker, bool past_cache) {
  using A = acc_t<T>;
  const Arrays<A> t(w, worker);
  const GroupNormParams& p = w.p;
  const T* x = static_cast<const T*>(p.input);
  T* y = static_cast<T*>(p.output);
  const int64_t n = w.of_group;
  for (int64_t k = 0; k < block.groups; ++k) {  // the mean of the first place: near that of all
    A sum = 0;
    for (int64_t j = k * n; j < (k + 1) * n; j += lanes<A>)
      sum += reduce_add(load_n(x + block.at + j, min_of(lanes<A>, (k + 1) * n - j)));
    for (int64_t c = k * n; c < (k + 1) * n; ++c) t.near[c] = sum / static_cast<A>(n);
  }
  for (bool last = false, done = false; !done; last = true) {
    sums_over_places(p, block, t.first, t.second,
                     [&](int64_t j, int64_t at, auto part, vec<A>& a, vec<A>& b) PYDL_INLINE_LAMBDA {
                       const vec<A> d = load_part(x + at, part) - load(t.near + j);
                       a += d;
                       b += d * d;
                     });
    done = true;
    for (int64_t k = 0; k < block.groups; ++k) {
      double sum = 0, squares = 0;
      for (int64_t c = k * n; c < (k + 1) * n; ++c) {
        sum += static_cast<double>(t.first[c]);
        squares += static_cast<double>(t.second[c]);
      }
      A near = t.near[k * n];
      if (!w.set_moments(block.first_group + k, sum, squares, near, last)) done = false;
      for (int64_t c = k * n; c < (k + 1) * n; ++c) t.near[c] = near;
    }
  }
  for (int64_t k = 0; k < block.groups; ++k)
    for (int64_t c = k * n; c < (k + 1) * n; ++c)
      w.affine(block.first_group + k, block.channel + c, t.near[c], t.scale[c], t.constant[c]);
  write_results<T>(past_cache, [&](const auto& put) PYDL_INLINE_LAMBDA {
    over_places<A>(p, block, [&](int64_t at, int64_t j, auto part) PYDL_INLINE_LAMBDA {
      put(y + at, (load_part(x + at, part) - load(t.near + j)) * load(t.scale + j) + load(t.constant + j),
          part);
    });
  });
}

template <class T>
void gradient(const GroupNorm& w, const Block& block, int64_t worker, bool past_cache) {
  using A = acc_t<T>;
  const Arrays<A> t(w, worker);
  const GroupNormParams& p = w.p;
  const T *x = static_cast<const T*>(p.input), *g = static_cast<const T*>(p.grad_output);
  T* to = static_cast<T*>(p.grad_input);
  const int64_t n = w.of_group;
  for (int64_t k = 0; k < block.groups; ++k)
    for (int64_t c = k * n; c < (k + 1) * n; ++c) t.near[c] = static_cast<A>(p.mean[block.first_group + k]);
  sums_over_places(p, block, t.first, t.second,
                   [&](int64_t j, int64_t at, auto part, vec<A>& a, vec<A>& b) PYDL_INLINE_LAMBDA {
                     const vec<A> grad = load_part(g + at, part);
                     a += grad;
                     b += grad * (load_part(x + at, part) - load(t.near + j));
                   });
  for (int64_t k = 0; k < block.groups; ++k) {
    const int64_t group = block.first_group + k;
    double of_group[2] = {};
    for (int64_t c = k * n; c < (k + 1) * n; ++c)
      w.add_channel(group, block.channel + c, t.near[c], static_cast<double>(t.first[c]),
                    static_cast<double>(t.second[c]), of_group);
    if (to == nullptr) continue;
    A slope, constant;
    w.slope_of(group, t.near[k * n], of_group, slope, constant);
    for (int64_t c = k * n; c < (k + 1) * n; ++c) {
      t.scale[c] = static_cast<A>(w.weight[block.channel + c] * p.scale[group]);
      t.slope[c] = slope;
      t.constant[c] = constant;
    }
  }
  if (to == nullptr) return;
  write_results<T>(past_cache, [&](const auto& put) PYDL_INLINE_LAMBDA {
    over_places<A>(p, block, [&](int64_t at, int64_t j, auto part) PYDL_INLINE_LAMBDA {
      const vec<A> rest =
          (load_part(x + at, part) - load(t.near + j)) * load(t.slope + j) + load(t.constant + j);
      put(to + at, pin(load_part(g + at, part) * load(t.scale + j)) + rest, part);
    });
  });
}

}  // namespace

int64_t group_norm_columns_scratch(const GroupNormParams& p, int64_t threads) {
  const int64_t channels = p.channels + lanes<float>;
  const int64_t array =
      p.dtype == DType::f64 ? Pieces::bytes<double>(channels) : Pieces::bytes<float>(channels);
  return min_of(threads, Tasks::kMostWorkers) * kArrays * array;
}

void group_norm_columns_forward(const GroupNorm& w, const Parallel& parallel) {
  Pass pass = nullptr;
  dispatch_rows(w.p.dtype, [&](auto type) { pass = normalise<decltype(type)>; });
  each_block(w, w.p.output, parallel, pass);
}

void group_norm_columns_backward(const GroupNorm& w, const Parallel& parallel) {
  Pass pass = nullptr;
  dispatch_rows(w.p.dtype, [&](auto type) { pass = gradient<decltype(type)>; });
  each_block(w, w.p.grad_input, parallel, pass);
}

}  // namespace pydl::cpu::PYDL_ISA
