// A simdgroup's outputs of up to ROWS listed pairs.
template <int ROWS>
RV_FN void rv_expert_rows(const RV_GLOBAL RV_T* x, const RV_GLOBAL uint32_t* weight, RV_SCALES, RV_GLOBAL RV_T* out,
                          RV_SHARED_PTR const int* list, int width, int rows, int each, rv_index base, int first, int outs, int lane) {
  float acc[RV_OUTS][ROWS];
  rv_index at[ROWS];
  RV_UNROLL for (int r = 0; r < ROWS; r++) at[r] = (rv_index)(list[r < rows ? r : rows - 1] / each) * width;
  rv_lane_sums<ROWS>(acc, x, at, weight, RV_THE_SCALES, width, base, first, outs, lane);
  RV_UNROLL for (int o = 0; o < RV_OUTS; o++) {
    RV_UNROLL for (int r = 0; r < ROWS; r++) {
      const float sum = rv_simd_sum(acc[o][r]);
      if (lane == 0 && r < rows && first + o < outs) out[(rv_index)list[r] * outs + first + o] = (RV_T)sum;
    }
  }
}
