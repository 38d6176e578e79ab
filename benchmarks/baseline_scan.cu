// What the scan is compared with: one launch for each line, the state in global memory, float arithmetic.
//
// Uncoalesced: channels first, (B, C, N, T) for each direction, T fastest; a thread is one position of a line, so
// neighbouring threads are T elements apart. Coalesced: channels last, (B, H, W, K, C), the library's own layout.
// Both normalise the logits as they go. Written from ops/README.md; bfloat16 and float32.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace {

struct Line {
  int64_t images, channels, length, count;  // count: lines of a scan
  int64_t t;                                // the line of this launch
  int64_t image, channel, position, line;   // strides in elements, of x
  int64_t map_image, map_position, map_line;         // strides of lam and h (times the directions' interleave)
  int64_t logits_image, logits_position, logits_line, logits_d;
  int64_t restart;  // lines between restarts
};

__device__ float load(const float* p) { return *p; }
__device__ float load(const __nv_bfloat16* p) { return __bfloat162float(*p); }
__device__ void store(float* p, float v) { *p = v; }
__device__ void store(__nv_bfloat16* p, float v) { *p = __float2bfloat16_rn(v); }

__device__ void weights(const float (&l)[3], bool before, bool after, float (&w)[3], float (&slope)[3]) {
  float sum = 0;
  for (int d = 0; d < 3; d++) {
    const bool exists = d == 1 || (d == 0 ? before : after);
    const float s = exists ? 1.f / (1.f + expf(-l[d])) : 0.f;
    w[d] = s;
    slope[d] = 1.f - s;
    sum += s;
  }
  for (int d = 0; d < 3; d++) w[d] /= sum;
}

template <bool ChannelsLast>
__device__ bool locate(const Line& s, int64_t& b, int64_t& c, int64_t& n) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= s.images * s.channels * s.length) return false;
  if (ChannelsLast) {
    c = i % s.channels;
    n = i / s.channels % s.length;
    b = i / s.channels / s.length;
  } else {
    n = i % s.length;
    c = i / s.length % s.channels;
    b = i / s.length / s.channels;
  }
  return true;
}

template <typename T, bool ChannelsLast>
__global__ void forward_line(Line s, const T* x, const T* lam, const T* logits, T* h) {
  int64_t b, c, n;
  if (!locate<ChannelsLast>(s, b, c, n)) return;
  const int64_t at_x = b * s.image + c * s.channel + n * s.position + s.t * s.line;
  const int64_t at = b * s.map_image + c * s.channel + n * s.map_position + s.t * s.map_line;
  float value = load(lam + at) * load(x + at_x);
  if (s.t % s.restart != 0) {
    const int64_t at_l = b * s.logits_image + c * s.channel + n * s.logits_position + s.t * s.logits_line;
    float l[3], w[3], slope[3];
    for (int d = 0; d < 3; d++) l[d] = load(logits + at_l + d * s.logits_d);
    const bool before = n > 0, after = n + 1 < s.length;
    weights(l, before, after, w, slope);
    const T* past = h + at - s.map_line;
    value += w[1] * load(past);
    if (before) value += w[0] * load(past - s.map_position);
    if (after) value += w[2] * load(past + s.map_position);
  }
  store(h + at, value);
}

// g is a float state of the layout of lam; dx is summed over directions by successive launches.
template <typename T, bool ChannelsLast>
__global__ void backward_line(Line s, const T* grad_h, const T* x, const T* lam, const T* logits, const T* h, float* g,
                              float* dx, T* dlam, T* dlogits) {
  int64_t b, c, n;
  if (!locate<ChannelsLast>(s, b, c, n)) return;
  const int64_t at_x = b * s.image + c * s.channel + n * s.position + s.t * s.line;
  const int64_t at = b * s.map_image + c * s.channel + n * s.map_position + s.t * s.map_line;
  const int64_t at_l = b * s.logits_image + c * s.channel + n * s.logits_position + s.t * s.logits_line;
  float value = load(grad_h + at);
  if (s.t + 1 < s.count && (s.t + 1) % s.restart != 0) {
    for (int d = 0; d < 3; d++) {
      const int64_t from = n - (d - 1);  // position n is neighbour d of `from` in the next line
      if (from < 0 || from >= s.length) continue;
      float l[3], w[3], slope[3];
      const T* next = logits + at_l + s.logits_line + (from - n) * s.logits_position;
      for (int e = 0; e < 3; e++) l[e] = load(next + e * s.logits_d);
      weights(l, from > 0, from + 1 < s.length, w, slope);
      value += w[d] * g[at + s.map_line + (from - n) * s.map_position];
    }
  }
  g[at] = value;
  store(dlam + at, value * load(x + at_x));
  dx[at_x] += value * load(lam + at);
  float dw[3] = {0, 0, 0}, w[3] = {0, 0, 0}, slope[3] = {0, 0, 0};
  if (s.t % s.restart != 0) {
    float l[3];
    for (int d = 0; d < 3; d++) l[d] = load(logits + at_l + d * s.logits_d);
    weights(l, n > 0, n + 1 < s.length, w, slope);
    const T* past = h + at - s.map_line;
    for (int d = 0; d < 3; d++)
      if (n + d >= 1 && n + d <= s.length) dw[d] = value * load(past + (d - 1) * s.map_position);
  }
  const float mean = w[0] * dw[0] + w[1] * dw[1] + w[2] * dw[2];
  for (int d = 0; d < 3; d++) store(dlogits + at_l + d * s.logits_d, w[d] * (dw[d] - mean) * slope[d]);
}

// Channels last: direction k of K in (B, H, W, K, C). Channels first: this direction's own (B, C, N, T).
Line describe(const int64_t* shape, int direction, bool channels_last) {
  const int64_t B = shape[0], H = shape[1], W = shape[2], C = shape[3], K = shape[4], segment = shape[5];
  const bool columns = direction < 2, reversed = direction & 1;
  Line s{B, C, columns ? H : W, columns ? W : H};
  if (channels_last) {
    s.image = H * W * C, s.channel = 1;
    s.position = (columns ? W : 1) * C, s.line = (columns ? 1 : W) * C * (reversed ? -1 : 1);
    s.map_image = s.image * K, s.map_position = s.position * K, s.map_line = s.line * K;
    s.logits_image = s.map_image * 3, s.logits_position = s.map_position * 3, s.logits_line = s.map_line * 3;
    s.logits_d = C;
  } else {
    s.image = C * s.length * s.count, s.channel = s.length * s.count, s.position = s.count, s.line = reversed ? -1 : 1;
    s.map_image = s.image, s.map_position = s.position, s.map_line = s.line;
    s.logits_image = 3 * s.image, s.logits_position = s.position, s.logits_line = s.line, s.logits_d = s.image;
  }
  s.restart = segment > 0 ? segment : s.count;
  return s;
}

template <typename T, bool ChannelsLast, typename Launch>
void each_line(const int64_t* shape, bool backward, Launch launch) {
  const int64_t K = shape[4], maps = shape[0] * shape[1] * shape[2] * shape[3];
  for (int k = 0; k < K; k++) {
    Line s = describe(shape, k, ChannelsLast);
    const bool reversed = k & 1;
    const int64_t start = reversed ? (s.count - 1) : 0;
    const int64_t map = ChannelsLast ? k * s.channels : k * maps;
    const int64_t logits = 3 * map;
    const int blocks = static_cast<int>((s.images * s.channels * s.length + 255) / 256);
    for (int64_t i = 0; i < s.count; i++) {
      s.t = backward ? s.count - 1 - i : i;
      const int64_t skip = reversed ? 1 : 0;
      launch(s, blocks, skip * start * (s.line < 0 ? -s.line : s.line),
             map + skip * start * (s.map_line < 0 ? -s.map_line : s.map_line),
             logits + skip * start * (s.logits_line < 0 ? -s.logits_line : s.logits_line));
    }
  }
}

template <typename T, bool ChannelsLast>
int run_forward(const int64_t* shape, void* const* p, cudaStream_t stream) {
  each_line<T, ChannelsLast>(shape, false, [&](Line s, int blocks, int64_t x, int64_t map, int64_t logits) {
    forward_line<T, ChannelsLast><<<blocks, 256, 0, stream>>>(s, (T*)p[0] + x, (T*)p[1] + map, (T*)p[2] + logits,
                                                              (T*)p[3] + map);
  });
  return cudaGetLastError();
}

template <typename T, bool ChannelsLast>
int run_backward(const int64_t* shape, void* const* p, cudaStream_t stream) {
  each_line<T, ChannelsLast>(shape, true, [&](Line s, int blocks, int64_t x, int64_t map, int64_t logits) {
    backward_line<T, ChannelsLast><<<blocks, 256, 0, stream>>>(
        s, (T*)p[0] + map, (T*)p[1] + x, (T*)p[2] + map, (T*)p[3] + logits, (T*)p[4] + map, (float*)p[5] + map,
        (float*)p[6] + x, (T*)p[7] + map, (T*)p[8] + logits);
  });
  return cudaGetLastError();
}

template <typename T>
int run(const int64_t* shape, bool channels_last, bool backward, void* const* p, cudaStream_t stream) {
  if (backward) return channels_last ? run_backward<T, true>(shape, p, stream) : run_backward<T, false>(shape, p, stream);
  return channels_last ? run_forward<T, true>(shape, p, stream) : run_forward<T, false>(shape, p, stream);
}

}  // namespace

// shape: B, H, W, C, K, segment; directions 0..K-1; G = C. Pointers: x lam logits h, or grad_h x lam logits h g dx dlam
// dlogits (g float32 like h, dx float32 and zero). Returns a cudaError_t.
extern "C" int baseline_scan(const int64_t* shape, int is_bfloat16, int channels_last, int backward, void* const* pointers,
                             void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  return is_bfloat16 ? run<__nv_bfloat16>(shape, channels_last, backward, pointers, s)
                     : run<float>(shape, channels_last, backward, pointers, s);
}
