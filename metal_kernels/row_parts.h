// One token's key or value on its way in: its elements, rotated if the launch says so, and their place in the arena.
// RV_ROPE_DIMS: how many elements are rotated; RV_ROPE_PAIRS: neighbours are partners, not halves. A row's table holds
// its cosines, then its sines.

// Element `d` of the row at `from`, rotated and rounded as the model's own rotation would leave it.
RV_FN float rv_element(const RV_GLOBAL RV_T* from, rv_stride step, int d, const RV_GLOBAL float* rope) {
  const float x = (float)from[d * step];
#ifdef RV_ROPE_DIMS
  if (d >= RV_ROPE_DIMS) return x;
#ifdef RV_ROPE_PAIRS
  const int angle = d / 2, partner = d ^ 1;
  const bool is_first = partner > d;
#else
  const bool is_first = d < RV_ROPE_DIMS / 2;
  const int partner = is_first ? d + RV_ROPE_DIMS / 2 : d - RV_ROPE_DIMS / 2, angle = is_first ? d : partner;
#endif
  const float turned = (float)from[partner * step] * rope[RV_ROPE_DIMS / 2 + angle];
  return (float)(RV_T)(x * rope[angle] + (is_first ? -turned : turned));
#else
  return x;
#endif
}

// One simdgroup writes a token's key or value, of D elements, to `to`; int8 rounds to peak / 127, and its scale goes to
// row `place`.
template <int D>
RV_FN void rv_put(const RV_GLOBAL RV_T* from, rv_stride step, const RV_GLOBAL float* rope, bool rotates,
                  RV_GLOBAL RV_KV* to, RV_GLOBAL float* scales, rv_index place, int lane) {
  float x[(D + 31) / 32];
  RV_UNROLL for (int i = 0; i < (D + 31) / 32; i++) {
    const int d = i * 32 + lane;
    x[i] = d < D ? (rotates ? rv_element(from, step, d, rope) : (float)from[d * step]) : 0;
  }
#if RV_KIND == 3
  float peak = 0;
  RV_UNROLL for (int i = 0; i < (D + 31) / 32; i++) peak = RV_MAX(peak, x[i] < 0 ? -x[i] : x[i]);
  peak = rv_simd_max(peak);
  const float inverse = peak > 0 ? 127.0f / peak : 0.0f;
  if (lane == 0) scales[place] = peak / 127.0f;
#endif
  RV_UNROLL for (int i = 0; i < (D + 31) / 32; i++) {
    const int d = i * 32 + lane;
#if RV_KIND == 3
    if (d < D) to[d] = (RV_KV)(int)RV_ROUND(x[i] * inverse);
#else
    if (d < D) to[d] = (RV_KV)x[i];
#endif
  }
}

// Where a token's key (kv 0) or value (kv 1) begins in the arena. Where both have one size, rv_plane counts the same.
RV_FN rv_index rv_token(int block, int layer, int kv, int head, int t) {
  const rv_index begin = ((rv_index)block * RV_LAYERS + layer) * (RV_KV_HEADS * RV_BLOCK * (RV_D + RV_VALUE_D));
  const int row = head * RV_BLOCK + t;
  return begin + (kv == 0 ? row * RV_D : RV_KV_HEADS * RV_BLOCK * RV_D + row * RV_VALUE_D);
}
