// Which algorithm serves which convolution: the tables below, one a pass. The first entry that serves and pays is taken;
// the last serves and pays always. What each computes and why stands at the head of its file. Where the build wants plain
// algorithms (CMakeLists.txt: x86 without AVX2), it has those that serve everything, and no others are compiled.
#include <string.h>

#include "kernels/conv2d.h"
#include "kernels/cpu/base/simd.h"
#include "kernels/cpu/conv2d/algorithms.h"
#include "kernels/cpu/conv2d/reduced.h"
#include "kernels/cpu/gemm/panel.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

using Params = Conv2dParams;
using Pass = Conv2dPass;

bool always(const Params&, Pass) { return true; }

#if !defined(PYDL_PLAIN)
// Whether pairs of bfloat16 are multiplied by one instruction, at twice the rate of float32.
bool multiplies_pairs(const Params& p) {
  return p.dtype == DType::bf16 && kVectorBytes == 64 && cpu_has_bf16_dot();
}

// Depthwise, and groups of a few channels. Measured on Zen 4: groups of 16 fill implicit GEMM's vectors as
// well, which then loses to lanes of groups where these need not be transposed, but not in the weight
// gradient.
bool depthwise_pays(const Conv2dParams& p, Conv2dPass pass) {
  const bool few = p.in_channels / p.groups < 16;
  return p.groups > 1 && (few || (pass != Conv2dPass::backward_weight && p.input_stride[1] == 1));
}

// Direct over batch lanes where images fill the vectors and fit the second-level cache. Measured on Zen 5
// against implicit GEMM: 1.2 to 3 times as fast below 32 channels, 1.1 to 1.5 up to 64; deeper sums belong to
// GEMM. Measured on Zen 4: with a single vector of large images implicit GEMM is quicker, and in the weight
// gradient of one channel into many.
bool batch_pays(const Conv2dParams& p, Conv2dPass pass) {
  const int64_t vector = kVectorBytes / 4;
  const bool full = p.batch >= vector && 8 * p.batch >= 7 * vector * ceil_div(p.batch, vector);
  const int64_t taps = p.kernel_height * p.kernel_width, weights = p.out_channels * p.in_channels * taps;
  const int64_t in_block = p.in_channels * (p.in_height + p.kernel_height) * (p.in_width + p.kernel_width);
  const int64_t out_block = p.out_channels * p.out_height * p.out_width;
  if (!full || taps == 1) return false;
  // Where channels fill vectors, too (measured on Zen 5 in pairs of bfloat16): x 0.4 to 0.97 of slabs, but for one block
  // of images, which is one task, and deep sums, whose weights pass by for each; the weight gradient x 0.65 to 0.94 below
  // two vectors of channels, 1.0 to 1.4 from there on.
  constexpr int64_t kManyWeights = 1 << 17;
  const int64_t results = pass == Conv2dPass::backward_input ? p.in_channels : p.out_channels;
  if (multiplies_pairs(p) && results >= vector) {
    if (pass == Conv2dPass::backward_weight ? results >= 2 * vector
                                            : p.batch <= vector || weights > kManyWeights)
      return false;
  }
  // channels_last and whole panels of output channels: nothing to transpose (measured on Zen 5: slabs x 1.0 to 1.7)
  const bool last = (p.in_channels == 1 || p.input_stride[1] == 1) && p.output_stride[1] == 1;
  const bool panels = p.out_channels % (2 * vector) == 0 && pass != Conv2dPass::backward_input;
  if (kVectorBytes == 64 && last && panels) return false;
  if (pass == Conv2dPass::forward) return in_block <= (p.batch > vector ? 1 << 14 : 1 << 13);
  if (pass == Conv2dPass::backward_input) return out_block <= (p.in_channels <= 6 ? 1 << 16 : 1 << 14);
  if (p.in_channels == 1 && p.out_channels >= 32) return false;  // GEMM's columns are full as well
  if (kVectorBytes ==
      64) {  // measured on Zen 5 against slabs: x 0.55 to 0.84 from 8 channels on, but for long rows
    constexpr int64_t kFew = 8, kLong = 256, kWide = 4;  // of which kernels of 4 and 5: x 1.03 to 1.8
    const bool row = p.in_height == 1 && p.out_width >= kLong && p.kernel_width >= kWide;
    if (row && p.in_channels <= 128 && p.out_channels <= 128) return true;
    if (p.in_channels >= kFew) return false;
  }
  return in_block <= 1 << 14 && weights <= 1 << 16;
}

// The input gradient of a 5x5 kernel without padding has twice as many pixels as there are windows, and most products at
// its border are with nothing, which tiles multiply with. Measured on Zen 5, 8 to 14 pixels a side, both formats, up to
// 50 channels: batch lanes x 0.41 to 0.88 of tiles; at 64 x 0.74 to 1.15.
bool is_mostly_border(const Params& p, Pass pass) {
  return kVectorBytes == 64 && p.dtype == DType::f32 && pass == Pass::backward_input &&
         p.kernel_height == 5 && max_of(p.in_channels, p.out_channels) <= 50 &&
         9 * p.out_height * p.out_width <= 5 * p.in_height * p.in_width;
}

// Where few channels leave vectors empty that images fill, the direct products of a batch are fewer than they seem.
bool winograd_pays(const Params& p, Pass pass) {
  const bool few = min_of(p.in_channels, p.out_channels) < 16 || is_mostly_border(p, pass);
  const bool batch = few && direct::batch::serves(p, pass) && batch_pays(p, pass);
  return winograd::pays(p, pass) && !batch;
}
// Measured on Zen 5: passes take 0.8 to 0.9 of the time of chunks where they multiply pairs of bfloat16. Chunks take 0.66
// to 0.97 of that of passes for results of few channels from more of them than stay in L2 (NOTES.md).
bool chunks_pay(const Params& p, Pass pass) {
  constexpr int64_t kFewResults = 64, kSomeChannels = 192, kManyPixels = 32 * 12 * 12;
  const bool narrow = kVectorBytes == 64 && p.dtype == DType::f32 && p.input_stride[3] == 1 &&
                      p.kernel_height == 3 && p.stride_height == 1 && p.out_channels <= kFewResults &&
                      p.in_channels <= kSomeChannels && p.batch * p.out_height * p.out_width >= kManyPixels;
  return winograd_pays(p, pass) && (narrow || winograd::weight_chunks::pays(p)) && !multiplies_pairs(p);
}
// Measured on Zen 5: rows against slabs of pairs of bfloat16 take 1.1 to 1.2 of their time, against batch lanes more.
bool rows_pay(const Params& p, Pass pass) {
  if (!direct::rows::pays(p, pass)) return false;
  const bool full = pass == Pass::forward && p.out_channels >= kVectorBytes / 4;
  return !multiplies_pairs(p) || !(full || batch_pays(p, pass));
}

// Measured on Zen 5: forward over planes, sums of 1024 numbers, slabs take 0.93 to 0.99 of the time of the product and of
// panels; input gradients 0.99 to 1.04.
bool is_deep(const Params& p, Pass pass) {
  return kVectorBytes == 64 && p.dtype == DType::f32 && pass == Pass::forward && p.in_channels >= 1024 &&
         p.out_height * p.out_width >= 64;
}

// Long rows of few channels, measured on Zen 5 against slabs: x 0.37 to 0.87 (direct/NOTES.md).
bool rows_weight_pay(const Params& p, Pass) {
  constexpr int64_t kFew = 4, kLong = 64;
  return p.in_channels <= kFew && p.kernel_width == 3 && p.out_width >= kLong;
}

// Slabs, unless vectors of pixels are full where those of channels are not; or the convolution is a matrix product as
// it lies, with so many pixels that panels of them are full (measured on Zen 4: equal from 1,152 pixels on).
bool slabs_pay(const Params& p, Pass pass) {
  constexpr int64_t kFewPixels = 1024;
  const bool forward = pass == Pass::forward;
  const int64_t channels = (forward ? p.out_channels : p.in_channels) / p.groups;
  const int64_t* result = forward ? p.output_stride : p.input_stride;
  const int64_t* read = forward ? p.input_stride : p.output_stride;
  const bool by_pixel = result[3] == 1 && result[1] != 1;
  if (by_pixel && 2 * channels <= gemm::kNr<float> / 2) return false;
  const bool one = p.kernel_height == 1 && p.kernel_width == 1 && p.stride_height == 1 && p.stride_width == 1;
  const bool many = p.batch * p.out_height * p.out_width >= kFewPixels;
  return !(by_pixel && one && read[3] == 1 && many && !multiplies_pairs(p)) || is_deep(p, pass);
}

// Where a cell's line fills vectors. One part a side that does not overlap others is a product as it lies for slabs too.
bool cells_pay(const Params& p, Pass) { return p.stride_width % lanes<float> == 0; }

// 1x1 kernels of the networks, forced in turns (NOTES.md): measured on Zen 3 for vectors of 32 bytes, on Zen 5 for those
// of 64.
bool product_of_pairs_pays(const Params& p, Pass pass) {
  constexpr int64_t kDeep = 512;  // sums in one part; slabs keep theirs in registers whatever the depth
  constexpr int64_t kFewPixels = 512, kFewResults = 32;
  constexpr int64_t kManyResults = 192, kManyInputs = 64;  // of a weight gradient, whose slabs are cut finely
  const bool forward = pass == Pass::forward;
  const int64_t image = p.out_height * p.out_width, pixels = p.batch * image;
  if (pass == Pass::backward_weight)
    return (p.out_channels >= kManyResults && p.in_channels >= kManyInputs) || pixels <= kFewPixels ||
           (pixels <= 4 * kFewPixels && p.out_channels >= p.in_channels) ||
           (pixels >= 32 * kFewPixels && p.in_channels >= 144);
  const int64_t results = forward ? p.out_channels : p.in_channels,
                depth = forward ? p.in_channels : p.out_channels;
  if ((forward ? p.output_stride : p.input_stride)[1] == 1)
    return pixels <= 100 || (depth <= kDeep && (results >= 24 || pixels <= 4 * kFewPixels));
  if (image >= 64) return depth <= kDeep;
  if (!forward) return image >= 36 && depth <= 64;
  return results <= kFewResults || (image >= 36 && depth <= kDeep && results <= 5 * kFewResults);
}

bool product_pays_wide(const Params& p, Pass pass) {
  if (multiplies_pairs(p)) return product_of_pairs_pays(p, pass);
  constexpr int64_t kFewRows = 2048, kPixels = 64, kFewResults = 32;
  const bool forward = pass == Pass::forward;
  const int64_t image = p.out_height * p.out_width, pixels = p.batch * image;
  if (pass == Pass::backward_weight || (forward ? p.output_stride : p.input_stride)[1] == 1)
    return pixels <= kFewRows;
  // every image packs its panels for the weights to pass by
  return p.dtype != DType::bf16 && !is_deep(p, pass) &&
         (image >= kPixels || (forward && p.out_channels <= kFewResults));
}

bool product_pays(const Params& p, Pass pass) {
  if (kVectorBytes == 64) return product_pays_wide(p, pass);
  if (kVectorBytes != 32) return false;
  constexpr int64_t kNear = 1 << 19;  // numbers in 2 MB
  constexpr int64_t kFewRows = 8192, kFewPixels = 32, kSomeResults = 96, kSomeWeights = 1 << 14;
  const bool forward = pass == Pass::forward;
  const int64_t pixels = p.batch * p.out_height * p.out_width, weights = p.in_channels * p.out_channels;
  if (pass == Pass::backward_weight) return pixels <= 1152 || (weights >= kSomeWeights && pixels <= kFewRows);
  const int64_t results = forward ? p.out_channels : p.in_channels, depth = weights / results;
  if ((forward ? p.output_stride : p.input_stride)[1] == 1)  // slabs fetch ahead what is read for few results
    return results >= depth || (results >= kSomeResults && pixels <= kFewRows) || pixels * depth <= kNear;
  // every image packs its panels for the weights to pass by
  const int64_t image = p.out_height * p.out_width;
  const bool few = forward && depth >= 3 * results && image * depth > kNear / 4;
  return p.dtype != DType::bf16 && image >= kFewPixels && weights < kNear && !few;
}

// On the Zen 3: copies pay for a stride where images are small, and where an image's planes do not fill the vectors.
bool gathered_pays(const Params& p, Pass pass) {
  if (kVectorBytes != 32) return false;
  constexpr int64_t kFewPixels = 32;
  const int64_t image = p.out_height * p.out_width, weights = p.in_channels * p.out_channels;
  if (p.stride_height * p.stride_width == 1) return image < kFewPixels && weights >= 1 << 16;
  if (p.input_stride[1] == 1 && p.output_stride[1] == 1) return pass == Pass::backward_weight || image <= 144;
  return image < kFewPixels || (image <= 2 * kFewPixels && weights >= 1 << 20);
}

// Packed panels of 1x1 kernels beat slabs, but those of pairs, and where not every pixel of a plane is read (measured on
// Zen 3: slabs take 0.6 to 0.9 of their time then).
bool pointwise_pays(const Params& p, Pass) {
  const bool skips = p.input_stride[1] != 1 && p.stride_width > 1;
  // few weights in channels_last (measured on Zen 5: slabs take 0.75 to 0.95 of their time)
  constexpr int64_t kFewWeights = 96 * 96, kFewInputs = 32, kHalfPanel = 16;
  const bool few = kVectorBytes == 64 && p.in_channels * p.out_channels <= kFewWeights &&
                   p.in_channels >= kFewInputs && p.out_channels % kHalfPanel == 0 &&
                   p.input_stride[1] == 1 && p.output_stride[1] == 1;
  return !multiplies_pairs(p) && !skips && !few;
}
#endif

struct Choice {
  const char* name;
  bool (*serves)(const Params&, Pass);
  bool (*pays)(const Params&, Pass);
  int64_t (*scratch)(const Params&, Pass, int64_t threads);
  void (*run)(const Params&, Pass, const Parallel&);
  bool local = true, gives_bias = false;  // kernels/conv2d.h: Conv2dPlan
};
#define PYDL_CHOICE(algorithm) algorithm::scratch, algorithm::run

// clang-format off: one entry a line
#if defined(PYDL_PLAIN)
constexpr Choice kForward[] = {
    {"implicit.slabs", implicit::slabs::serves, always, PYDL_CHOICE(implicit::slabs)},
    {"implicit.panels", implicit::panels::serves, always, PYDL_CHOICE(implicit::panels)},
};
constexpr const Choice (&kBackwardInput)[2] = kForward;
constexpr Choice kBackwardWeight[] = {
    {"implicit.weight_slabs", implicit::weight_slabs::serves, always, PYDL_CHOICE(implicit::weight_slabs)},
};
#else
constexpr Choice kForward[] = {
    {"depthwise.planes_3x3", depthwise::planes_3x3::serves, depthwise_pays, PYDL_CHOICE(depthwise::planes_3x3)},
    {"depthwise.pixels", depthwise::pixels::serves, depthwise_pays, PYDL_CHOICE(depthwise::pixels)},
    {"depthwise.planes", depthwise::planes::serves, depthwise_pays, PYDL_CHOICE(depthwise::planes)},
    {"winograd.tiles", winograd::tiles::serves, winograd_pays, PYDL_CHOICE(winograd::tiles), false},
    {"direct.rows", direct::rows::serves, rows_pay, PYDL_CHOICE(direct::rows)},
    {"direct.batch", direct::batch::serves, batch_pays, PYDL_CHOICE(direct::batch)},
    {"implicit.cells", implicit::cells::serves, cells_pay, PYDL_CHOICE(implicit::cells), false},
    {"implicit.gathered", implicit::gathered::serves, gathered_pays, PYDL_CHOICE(implicit::gathered)},
    {"implicit.product", implicit::product::serves, product_pays, PYDL_CHOICE(implicit::product)},
    {"implicit.slabs", implicit::slabs::serves, slabs_pay, PYDL_CHOICE(implicit::slabs)},
    {"implicit.panels", implicit::panels::serves, always, PYDL_CHOICE(implicit::panels)},
};
constexpr Choice kBackwardInput[] = {
    kForward[0], kForward[1], kForward[2], kForward[3], kForward[4], kForward[5], kForward[6],
    {"implicit.phases", implicit::phases::serves, always, PYDL_CHOICE(implicit::phases), false},
    kForward[7], kForward[8], kForward[9], kForward[10],
};
constexpr Choice kBackwardWeight[] = {
    kForward[0], kForward[1], kForward[2],
    {"winograd.weight_chunks", winograd::weight_chunks::serves, chunks_pay, PYDL_CHOICE(winograd::weight_chunks), false},
    {"winograd.weight_passes", winograd::weight_passes::serves, winograd_pays, PYDL_CHOICE(winograd::weight_passes), false},
    {"direct.batch_weight", direct::batch_weight::serves, batch_pays, PYDL_CHOICE(direct::batch_weight), true, true},
    {"direct.rows_weight", direct::rows_weight::serves, rows_weight_pay, PYDL_CHOICE(direct::rows_weight)},
    {"implicit.weight_cells", implicit::weight_cells::serves, cells_pay, PYDL_CHOICE(implicit::weight_cells), false},
    {"implicit.gathered", implicit::gathered::serves, gathered_pays, PYDL_CHOICE(implicit::gathered)},
    {"implicit.product", implicit::product::serves, product_pays, PYDL_CHOICE(implicit::product)},
    {"implicit.weight_pointwise", implicit::weight_pointwise::serves, pointwise_pays, PYDL_CHOICE(implicit::weight_pointwise)},
    {"implicit.weight_slabs", implicit::weight_slabs::serves, always, PYDL_CHOICE(implicit::weight_slabs)},
};
#endif
// clang-format on

struct Table {
  const Choice* begin;
  const Choice* end;
};
Table table_of(Pass pass) {
  switch (pass) {
    case Pass::forward:
      return {kForward, kForward + sizeof(kForward) / sizeof(Choice)};
    case Pass::backward_input:
      return {kBackwardInput, kBackwardInput + sizeof(kBackwardInput) / sizeof(Choice)};
    case Pass::backward_weight:
      return {kBackwardWeight, kBackwardWeight + sizeof(kBackwardWeight) / sizeof(Choice)};
  }
  __builtin_unreachable();
}

// Whether an entry is the one that is wanted, or of the family that is.
bool matches(const char* wanted, const char* name) {
  const size_t length = strlen(wanted);
  return strncmp(wanted, name, length) == 0 && (name[length] == 0 || name[length] == '.');
}

// The first entry that serves and pays; of those asked for by name else the first that serves.
const Choice* choose(const Params& p, Pass pass, const char* wanted, bool exact) {
  const Choice* serving = nullptr;
  const Table table = table_of(pass);
  for (const Choice* choice = table.begin; choice != table.end; ++choice) {
    if ((wanted && !matches(wanted, choice->name)) || (exact && !choice->local) || !choice->serves(p, pass))
      continue;
    if (choice->pays(p, pass)) return choice;
    if (wanted && serving == nullptr) serving = choice;
  }
  return serving;
}

// Whether an input gradient is stored with its bias and through its activation: by these algorithms, where the channels
// are those of the call (reduced.h: flattened).
bool finishes(void (*run)(const Params&, Pass, const Parallel&), const Params& p, int64_t channels) {
  if (p.in_channels != channels) return false;
#if !defined(PYDL_PLAIN)
  if (run == implicit::cells::run || run == winograd::tiles::run) return true;
#endif
  return run == implicit::slabs::run;
}

}  // namespace

const char* conv2d_algorithms(Pass pass, int64_t index) {
  const Table table = table_of(pass);
  return index < table.end - table.begin ? table.begin[index].name : nullptr;
}

Conv2dPlan conv2d_plan(const Params& params, Pass pass, int64_t threads, const char* wanted, bool exact) {
  Params p = reduced(params);
  const Choice* choice = choose(p, pass, wanted, exact);
  if (choice == nullptr) return {};
  const int64_t first_tap = static_cast<char*>(p.weight) - static_cast<char*>(params.weight);
  if (pass == Pass::backward_input && !finishes(choice->run, p, params.in_channels))
    p.activation = Activation::none;
  return {choice->name, choice->scratch(p, pass, threads), p, first_tap, choice->local, choice->gives_bias,
          choice->run};
}

bool conv2d_run(const Conv2dPlan& plan, const Params& params, Pass pass, const Parallel& parallel) {
  Params p = plan.reduced;
  p.input = params.input;
  p.weight = static_cast<char*>(params.weight) + plan.first_tap;
  p.output = params.output;
  const bool whole = pass != Pass::backward_input || finishes(plan.run, p, params.in_channels);
  p.bias = whole ? params.bias : nullptr;
  p.grad_bias = params.grad_bias;
  p.activated = params.activated;
  p.scratch = params.scratch;
  int32_t spoiled = 0;
  p.spoiled = &spoiled;
  if (pass == Pass::backward_weight) zero_idle_taps(params, p, parallel);
  plan.run(p, pass, parallel);
  if (spoiled != 0) return false;
  if (!whole && (params.bias != nullptr || params.activation != Activation::none)) finish(params, parallel);
  return true;
}

}  // namespace pydl::cpu::PYDL_ISA
