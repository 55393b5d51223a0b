// Rows of x times packed weights, on CUDA's matrix units: weights down, rows of x across. A threadgroup owns 16 * RV_M
// outputs; its warps share K, RV_SHARE groups each, and add their sums in order. Within a group each lane takes a
// quarter of the 16-byte loads as they lie: a product's summed dimension may be numbered at will. A 4-bit weight enters
// as the low bits of a float near RV_OFFSET, which the sums of x take out again together with the bias.
// Metal injects: thread_position_in_threadgroup threadgroup_position_in_grid
RV_SHARED float sums[RV_SIMDGROUPS * 8 * 16 * RV_M];  // of eight rows of x
const int simd = RV_SIMD, lane = RV_LANE, g = lane / 4, t = lane % 4;
const int rows = x_shape[0], outs = weight_shape[0];
const int first = blockIdx.x * 16 * RV_M, groups = RV_K / RV_QGROUP;
const int begin = simd * RV_SHARE, end = begin + RV_SHARE < groups ? begin + RV_SHARE : groups;
float acc[RV_M][RV_C][4];
RV_UNROLL for (int m = 0; m < RV_M; m++)
  RV_UNROLL for (int c = 0; c < RV_C; c++)
    RV_UNROLL for (int e = 0; e < 4; e++) acc[m][c][e] = 0;
for (int run = begin; run < end; run += RV_RUN) {
  rv_run now;  // many warps and few registers hide the loads; a second set of registers was slower
  rv_fetch_run(now, weight, scales, biases, first, run, outs, g, t);
  RV_UNROLL for (int i = 0; i < RV_RUN; i++) {
    if (run + i < end) {
      float part[RV_M][RV_C][4], high[RV_M][RV_C][4], ones[RV_C][4];
      RV_UNROLL for (int c = 0; c < RV_C; c++) {
        RV_UNROLL for (int e = 0; e < 4; e++) ones[c][e] = 0;
        RV_UNROLL for (int m = 0; m < RV_M; m++)
          RV_UNROLL for (int e = 0; e < 4; e++) part[m][c][e] = high[m][c][e] = 0;
      }
      RV_UNROLL for (int o = 0; o < RV_QGROUP / 32; o++) {
        unsigned b[RV_C][4];
        RV_UNROLL for (int c = 0; c < RV_C; c++) {
          uint4 w = {0, 0, 0, 0};
          if (c * 8 + g < rows)
            w = *(const uint4*)(x + (rv_index)(c * 8 + g) * RV_K + (run + i) * RV_QGROUP + t * (RV_QGROUP / 4) + o * 8);
          b[c][0] = __byte_perm(w.x, w.z, 0x5410u);  // elements 0 and 4, 1 and 5, ...
          b[c][1] = __byte_perm(w.x, w.z, 0x7632u);
          b[c][2] = __byte_perm(w.y, w.w, 0x5410u);
          b[c][3] = __byte_perm(w.y, w.w, 0x7632u);
          rv_mma(ones[c], RV_ONES, RV_ONES, RV_ONES, RV_ONES, b[c][0], b[c][1]);
          rv_mma(ones[c], RV_ONES, RV_ONES, RV_ONES, RV_ONES, b[c][2], b[c][3]);
        }
        RV_UNROLL for (int m = 0; m < RV_M; m++) {
          unsigned upper[4], lower[4];  // of rows g and g + 8
          rv_weight_pairs(now.words[i][m][0] + o * RV_OCTET_WORDS, upper);
          rv_weight_pairs(now.words[i][m][1] + o * RV_OCTET_WORDS, lower);
          RV_UNROLL for (int c = 0; c < RV_C; c++) {
            rv_mma(part[m][c], rv_low(upper[0]), rv_low(lower[0]), rv_low(upper[1]), rv_low(lower[1]), b[c][0], b[c][1]);
            rv_mma(part[m][c], rv_low(upper[2]), rv_low(lower[2]), rv_low(upper[3]), rv_low(lower[3]), b[c][2], b[c][3]);
#if RV_HALVES == 2
            rv_mma(high[m][c], rv_low(upper[0] >> 4), rv_low(lower[0] >> 4), rv_low(upper[1] >> 4), rv_low(lower[1] >> 4),
                   b[c][0], b[c][1]);
            rv_mma(high[m][c], rv_low(upper[2] >> 4), rv_low(lower[2] >> 4), rv_low(upper[3] >> 4), rv_low(lower[3] >> 4),
                   b[c][2], b[c][3]);
#endif
          }
        }
      }
      RV_UNROLL for (int m = 0; m < RV_M; m++) {
        RV_UNROLL for (int e = 0; e < 4; e++) {
          const float scale = rv_element_of(now.scales[m][e / 2], i);
          const float shift = fmaf(-RV_OFFSET, scale, rv_element_of(now.biases[m][e / 2], i));
          RV_UNROLL for (int c = 0; c < RV_C; c++) {
#if RV_HALVES == 2
            acc[m][c][e] = fmaf(scale * 16.0f, high[m][c][e], acc[m][c][e]);
#endif
            acc[m][c][e] = fmaf(scale, part[m][c][e], acc[m][c][e]);
            acc[m][c][e] = fmaf(shift, ones[c][e], acc[m][c][e]);
          }
        }
      }
    }
  }
}
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
