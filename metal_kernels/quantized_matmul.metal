// Rows of x times packed weights, on plain lanes. A simdgroup owns RV_OUTS outputs of all rows; its lanes share K in chunks
// of 32 weights, each of which is unpacked once for all rows. A row's additions follow K alone: lane l takes chunks
// l, l + 32, ... in order, and the lanes' sums are added by halves.
// Metal injects: threadgroup_position_in_grid thread_index_in_simdgroup simdgroup_index_in_threadgroup
const int lane = RV_LANE;
const int rows = x_shape[0], outs = weight_shape[0];
const int first = ((int)RV_GROUP.x * RV_SIMDGROUPS + (int)RV_SIMD) * RV_OUTS;
if (first >= outs) return;
float acc[RV_OUTS][RV_ROWS];
RV_UNROLL for (int o = 0; o < RV_OUTS; o++)
  RV_UNROLL for (int r = 0; r < RV_ROWS; r++) acc[o][r] = 0;
for (int chunk = lane; chunk < RV_K / 32; chunk += 32) {
  rv_chunk packed[RV_OUTS];
  float scale[RV_OUTS], bias[RV_OUTS];
  RV_UNROLL for (int o = 0; o < RV_OUTS; o++) {
    const int n = first + o < outs ? first + o : outs - 1;
    packed[o] = rv_fetch_chunk(weight + ((rv_index)n * (RV_K / 32) + chunk) * RV_WBITS);
    const rv_index at = (rv_index)n * (RV_K / RV_QGROUP) + chunk * 32 / RV_QGROUP;
#ifdef RV_FLOAT4
    scale[o] = scales[at] == 0 ? RV_BITS(0x00400000u) : RV_BITS((unsigned int)scales[at] << 23);
    bias[o] = 0;
#else
    scale[o] = (float)scales[at];
    bias[o] = (float)biases[at];
#endif
  }
  RV_UNROLL for (int part = 0; part < 32; part += RV_VEC) {
    float w[RV_OUTS][RV_VEC];
    RV_UNROLL for (int o = 0; o < RV_OUTS; o++)
      RV_UNROLL for (int e = 0; e < RV_VEC; e++) w[o][e] = rv_weight(packed[o], part + e, scale[o], bias[o]);
    RV_UNROLL for (int r = 0; r < RV_ROWS; r++) {
      float v[RV_VEC];
      rv_unpack(rv_load(x + (rv_index)(r < rows ? r : rows - 1) * RV_K + chunk * 32 + part), v);
      RV_UNROLL for (int o = 0; o < RV_OUTS; o++)
        RV_UNROLL for (int e = 0; e < RV_VEC; e++) acc[o][r] = RV_FMA(v[e], w[o][e], acc[o][r]);
    }
  }
}
RV_UNROLL for (int o = 0; o < RV_OUTS; o++) {
  RV_UNROLL for (int r = 0; r < RV_ROWS; r++) {
    const float sum = rv_simd_sum(acc[o][r]);
    if (lane == 0 && r < rows && first + o < outs) out[(rv_index)r * outs + first + o] = (RV_T)sum;
  }
}
