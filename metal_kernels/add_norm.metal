// The residual stream plus a block's result, and the sum normed for the next block: weight * sum / sqrt(mean(sum^2) + eps).
// The sum is rounded to the model's type before it is normed. One threadgroup a row.
// Metal injects: thread_position_in_threadgroup threadgroup_position_in_grid
// Metal injects: thread_index_in_simdgroup simdgroup_index_in_threadgroup
RV_SHARED float sums[RV_SIMDGROUPS];
const int lane = RV_LANE, simd = RV_SIMD;
const rv_index row = (rv_index)RV_GROUP.x * RV_D;
float x[RV_LOADS][RV_VEC], y[RV_VEC];
float sum = 0;
RV_UNROLL for (int i = 0; i < RV_LOADS; i++) {
  const int at = (i * RV_SIMDGROUPS * 32 + (int)RV_LOCAL_ID.x) * RV_VEC;
  if (at < RV_D) {
    rv_unpack(rv_load(stream + row + at), x[i]);
    rv_unpack(rv_load(added + row + at), y);
    RV_UNROLL for (int j = 0; j < RV_VEC; j++) {
      x[i][j] = (float)(RV_T)(x[i][j] + y[j]);
      sum += x[i][j] * x[i][j];
    }
    rv_store(total + row + at, x[i]);
  }
}
sum = rv_simd_sum(sum);
if (lane == 0) sums[simd] = sum;
RV_BARRIER();
sum = rv_simd_sum(lane < RV_SIMDGROUPS ? sums[lane] : 0.0f);
const float inverse = RV_RSQRT(sum / RV_D + RV_EPS);
RV_UNROLL for (int i = 0; i < RV_LOADS; i++) {
  const int at = (i * RV_SIMDGROUPS * 32 + (int)RV_LOCAL_ID.x) * RV_VEC;
  if (at < RV_D) {
    rv_unpack(rv_load(weight + at), y);
    RV_UNROLL for (int j = 0; j < RV_VEC; j++) y[j] *= (float)(RV_T)(x[i][j] * inverse);
    rv_store(normed + row + at, y);
  }
}
