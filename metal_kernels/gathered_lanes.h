#ifdef RV_FLOAT4
#define RV_GATE_SCALES const RV_GLOBAL uint8_t* gate_scales
#define RV_THE_GATE_SCALES gate_scales
#else
#define RV_GATE_SCALES const RV_GLOBAL RV_T* gate_scales, const RV_GLOBAL RV_T* gate_biases
#define RV_THE_GATE_SCALES gate_scales, gate_biases
#endif
#if RV_WEIGHTS == 2
#define RV_PACKED const RV_GLOBAL uint32_t* weight, RV_SCALES, const RV_GLOBAL uint32_t* gate, RV_GATE_SCALES
#define RV_THE_PACKED weight, RV_THE_SCALES, gate, RV_THE_GATE_SCALES
#else
#define RV_PACKED const RV_GLOBAL uint32_t* weight, RV_SCALES
#define RV_THE_PACKED weight, RV_THE_SCALES
#endif

// A simdgroup's outputs of up to ROWS listed pairs. RV_WEIGHTS 2: of two weights, one of which gates the other.
template <int ROWS>
RV_FN void rv_expert_rows(const RV_GLOBAL RV_T* x, RV_PACKED, RV_GLOBAL RV_T* out, RV_SHARED_PTR const int* list, int width,
                          int rows, int each, rv_index base, int first, int outs, int lane) {
  float acc[RV_OUTS][ROWS];
  rv_index at[ROWS];
  RV_UNROLL for (int r = 0; r < ROWS; r++) at[r] = (rv_index)(list[r < rows ? r : rows - 1] / each) * width;
  rv_lane_sums<ROWS>(acc, x, at, weight, RV_THE_SCALES, width, base, first, outs, lane);
#if RV_WEIGHTS == 2
  float gates[RV_OUTS][ROWS];
  rv_lane_sums<ROWS>(gates, x, at, gate, RV_THE_GATE_SCALES, width, base, first, outs, lane);
#endif
  RV_UNROLL for (int o = 0; o < RV_OUTS; o++) {
    RV_UNROLL for (int r = 0; r < ROWS; r++) {
      float sum = rv_simd_sum(acc[o][r]);
#if RV_WEIGHTS == 2
      sum = rv_gated(sum, rv_simd_sum(gates[o][r]));
#endif
      if (lane == 0 && r < rows && first + o < outs) out[(rv_index)list[r] * outs + first + o] = (RV_T)sum;
    }
  }
}
