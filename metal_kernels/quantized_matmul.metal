// Rows of x times packed weights, on plain lanes. A simdgroup owns RV_OUTS outputs of all rows; its lanes share K in chunks
// of 32 weights, each of which is unpacked once for all rows. A row's additions follow K alone: lane l takes chunks
// l, l + 32, ... in order, and the lanes' sums are added by halves.
// Metal injects: threadgroup_position_in_grid thread_index_in_simdgroup simdgroup_index_in_threadgroup
const int lane = RV_LANE;
const int rows = x_shape[0], width = x_shape[1], outs = weight_shape[0];
const int first = ((int)RV_GROUP.x * RV_SIMDGROUPS + (int)RV_SIMD) * RV_OUTS;
if (first >= outs) return;
float acc[RV_OUTS][RV_ROWS];
rv_index at[RV_ROWS];
RV_UNROLL for (int r = 0; r < RV_ROWS; r++) at[r] = (rv_index)(r < rows ? r : rows - 1) * width;
rv_lane_sums<RV_ROWS>(acc, x, at, weight, RV_THE_SCALES, width, 0, first, outs, lane);
RV_UNROLL for (int o = 0; o < RV_OUTS; o++) {
  RV_UNROLL for (int r = 0; r < RV_ROWS; r++) {
    const float sum = rv_simd_sum(acc[o][r]);
    if (lane == 0 && r < rows && first + o < outs) out[(rv_index)r * outs + first + o] = (RV_T)sum;
  }
}
