// N:M mask and pruned weights in one pass over the weights.
//
// Of every `group` = M consecutive weights of a row the `keep` = N largest in magnitude stay; ties go to the lower
// index. That is the mask of mpcore.nm_mask(|w|), bit for bit. Pruned weights become exactly +0.0.
//
// Arguments of every kernel, all on the device, row-major and contiguous; rows * columns is a multiple of M because
// columns is:
//   weights  count = rows * columns values
//   pruned   the same number of values; may be `weights` itself
//   mask     the same number of bytes, 1 = kept; may be null
//   count    number of weights
//   keep, group    1 <= N < M <= 32
// Launch: blockDim.x threads, any number of blocks, blockDim.x floats of dynamic shared memory. blockDim.x must be at
// least M. A block takes blockDim.x / M whole groups at a time, so reads and writes are coalesced for every M, and a
// thread ranks its own weight among its group in shared memory: M comparisons, no sort, no divergence.
// NaN ranks below everything and is never kept unless fewer than N others exist; check for it first.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace {

__device__ inline float widen(float value) { return value; }
__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename Weight>
__device__ inline void prune(
    const Weight* weights, Weight* pruned, unsigned char* mask, long long count, int keep, int group) {
  extern __shared__ float magnitudes[];
  const int used = blockDim.x / group * group;  // threads with a whole group to work on
  const int lane = threadIdx.x;
  const int first = lane / group * group;  // where this thread's group begins in shared memory
  const long long stride = static_cast<long long>(gridDim.x) * used;

  for (long long base = static_cast<long long>(blockIdx.x) * used; base < count; base += stride) {
    const long long index = base + lane;
    const bool active = lane < used && index < count;
    Weight weight = Weight(0.0f);
    if (active) {
      weight = weights[index];
      const float magnitude = fabsf(widen(weight));
      magnitudes[lane] = magnitude == magnitude ? magnitude : -1.0f;
    }
    __syncthreads();
    if (active) {
      const float own = magnitudes[lane];
      int ahead = 0;  // how many of the group come before this weight
      for (int other = first; other < first + group; ++other) {
        const float theirs = magnitudes[other];
        ahead += theirs > own || (theirs == own && other < lane);
      }
      const bool kept = ahead < keep;
      pruned[index] = kept ? weight : Weight(0.0f);
      if (mask != nullptr) mask[index] = kept;
    }
    __syncthreads();
  }
}

}  // namespace

extern "C" {

__global__ void mpcore_nm_prune_f32(
    const float* weights, float* pruned, unsigned char* mask, long long count, int keep, int group) {
  prune(weights, pruned, mask, count, keep, group);
}

__global__ void mpcore_nm_prune_f16(
    const __half* weights, __half* pruned, unsigned char* mask, long long count, int keep, int group) {
  prune(weights, pruned, mask, count, keep, group);
}

__global__ void mpcore_nm_prune_bf16(
    const __nv_bfloat16* weights, __nv_bfloat16* pruned, unsigned char* mask, long long count, int keep, int group) {
  prune(weights, pruned, mask, count, keep, group);
}

}  // extern "C"
