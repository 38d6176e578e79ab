// From a plan of the depthwise convolution to its kernel; `launch` as in scan_dispatch.cuh.
#pragma once

#include "block_threads.h"
#include "conv_forward.cuh"
#include "conv_gradient.cuh"

namespace gspn {
namespace conv {

template <typename Body>
void with_kernel(const ConvShape& s, const ConvPlan& plan, Body&& body) {
  const auto with_size = [&](auto size) {
    plan.usual() ? body(size, Constant<true>()) : body(size, Constant<false>());
  };
  if (s.size == 3) return with_size(Constant<3>());
  if (s.size == 5) return with_size(Constant<5>());
  with_size(Constant<7>());
}

template <typename T, typename Launch>
void start_forward(const ConvShape& s, const ConvPlan& plan, const ForwardPointers<T>& tensors, Launch& launch) {
  with_kernel(s, plan, [&](auto size, auto usual) {
    const auto kernel = conv_forward_kernel<T, decltype(size)::value, decltype(usual)::value>;
    launch(kernel, plan.blocks(), BlockThreads{kThreads}, plan.shared_bytes, s, plan, tensors);
  });
}

template <typename T, typename Launch>
void start_gradient(const ConvShape& s, const ConvPlan& plan, const GradientPointers<T>& tensors, Launch& launch) {
  with_kernel(s, plan, [&](auto size, auto usual) {
    const auto kernel = conv_gradient_kernel<T, decltype(size)::value, decltype(usual)::value>;
    launch(kernel, plan.blocks(), BlockThreads{kThreads}, plan.shared_bytes, s, plan, tensors);
  });
}

// dbias may be null.
template <typename T, typename Launch>
void start_sum(const ConvShape& s, const float* parts, int64_t count, T* dweight, T* dbias, Launch& launch) {
  const int64_t of_weights = s.channels * s.size * s.size, elements = of_weights + s.channels;
  launch(conv_sum_kernel<T>, quotient(elements, kSumLanes), BlockThreads{kSumLanes, kSumRows}, kSumLanes * kSumRows * 4,
         parts, count, of_weights, elements, dweight, dbias);
}

}  // namespace conv
}  // namespace gspn
