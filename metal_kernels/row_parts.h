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

// One simdgroup writes a token's key or value at row `place` of the arena; int8 rounds to peak / 127.
RV_FN void rv_put(const RV_GLOBAL RV_T* from, rv_stride step, const RV_GLOBAL float* rope, bool rotates,
                  RV_GLOBAL RV_KV* arena, RV_GLOBAL float* scales, rv_index place, int lane) {
  RV_GLOBAL RV_KV* to = arena + place * RV_D;
  float x[(RV_D + 31) / 32];
  RV_UNROLL for (int i = 0; i < (RV_D + 31) / 32; i++) {
    const int d = i * 32 + lane;
    x[i] = d < RV_D ? (rotates ? rv_element(from, step, d, rope) : (float)from[d * step]) : 0;
  }
#if RV_KIND == 3
  float peak = 0;
  RV_UNROLL for (int i = 0; i < (RV_D + 31) / 32; i++) peak = RV_MAX(peak, x[i] < 0 ? -x[i] : x[i]);
  peak = rv_simd_max(peak);
  const float inverse = peak > 0 ? 127.0f / peak : 0.0f;
  if (lane == 0) scales[place] = peak / 127.0f;
#endif
  RV_UNROLL for (int i = 0; i < (RV_D + 31) / 32; i++) {
    const int d = i * 32 + lane;
#if RV_KIND == 3
    if (d < RV_D) to[d] = (RV_KV)(int)RV_ROUND(x[i] * inverse);
#else
    if (d < RV_D) to[d] = (RV_KV)x[i];
#endif
  }
}
