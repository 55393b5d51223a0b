// Rows of x times the packed weights of the experts that they ask for, on CUDA's matrix units: as quantized_matmul.cu,
// whose sums these are. A threadgroup finds the rows of its expert; eight of them share what it reads of the weights.
// RV_WEIGHTS 2: the products with two weights, one of which gates the other.
// Metal injects: thread_position_in_threadgroup threadgroup_position_in_grid
RV_SHARED int list[RV_PAIRS];
RV_SHARED float sums[RV_SIMDGROUPS * 8 * 16 * RV_M];
const int simd = RV_SIMD, lane = RV_LANE, g = lane / 4, t = lane % 4, outs = weight_shape[0] / RV_EXPERTS;
const int own = 16 * RV_M / RV_WEIGHTS, width = x_shape[1], first = blockIdx.x * own;
#if RV_WEIGHTS == 2
const uint32_t* const weights[2] = {weight, gate};
const RV_T *const all_scales[2] = {scales, gate_scales}, *const all_biases[2] = {biases, gate_biases};
#else
const uint32_t* const weights[1] = {weight};
const RV_T *const all_scales[1] = {scales}, *const all_biases[1] = {biases};
#endif
#include "gathered_expert.metal"
const rv_index base = (rv_index)expert * outs;
#include "gathered_pairs.metal"
for (int done = 0; done < count; done += 8) {
  float acc[RV_M][1][4];
  const RV_T* from[1] = {done + g < count ? x + (rv_index)(list[done + g] / each) * width : 0};
  rv_warp_sums(acc, from, weights, all_scales, all_biases, width, base, first, outs, simd, g, t);
  RV_UNROLL for (int m = 0; m < RV_M; m++)
    RV_UNROLL for (int e = 0; e < 4; e++)
      sums[(simd * 8 + 2 * t + e % 2) * 16 * RV_M + m * 16 + e / 2 * 8 + g] = acc[m][0][e];
  __syncthreads();
  for (int i = threadIdx.x; i < 8 * own; i += RV_SIMDGROUPS * 32) {
    const int r = done + i / own, at = i % own, n = first + at;
    const int place = i / own * 16 * RV_M + at / 16 * 16 * RV_WEIGHTS + at % 16;
    float sum = 0;
    RV_UNROLL for (int w = 0; w < RV_SIMDGROUPS; w++) sum += sums[w * 8 * 16 * RV_M + place];
#if RV_WEIGHTS == 2
    float gate_sum = 0;
    RV_UNROLL for (int w = 0; w < RV_SIMDGROUPS; w++) gate_sum += sums[w * 8 * 16 * RV_M + place + 16];
    sum = rv_gated(sum, gate_sum);
#endif
    if (r < count && n < outs) out[(rv_index)list[r] * outs + n] = (RV_T)sum;
  }
  __syncthreads();
}
