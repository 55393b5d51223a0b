// Merges a query row's splits (and its head's sink) into the attention output; zeros for padding rows.
// RV_SLICES simdgroups a query row of a head; follows every paged_decode that is not final, and returns the next fence:
// the scratch may be written again.
// Metal injects: thread_index_in_simdgroup threadgroup_position_in_grid threadgroups_per_grid
const int lane = RV_LANE;
const int index = RV_GROUP.x / RV_SLICES, row = RV_GROUP.y;  // head * query_len + query token
const int max_blocks = descriptor[2];
if (RV_GROUP.x == 0 && row == 0 && lane < 8) fence_out[lane] = rv_next_fence(fence[lane]);
if (index >= RV_HEADS * RV_QUERY_LEN || row >= descriptor[0]) return;
const int context = descriptor[RV_HEADER + row * RV_ROW_FIELDS];
const rv_span span = rv_blocks(context, descriptor[RV_HEADER + row * RV_ROW_FIELDS + 1], max_blocks);
const int blocks = span.end - span.begin, size = RV_SPLIT_BLOCKS(blocks);
const int used = blocks > 0 ? (blocks + size - 1) / size : 0;
const int begin = RV_GROUP.x % RV_SLICES * RV_SHARE;  // this simdgroup's elements
const rv_index at = ((rv_index)row * RV_HEADS * RV_QUERY_LEN + index) * RV_SPLITS;
const RV_GLOBAL float* partial = scratch + at * RV_D + begin;
const RV_GLOBAL float* stats = scratch + (rv_index)RV_GROUPS.y * RV_HEADS * RV_QUERY_LEN * RV_SPLITS * RV_D + at * 2;
float top = RV_NEVER, total = 0;
for (int s = lane; s < used; s += 32) top = RV_MAX(top, stats[s * 2]);
top = rv_simd_max(top);
#ifdef RV_SINKS
const float sink = (float)sinks[index / RV_QUERY_LEN] * RV_LOG2E;
top = RV_MAX(top, sink);
#endif
for (int s = lane; s < used; s += 32) total += stats[s * 2 + 1] * RV_EXP2(stats[s * 2] - top);
total = rv_simd_sum(total);
#ifdef RV_SINKS
total += RV_EXP2(sink - top);
#endif
const float inverse = used > 0 && total > 0 ? 1.0f / total : 0.0f;
float sum[(RV_SHARE + 31) / 32];
RV_UNROLL for (int i = 0; i < (RV_SHARE + 31) / 32; i++) sum[i] = 0;
for (int start = 0; start < used; start += RV_BATCH) {
  float w[RV_BATCH], x[RV_BATCH][(RV_SHARE + 31) / 32];  // many loads in flight; those past the last split weigh nothing
  RV_UNROLL for (int b = 0; b < RV_BATCH; b++) {
    const int s = start + b < used ? start + b : used - 1;
    w[b] = start + b < used ? RV_EXP2(stats[s * 2] - top) : 0.0f;
    RV_UNROLL for (int i = 0; i < (RV_SHARE + 31) / 32; i++) {
      if (i * 32 + lane < RV_SHARE) x[b][i] = partial[s * RV_D + i * 32 + lane];
    }
  }
  RV_UNROLL for (int b = 0; b < RV_BATCH; b++) {
    RV_UNROLL for (int i = 0; i < (RV_SHARE + 31) / 32; i++) {
      if (i * 32 + lane < RV_SHARE) sum[i] += w[b] * x[b][i];
    }
  }
}
RV_UNROLL for (int i = 0; i < (RV_SHARE + 31) / 32; i++) {
  if (i * 32 + lane < RV_SHARE) out[((rv_index)row * RV_HEADS * RV_QUERY_LEN + index) * RV_D + begin + i * 32 + lane] = (RV_T)(sum[i] * inverse);
}
