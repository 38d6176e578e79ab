// The schemas of the scan and of the gated merge. Kernels register themselves from *_cpu.cpp and *_cuda.cu; autograd
// and the fake kernels are in scan.py and merge.py. Only the stable ABI is used, so that one binary serves every torch
// from 2.10 on.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(gspn, m) {
  m.def(
      "scan(Tensor x, Tensor lam, Tensor logits, int[] directions, int segment, int normalization) -> Tensor");
  m.def(
      "scan_backward(Tensor grad_h, Tensor x, Tensor lam, Tensor logits, Tensor h, int[] directions, "
      "int segment, int normalization) -> (Tensor, Tensor, Tensor)");
  m.def("merge(Tensor h, Tensor u) -> Tensor");
  m.def("merge_backward(Tensor grad_y, Tensor h, Tensor u) -> (Tensor, Tensor)");
}
