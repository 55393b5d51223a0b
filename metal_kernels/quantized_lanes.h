// Products on plain lanes, for any number of rows.
#ifdef RV_FLOAT4
#define RV_SCALES const RV_GLOBAL uint8_t* scales
#define RV_THE_SCALES scales
#else
#define RV_SCALES const RV_GLOBAL RV_T* scales, const RV_GLOBAL RV_T* biases
#define RV_THE_SCALES scales, biases
#endif

// Sums of a lane: RV_OUTS weight rows from `first` of those between `base` and `base + outs`, times ROWS rows of x, whose
// elements begin at `at`. Lane l takes the chunks l, l + 32, ... of the width in order, whatever ROWS is.
template <int ROWS>
RV_FN void rv_lane_sums(RV_LOCAL float (*acc)[ROWS], const RV_GLOBAL RV_T* x, RV_LOCAL const rv_index* at,
                        const RV_GLOBAL uint32_t* weight, RV_SCALES, int width,
                        rv_index base, int first, int outs, int lane) {
  RV_UNROLL for (int o = 0; o < RV_OUTS; o++)
    RV_UNROLL for (int r = 0; r < ROWS; r++) acc[o][r] = 0;
  for (int chunk = lane; chunk < width / 32; chunk += 32) {
    rv_chunk packed[RV_OUTS];
    float scale[RV_OUTS], bias[RV_OUTS];
    RV_UNROLL for (int o = 0; o < RV_OUTS; o++) {
      const rv_index n = base + (first + o < outs ? first + o : outs - 1);
      packed[o] = rv_fetch_chunk(weight + (n * (width / 32) + chunk) * RV_WBITS);
      const rv_index group = n * (width / RV_QGROUP) + chunk * 32 / RV_QGROUP;
#ifdef RV_FLOAT4
      scale[o] = scales[group] == 0 ? RV_BITS(0x00400000u) : RV_BITS((unsigned int)scales[group] << 23);
      bias[o] = 0;
#else
      scale[o] = (float)scales[group];
      bias[o] = (float)biases[group];
#endif
    }
    RV_UNROLL for (int part = 0; part < 32; part += RV_VEC) {
      float w[RV_OUTS][RV_VEC];
      RV_UNROLL for (int o = 0; o < RV_OUTS; o++)
        RV_UNROLL for (int e = 0; e < RV_VEC; e++) w[o][e] = rv_weight(packed[o], part + e, scale[o], bias[o]);
      RV_UNROLL for (int r = 0; r < ROWS; r++) {
        float v[RV_VEC];
        rv_unpack(rv_load(x + at[r] + chunk * 32 + part), v);
        RV_UNROLL for (int o = 0; o < RV_OUTS; o++)
          RV_UNROLL for (int e = 0; e < RV_VEC; e++) acc[o][r] = RV_FMA(v[e], w[o][e], acc[o][r]);
      }
    }
  }
}
