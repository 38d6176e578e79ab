// The tensors of a scan, and of scan and read-out in one, as its kernels take them.
#pragma once

namespace gspn {

template <typename T>
struct ForwardPointers {
  const T *x, *lam, *logits;
  T* h;
  const T* u = nullptr;  // read-out: null, and every gate is 1
  T* y = nullptr;        // read-out; h may be null then
};

template <typename T>
struct BackwardPointers {
  const T *grad, *x, *lam, *logits, *h;  // grad: of h, or, read out, of y
  T *dx, *dlam, *dlogits;
  float* dx_parts[4];    // each direction's (B, H, W, C), or null: one direction, or tiled
  float* dlogits_parts;  // (B, H, W, K, 3, G, parts), or null: each group lies within the lanes summed by shuffles
  int group_shift;       // 2^this neighbouring lanes are summed by shuffles
  int parts;             // partial sums of a group that remain
  const T* u = nullptr;  // read-out: null, and every gate is 1
  T* du = nullptr;       // null with u
};

}  // namespace gspn
