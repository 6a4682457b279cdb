// The cases of the cost sheet: launches of the library with the sizes of benchmarks/gpu.py, on memory that
// cost::tensor hands out. Names are those of gpu.py where it has the case.
#include "count.h"
#include "kernels/cuda/library.h"

using namespace pydl;

namespace {

const cuda::Library& library() { return *pydl_cuda_library(); }

int64_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }
std::string text_of(DType dtype) { return dtype == DType::f32 ? "f32" : "bf16"; }

template <class F>
void count(const std::string& name, int blocks, const F& launch) {
  cost::begin(name, blocks);
  launch();
  cost::end();
}

// ---- cross entropy

void cross_entropy(int64_t rows, int64_t classes, DType dtype, double smoothing) {
  const std::string name = "cross_entropy " + std::to_string(rows) + "x" + std::to_string(classes) + " " +
                           text_of(dtype) + (smoothing > 0 ? " smoothing" : "");
  for (const bool backward : {false, true})
    count(name + (backward ? " bwd" : " fwd"), 4, [&] {
      const int64_t bytes = rows * classes * size_of(dtype);
      SoftmaxCrossEntropyParams p{};
      p.dtype = p.output_dtype = p.target_dtype = dtype;
      p.reduction = Reduction::mean;
      p.ignore_index = -100;
      p.label_smoothing = smoothing;
      p.input = cost::tensor("logits", bytes);
      p.target = cost::tensor("target", 8 * rows);
      p.output = cost::tensor("loss", 4);
      p.norm = cost::tensor("norm", 8 * rows);
      p.denominator = static_cast<double*>(cost::tensor("denominator", 8));
      p.classes = classes;
      p.input_class_stride = p.grad_class_stride = 1;
      p.rows = rows;
      p.dims = 1;
      p.size[0] = rows;
      p.row_stride[0] = p.target_stride[0] = 1;
      p.input_stride[0] = p.grad_stride[0] = classes;
      if (backward) {
        p.grad_output = cost::tensor("grad_output", 4);
        p.grad_input = cost::tensor("gradient", bytes);
      }
      p.scratch = cost::tensor("scratch", library().softmax_cross_entropy_scratch(p));
      (backward ? library().softmax_cross_entropy_backward : library().softmax_cross_entropy_forward)(
          p, nullptr);
    });
}

// ---- dropout

void dropout(const std::string& name, DType dtype, int64_t outer, int64_t channels, int64_t spatial) {
  count("dropout " + name, 4, [&] {
    DropoutParams p{};
    p.dtype = dtype;
    p.numel = outer * channels * spatial;
    p.input = cost::tensor("input", p.numel * size_of(dtype));
    p.output = cost::tensor("output", p.numel * size_of(dtype));
    p.device_seed = static_cast<const int64_t*>(cost::tensor("seed", 8));
    p.threshold = 429496730;
    p.scale = 1 / 0.9;
    if (channels == 1) {
      p.dims = 1;
      p.size[0] = p.numel;
      p.input_stride[0] = p.output_stride[0] = p.index_stride[0] = 1;
    } else {  // channels_last: (image, channel, pixel)
      p.dims = 3;
      const int64_t size[] = {outer, channels, spatial}, stride[] = {channels * spatial, 1, channels},
                    index[] = {channels * spatial, spatial, 1};
      for (int d = 0; d < 3; ++d) {
        p.size[d] = size[d];
        p.input_stride[d] = p.output_stride[d] = stride[d];
        p.index_stride[d] = index[d];
      }
    }
    library().dropout(p, nullptr);
  });
}

// ---- batch norm

void batch_norm(int64_t batch, int64_t channels, int64_t side, bool last) {
  const std::string name = "batch_norm+relu " + std::to_string(batch) + "x" + std::to_string(channels) + "x" +
                           std::to_string(side) + "x" + std::to_string(side) + " bf16 " +
                           (last ? "channels_last" : "NCHW");
  for (const bool backward : {false, true})
    count(name + (backward ? " bwd" : " fwd"), 3, [&] {
      const int64_t spatial = side * side;
      BatchNormParams p{};
      p.dtype = DType::bf16;
      p.param_dtype = DType::f32;
      p.activation = Activation::relu;
      p.gradient = BatchNormGradient::relu_input;
      p.channels_last = last;
      p.training = true;
      p.batch = batch;
      p.channels = channels;
      p.spatial = spatial;
      const auto view = [&](const char* what) {
        return BatchNormView{cost::tensor(what, 2 * batch * channels * spatial),
                             last ? channels : channels * spatial, last ? 1 : spatial};
      };
      p.input = view("input");
      p.mean = static_cast<double*>(cost::tensor("mean", 8 * channels));
      p.var = static_cast<double*>(cost::tensor("var", 8 * channels));
      p.weight = cost::tensor("weight", 4 * channels);
      p.bias = cost::tensor("bias", 4 * channels);
      p.eps = 1e-5;
      p.momentum = 0.1;
      p.count = static_cast<double>(batch * spatial);
      if (backward) {
        p.grad_output = view("grad_output");
        p.grad_input = view("grad_input");
        p.sum_grad = static_cast<double*>(cost::tensor("sum_grad", 8 * channels));
        p.sum_grad_xhat = static_cast<double*>(cost::tensor("sum_grad_xhat", 8 * channels));
        p.grad_weight = cost::tensor("grad_weight", 4 * channels);
        p.grad_bias = cost::tensor("grad_bias", 4 * channels);
      } else {
        p.output = view("output");
      }
      p.scratch = cost::tensor("scratch", library().batch_norm_scratch(p));
      (backward ? library().batch_norm_backward : library().batch_norm_forward)(p, nullptr);
    });
}

// ---- conv2d

struct Layer {
  int64_t batch, channels, side, outputs, kernel, stride, padding, groups;
};

void strides(int64_t* stride, int64_t channels, int64_t side, bool last) {
  stride[0] = channels * side * side;
  stride[1] = last ? 1 : side * side;
  stride[2] = last ? side * channels : side;
  stride[3] = last ? channels : 1;
}

// passes: of "fwd", "dgrad", "wgrad", "bias"
void conv2d(const std::string& name, const Layer& l, DType dtype, bool last,
            std::initializer_list<const char*> passes) {
  const int64_t out = (l.side + 2 * l.padding - l.kernel) / l.stride + 1, depth = l.channels / l.groups;
  for (const std::string pass : passes)
    count("conv2d " + name + " " + text_of(dtype) + (last ? " channels_last " : " NCHW ") + pass,
          pass == "bias" ? 4 : 2, [&] {
            Conv2dParams p{};
            p.dtype = dtype;
            p.batch = l.batch;
            p.groups = l.groups;
            p.in_channels = l.channels;
            p.out_channels = l.outputs;
            p.in_height = p.in_width = l.side;
            p.out_height = p.out_width = out;
            p.kernel_height = p.kernel_width = l.kernel;
            p.stride_height = p.stride_width = l.stride;
            p.pad_top = p.pad_left = l.padding;
            p.dilation_height = p.dilation_width = 1;
            const int64_t size = size_of(dtype);
            p.output = cost::tensor("output", size * l.batch * l.outputs * out * out);
            strides(p.output_stride, l.outputs, out, last);
            if (pass == "bias") {
              p.grad_bias = cost::tensor("grad_bias", size * l.outputs);
              p.scratch = cost::tensor("scratch", library().conv2d_bias_scratch(p));
            } else {
              p.input = cost::tensor("input", size * l.batch * l.channels * l.side * l.side);
              p.weight = cost::tensor("weight", size * l.outputs * depth * l.kernel * l.kernel);
              strides(p.input_stride, l.channels, l.side, last);
              strides(p.weight_stride, depth, l.kernel, last);
            }
            if (pass == "wgrad") p.scratch = cost::tensor("scratch", library().conv2d_weight_scratch(p));
            const auto launch = pass == "fwd"     ? library().conv2d_forward
                                : pass == "dgrad" ? library().conv2d_backward_input
                                : pass == "wgrad" ? library().conv2d_backward_weight
                                                  : library().conv2d_backward_bias;
            if (pass != "bias")
              cost::multiply_adds(
                  static_cast<double>(l.batch * out * out * l.outputs * depth * l.kernel * l.kernel));
            launch(p, nullptr);
          });
}

}  // namespace

int main() {
  const DType bf16 = DType::bf16, f32 = DType::f32;
  const int64_t sizes[][2] = {{8192, 32768},  {32768, 4096},  {16384, 8192}, {8192, 50257},
                              {2048, 131072}, {131072, 1000}, {16, 131072}};
  for (const auto& [rows, classes] : sizes) cross_entropy(rows, classes, bf16, 0);
  cross_entropy(32768, 4096, bf16, 0.1);
  cross_entropy(256, 10, f32, 0);
  dropout("2^28 bfloat16", bf16, 1, 1, 1 << 28);
  dropout("2^28 float32", f32, 1, 1, 1 << 28);
  dropout("64x64x56x56 bfloat16 channels_last", bf16, 64, 64, 56 * 56);
  for (const bool last : {false, true}) {
    batch_norm(256, 64, 56, last);
    batch_norm(512, 2048, 7, last);
  }
  conv2d("64@56 1x1/1 -> 256 (x4)", {64, 64, 56, 256, 1, 1, 0, 1}, bf16, true, {"fwd", "dgrad", "wgrad"});
  conv2d("128@28 3x3/1 -> 128 (x3)", {64, 128, 28, 128, 3, 1, 1, 1}, bf16, true, {"fwd", "dgrad", "wgrad"});
  conv2d("256@28 3x3/2 -> 256 (x1)", {64, 256, 28, 256, 3, 2, 1, 1}, bf16, true, {"fwd", "dgrad"});
  conv2d("64@24 3x3/1 -> 64", {256, 64, 24, 64, 3, 1, 1, 1}, f32, false, {"fwd", "dgrad", "wgrad", "bias"});
  conv2d("64@24 3x3/1 -> 64", {256, 64, 24, 64, 3, 1, 1, 1}, bf16, true, {"bias"});
  conv2d("1@28 5x5/1 -> 6", {256, 1, 28, 6, 5, 1, 2, 1}, f32, false, {"fwd", "wgrad", "bias"});
  conv2d("6@14 5x5/1 -> 16", {256, 6, 14, 16, 5, 1, 0, 1}, f32, false, {"fwd", "dgrad", "wgrad", "bias"});
  for (const bool last : {false, true})
    conv2d("128@56 3x3/1 -> 128, 128 groups", {64, 128, 56, 128, 3, 1, 1, 128}, f32, last,
           {"fwd", "dgrad", "wgrad"});
  conv2d("128@28 3x3/1 -> 128, 16 groups", {64, 128, 28, 128, 3, 1, 1, 16}, f32, false, {"wgrad"});
  conv2d("128@28 3x3/2 -> 128, 128 groups", {64, 128, 28, 128, 3, 2, 1, 128}, bf16, true, {"wgrad"});
}
