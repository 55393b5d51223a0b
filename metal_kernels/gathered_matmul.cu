// Rows of x times the packed weights of the experts that they ask for, on CUDA's matrix units: as quantized_matmul.cu,
// whose sums these are. A threadgroup finds the rows of its expert; eight of them share what it reads of the weights.
// Metal injects: thread_position_in_threadgroup threadgroup_position_in_grid
RV_SHARED int list[RV_PAIRS];
RV_SHARED float sums[RV_SIMDGROUPS * 8 * 16 * RV_M];
const int simd = RV_SIMD, lane = RV_LANE, g = lane / 4, t = lane % 4, outs = weight_shape[0] / RV_EXPERTS;
#include "gathered_pairs.metal"
const int width = x_shape[1], first = blockIdx.x * 16 * RV_M;
for (int done = 0; done < count; done += 8) {
  float acc[RV_M][1][4];
  const RV_T* from[1] = {done + g < count ? x + (rv_index)(list[done + g] / each) * width : 0};
  rv_warp_sums(acc, from, weight, scales, biases, width, (rv_index)expert * outs, first, outs, simd, g, t);
  RV_UNROLL for (int m = 0; m < RV_M; m++)
    RV_UNROLL for (int e = 0; e < 4; e++)
      sums[(simd * 8 + 2 * t + e % 2) * 16 * RV_M + m * 16 + e / 2 * 8 + g] = acc[m][0][e];
  __syncthreads();
  for (int i = threadIdx.x; i < 8 * 16 * RV_M; i += RV_SIMDGROUPS * 32) {
    const int r = done + i / (16 * RV_M), n = first + i % (16 * RV_M);
    float sum = 0;
    RV_UNROLL for (int w = 0; w < RV_SIMDGROUPS; w++) sum += sums[w * 8 * 16 * RV_M + i];
    if (r < count && n < outs) out[(rv_index)list[r] * outs + n] = (RV_T)sum;
  }
  __syncthreads();
}
