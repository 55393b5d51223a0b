// A row's parts, each times its share, added in order: what its experts gave becomes one row. A thread owns eight elements.
// Metal injects: thread_position_in_threadgroup threadgroup_position_in_grid
const int at = ((int)RV_GROUP.x * RV_THREADS + (int)RV_LOCAL_ID.x) * RV_VEC, row = (int)RV_GROUP.y;
if (at >= RV_D) return;
float sum[RV_VEC], x[RV_VEC];
RV_UNROLL for (int j = 0; j < RV_VEC; j++) sum[j] = 0;
RV_UNROLL for (int i = 0; i < RV_EACH; i++) {
  const int part = row * RV_EACH + i;
  const float share = (float)shares[part];
  rv_unpack(rv_load(parts + (rv_index)part * RV_D + at), x);
  RV_UNROLL for (int j = 0; j < RV_VEC; j++) sum[j] = RV_FMA(share, x[j], sum[j]);
}
rv_store(out + (rv_index)row * RV_D + at, sum);
