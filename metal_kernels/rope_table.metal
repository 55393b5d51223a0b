// The cosines, then the sines, of each row's newest position: what paged_decode turns queries and keys by.
// One simdgroup a row; once a step.
// Metal injects: thread_position_in_threadgroup threadgroup_position_in_grid
const int row = RV_GROUP.x;
if (row >= descriptor[0]) return;
const int context = descriptor[RV_HEADER + row * RV_ROW_FIELDS];
const float position = context > 0 ? (float)(context - 1) : 0.0f;
for (int i = RV_LOCAL_ID.x; i < RV_ROPE_DIMS / 2; i += 32) {
  const float angle = position * frequencies[i];
  table[row * RV_ROPE_DIMS + i] = RV_COS(angle);
  table[row * RV_ROPE_DIMS + RV_ROPE_DIMS / 2 + i] = RV_SIN(angle);
}
