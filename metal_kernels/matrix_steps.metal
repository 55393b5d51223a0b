// Sums of RV_ROWS rows for outputs from `first` on, in steps of 32 along K: weights are unpacked, and rows of x brought,
// into threadgroup memory once; a simdgroup multiplies them for its eight outputs. Two buffers take turns, so that one
// barrier a step is enough. The order of a row's additions follows K alone. `sums` holds what came out, after a barrier.
metal::simdgroup_matrix<float, 8, 8> acc[RV_ROWS / 8];
RV_UNROLL for (int r = 0; r < RV_ROWS / 8; r++) acc[r] = metal::make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
for (int chunk = 0; chunk < width / 32; chunk++) {
  RV_SHARED_PTR RV_T* w = weights + chunk % 2 * (32 * 40);
  RV_SHARED_PTR RV_T* v = xs + chunk % 2 * (RV_ROWS * 40);
  const rv_index at = n * (width / RV_QGROUP) + chunk * 32 / RV_QGROUP;
#ifdef RV_FLOAT4
  const float scale = scales[at] == 0 ? RV_BITS(0x00400000u) : RV_BITS((unsigned int)scales[at] << 23), bias = 0;
#else
  const float scale = (float)scales[at], bias = (float)biases[at];
#endif
  const rv_chunk packed = rv_fetch_chunk(weight + (n * (width / 32) + chunk) * RV_WBITS);
  RV_UNROLL for (int p = 0; p < 32; p += RV_VEC) {
    if (p == part) {
      RV_UNROLL for (int e = 0; e < RV_VEC; e++) w[own * 40 + p + e] = (RV_T)rv_weight(packed, p + e, scale, bias);
    }
  }
  for (int i = thread_at; i < RV_ROWS * 4; i += 128) {
    const int r = i / 4, k = i % 4 * RV_VEC;
#ifdef RV_EXPERTS
    const rv_index row = done + r < count ? list[done + r] / each : 0;
    const bool is_row = done + r < count;
#else
    const rv_index row = r;
    const bool is_row = r < rows;
#endif
    float values[RV_VEC];
    rv_unpack(is_row ? rv_load(x + row * width + chunk * 32 + k) : rv_zero(), values);
    RV_UNROLL for (int e = 0; e < RV_VEC; e++) v[r * 40 + k + e] = (RV_T)values[e];
  }
  RV_BARRIER();
  RV_UNROLL for (int k = 0; k < 32; k += 8) {
    metal::simdgroup_matrix<RV_T, 8, 8> b, a;
    metal::simdgroup_load(b, w + simd * 8 * 40 + k, 40, ulong2(0, 0), true);
    RV_UNROLL for (int r = 0; r < RV_ROWS / 8; r++) {
      metal::simdgroup_load(a, v + r * 8 * 40 + k, 40);
      metal::simdgroup_multiply_accumulate(acc[r], a, b, acc[r]);
    }
  }
}
RV_UNROLL for (int r = 0; r < RV_ROWS / 8; r++) metal::simdgroup_store(acc[r], sums + r * 8 * 32 + simd * 8, 32);
RV_BARRIER();
