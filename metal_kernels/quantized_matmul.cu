// Rows of x times packed weights, on CUDA's matrix units: weights down, rows of x across. A threadgroup owns 16 * RV_M
// outputs; its warps share K, as many groups each, and add their sums in order. Within a group each lane takes a
// quarter of the 16-byte loads as they lie: a product's summed dimension may be numbered at will. A 4-bit weight enters
// as the low bits of a float near RV_OFFSET, which the sums of x take out again together with the bias.
// Metal injects: thread_position_in_threadgroup threadgroup_position_in_grid
RV_SHARED float sums[RV_SIMDGROUPS * 8 * 16 * RV_M];  // of eight rows of x
const int simd = RV_SIMD, lane = RV_LANE, g = lane / 4, t = lane % 4;
const int rows = x_shape[0], width = x_shape[1], outs = weight_shape[0];
const int first = blockIdx.x * 16 * RV_M;
float acc[RV_M][RV_C][4];
const RV_T* from[RV_C];
RV_UNROLL for (int c = 0; c < RV_C; c++) from[c] = c * 8 + g < rows ? x + (rv_index)(c * 8 + g) * width : 0;
const uint32_t* const weights[1] = {weight};
const RV_T *const all_scales[1] = {scales}, *const all_biases[1] = {biases};
rv_warp_sums(acc, from, weights, all_scales, all_biases, width, 0, first, outs, simd, g, t);
RV_UNROLL for (int c = 0; c < RV_C; c++) {
  RV_UNROLL for (int m = 0; m < RV_M; m++)
    RV_UNROLL for (int e = 0; e < 4; e++)
      sums[(simd * 8 + 2 * t + e % 2) * 16 * RV_M + m * 16 + e / 2 * 8 + g] = acc[m][c][e];
  __syncthreads();
  for (int i = threadIdx.x; i < 8 * 16 * RV_M; i += RV_SIMDGROUPS * 32) {
    const int r = c * 8 + i / (16 * RV_M), n = first + i % (16 * RV_M);
    float sum = 0;
    RV_UNROLL for (int w = 0; w < RV_SIMDGROUPS; w++) sum += sums[w * 8 * 16 * RV_M + i];
    if (r < rows && n < outs) out[(rv_index)r * outs + n] = (RV_T)sum;
  }
  __syncthreads();
}
