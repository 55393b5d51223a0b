// RV_FINAL: what the sums are multiplied by, with the same operations as paged_combine. Else each split's statistics.
for (int r = simd; r < RV_TILE; r += RV_SIMDGROUPS) {
  const int index = tile * RV_TILE + r;
  const float mine_top = lane < RV_SIMDGROUPS ? peaks[lane * RV_PAD + r] : RV_NEVER;
  const float top = rv_simd_max(mine_top);
  const float total = rv_simd_sum(lane < RV_SIMDGROUPS ? weights[lane * RV_PAD + r] * RV_EXP2(mine_top - top) : 0.0f);
#ifdef RV_FINAL
#ifdef RV_SINKS
  const float sink = (float)sinks[head * RV_GROUP_SIZE + (index < RV_ROWS ? index : 0) / RV_QUERY_LEN] * RV_LOG2E;
  const rv_share share = rv_weigh(top, total, sink, lane);
#else
  const rv_share share = rv_weigh(top, total, RV_NEVER, lane);
#endif
  if (lane == 0) { shares[r] = share.factor; shares[RV_PAD + r] = end > begin ? share.inverse : 0.0f; }
#else
  if (lane == 0 && index < RV_ROWS) {
    const rv_index at = (RV_OUT_ROW + index) * splits + split;
    RV_GLOBAL float* stats = (RV_GLOBAL float*)scratch + (rv_index)RV_GROUPS.y * RV_KV_HEADS * RV_ROWS * splits * RV_D;
    stats[at * 2] = top;
    stats[at * 2 + 1] = total;
  }
#endif
}
#ifdef RV_FINAL
RV_BARRIER();
#endif
