// The schemas of the scan, of the gated merge, of both in one and of the depthwise convolution. Kernels register
// themselves from *_cpu.cpp and *_cuda.cu; autograd and the fake kernels are in scan.py, merge.py, mix.py and conv.py.
// Only the stable ABI is used, so that one binary serves every torch from 2.10 on.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(gspn, m) {
  m.def(
      "scan(Tensor x, Tensor lam, Tensor logits, int[] directions, int segment, int normalization) -> Tensor");
  m.def(
      "scan_backward(Tensor grad_h, Tensor x, Tensor lam, Tensor logits, Tensor h, int[] directions, "
      "int segment, int normalization) -> (Tensor, Tensor, Tensor)");
  m.def("merge(Tensor h, Tensor u) -> Tensor");
  m.def("merge_backward(Tensor grad_y, Tensor h, Tensor u) -> (Tensor, Tensor)");
  // y, and h if `states`; mix_backward: dx, dlam, dlogits, and du if there is a u. Otherwise these have no elements.
  m.def(
      "mix(Tensor x, Tensor lam, Tensor logits, Tensor? u, int[] directions, int segment, int normalization, "
      "bool states) -> (Tensor, Tensor)");
  m.def(
      "mix_backward(Tensor grad_y, Tensor x, Tensor lam, Tensor logits, Tensor? u, Tensor h, int[] directions, "
      "int segment, int normalization) -> (Tensor, Tensor, Tensor, Tensor)");
  // y, and relu if y is its square and `keep`; conv_backward: dx, dweight, and dbias if there is a bias.
  m.def("conv(Tensor x, Tensor weight, Tensor? bias, bool square, bool keep) -> (Tensor, Tensor)");
  m.def(
      "conv_backward(Tensor grad_y, Tensor relu, Tensor x, Tensor weight, bool bias, bool square) -> "
      "(Tensor, Tensor, Tensor)");
}
