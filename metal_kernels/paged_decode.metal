// Attention of a tile of query rows over one split of one row's blocks. RV_NEW: the call's new keys and values are
// written first, by every threadgroup that reads them. RV_FINAL: a row has one split, and the output is written;
// else unnormalized sums, maximum and weight go to the scratch, for paged_combine.
// Threadgroup: (kv head and query tile, row, split). Each simdgroup takes whole blocks: RV_KEY_LANES lanes share a
// token's dot products and leave each lane with one token's, for the softmax; then RV_LANES lanes own the output's
// elements. Two stages of loads are in flight while a third is used.
// Metal injects: thread_position_in_threadgroup threadgroup_position_in_grid threadgroups_per_grid
// Metal injects: thread_index_in_simdgroup simdgroup_index_in_threadgroup
RV_SHARED float4 shared[RV_SHARED_VECTORS];
RV_SHARED float peaks[RV_SIMDGROUPS * RV_PAD];
RV_SHARED float weights[RV_SIMDGROUPS * RV_PAD];
RV_SHARED float shares[2 * RV_PAD];
const int simd = RV_SIMD, lane = RV_LANE;
const int sub = lane / RV_LANES, chunk = lane % RV_LANES;
#include "decode_begin.metal"

RV_SHARED_PTR float4* q = shared;  // [query row, D / 4]
RV_SHARED_PTR float* scratch_rows = (RV_SHARED_PTR float*)(shared + RV_TILE * RV_D / 4);
RV_SHARED_PTR float* mine = scratch_rows + simd * RV_BLOCK * RV_PAD;  // this simdgroup's weights, [token, query row]
for (int i = RV_LOCAL_ID.x; i < RV_TILE * RV_D; i += RV_SIMDGROUPS * 32) {
  const int r = i / RV_D, index = tile * RV_TILE + r < RV_ROWS ? tile * RV_TILE + r : RV_ROWS - 1;
  ((RV_SHARED_PTR float*)q)[i] = rv_element(
      queries + row * queries_strides[0] + (head * RV_GROUP_SIZE + index / RV_QUERY_LEN) * queries_strides[1]
      + (index % RV_QUERY_LEN) * queries_strides[2], queries_strides[3], i % RV_D, RV_ROPE_ROW);
}
float acc[RV_TILE][RV_OWN], peak[RV_TILE], weight[RV_TILE];
RV_UNROLL for (int r = 0; r < RV_TILE; r++) {
  RV_UNROLL for (int e = 0; e < RV_OWN; e++) acc[r][e] = 0;
  peak[r] = RV_NEVER;
  weight[r] = 0;
}
RV_DEVICE_BARRIER();  // the queries and the new tokens are there

rv_raw now[RV_LOADS], next[RV_LOADS], later[RV_LOADS];
int b = begin + simd;
rv_index plane = b < end ? rv_plane(table[b], layer[0], 0, head) * RV_BLOCK : 0;
int left = b < end ? context - first - b * RV_BLOCK : 0;  // tokens of this block inside the context
rv_fetch(next, arena, plane, left, 0, lane);
rv_fetch(later, arena, plane, left, 1, lane);
for (; b < end; b += RV_SIMDGROUPS) {
  const int ahead = b + RV_SIMDGROUPS;
  const rv_index next_plane = ahead < end ? rv_plane(table[ahead], layer[0], 0, head) * RV_BLOCK : 0;
  const int next_left = ahead < end ? context - first - ahead * RV_BLOCK : 0;
#if RV_KIND == 3
  const float key_scale = scales[plane + rv_own_token(lane)];
  const float value_scale = scales[plane + RV_KV_HEADS * RV_BLOCK + rv_own_token(lane)];
#endif
  float dots[RV_KEY_LANES * RV_PAD];  // [token, query row]
  RV_UNROLL for (int i = 0; i < RV_KEY_LANES * RV_PAD; i++) dots[i] = 0;
  for (int stage = 0; stage < RV_KEY_STAGES; stage++) {
    RV_UNROLL for (int i = 0; i < RV_LOADS; i++) { now[i] = next[i]; next[i] = later[i]; }
    if (stage + 2 < RV_STAGES) rv_fetch(later, arena, plane, left, stage + 2, lane);
    else rv_fetch(later, arena, next_plane, next_left, stage + 2 - RV_STAGES, lane);
    float x[RV_KEY_LANES][RV_VEC];
    RV_UNROLL for (int i = 0; i < RV_KEY_LANES; i++) rv_unpack(now[i], x[i]);
    RV_SHARED_PTR float4* part = q + (stage * RV_KEY_LANES + lane % RV_KEY_LANES) * 2;
    RV_UNROLL for (int r = 0; r < RV_TILE; r++) {
      const float4 a = part[r * RV_D / 4], c = part[r * RV_D / 4 + 1];
      RV_UNROLL for (int i = 0; i < RV_KEY_LANES; i++)
        dots[i * RV_PAD + r] += a.x * x[i][0] + a.y * x[i][1] + a.z * x[i][2] + a.w * x[i][3]
                                + c.x * x[i][4] + c.y * x[i][5] + c.z * x[i][6] + c.w * x[i][7];
    }
  }
  rv_sum_lanes(dots, lane);  // dots[r] is now this lane's own token's
  const int token_at = rv_own_token(lane), position = first + b * RV_BLOCK + token_at;
  RV_UNROLL for (int r = 0; r < RV_TILE; r++) {
    float s = dots[r] * RV_SCALE;
#if RV_KIND == 3
    s *= key_scale;
#endif
#ifdef RV_SOFTCAP
    s = RV_SOFTCAP * RV_TANH(s * (1.0f / RV_SOFTCAP));
#endif
    s *= RV_LOG2E;
    const int query = context - RV_QUERY_LEN + (tile * RV_TILE + r) % RV_QUERY_LEN;
    const bool seen = position <= query && (RV_WINDOW == 0 || position > query - RV_WINDOW);
    const float top = RV_MAX(peak[r], rv_simd_max(seen ? s : RV_NEVER));
    const float shrink = RV_EXP2(peak[r] - top);
    const float p = seen ? RV_EXP2(s - top) : 0.0f;
    weight[r] = weight[r] * shrink + p;
    peak[r] = top;
#if RV_KIND == 3
    mine[token_at * RV_PAD + r] = token_at < left ? p * value_scale : 0.0f;
#else
    mine[token_at * RV_PAD + r] = p;
#endif
    RV_UNROLL for (int e = 0; e < RV_OWN; e++) acc[r][e] *= shrink;
  }
  RV_SIMD_BARRIER();
  for (int stage = RV_KEY_STAGES; stage < RV_STAGES; stage++) {
    RV_UNROLL for (int i = 0; i < RV_LOADS; i++) { now[i] = next[i]; next[i] = later[i]; }
    if (stage + 2 < RV_STAGES) rv_fetch(later, arena, plane, left, stage + 2, lane);
    else rv_fetch(later, arena, next_plane, next_left, stage + 2 - RV_STAGES, lane);
    RV_UNROLL for (int i = 0; i < RV_LOADS; i++) {
      float x[RV_VEC], w[RV_PAD];
      rv_unpack(now[i], x);
      rv_weights(mine + (((stage - RV_KEY_STAGES) * RV_LOADS + i) / RV_PARTS * RV_SUBS + sub) * RV_PAD, w);
      RV_UNROLL for (int r = 0; r < RV_TILE; r++) {
        RV_UNROLL for (int e = 0; e < RV_VEC; e++) acc[r][i % RV_PARTS * RV_VEC + e] += w[r] * x[e];
      }
    }
  }
  RV_SIMD_BARRIER();
  plane = next_plane;
  left = next_left;
}

// One maximum and weight for the threadgroup, then the sums of its simdgroups.
RV_UNROLL for (int r = 0; r < RV_TILE; r++) {
  weight[r] = rv_simd_sum(weight[r]);
  RV_UNROLL for (int mask = RV_LANES; mask < 32; mask <<= 1) {
    RV_UNROLL for (int e = 0; e < RV_OWN; e++) acc[r][e] += rv_xor(acc[r][e], mask);
  }
  if (lane == 0) { peaks[simd * RV_PAD + r] = peak[r]; weights[simd * RV_PAD + r] = weight[r]; }
}
RV_BARRIER();
#include "decode_weigh.metal"
RV_UNROLL for (int start = 0; start < RV_TILE; start += RV_MERGE) {
  RV_UNROLL for (int r = start; r < start + RV_MERGE && r < RV_TILE; r++) {
    float top = RV_NEVER;
    RV_UNROLL for (int s = 0; s < RV_SIMDGROUPS; s++) top = RV_MAX(top, peaks[s * RV_PAD + r]);
    const float shrink = RV_EXP2(peak[r] - top);
    if (sub == 0 && chunk < RV_CHUNKS) {
      RV_UNROLL for (int e = 0; e < RV_OWN; e++)
        scratch_rows[((r - start) * RV_SIMDGROUPS + simd) * RV_D + (e / RV_VEC * RV_LANES + chunk) * RV_VEC + e % RV_VEC]
            = acc[r][e] * shrink;
    }
  }
  RV_BARRIER();
  for (int i = RV_LOCAL_ID.x; i < RV_MERGE * RV_D; i += RV_SIMDGROUPS * 32) {
    const int r = start + i / RV_D, d = i % RV_D, index = tile * RV_TILE + r;
    if (r < RV_TILE && index < RV_ROWS) {
      float sum = 0;
      RV_UNROLL for (int s = 0; s < RV_SIMDGROUPS; s++) sum += scratch_rows[((r - start) * RV_SIMDGROUPS + s) * RV_D + d];
#ifdef RV_FINAL
      out[(RV_OUT_ROW + index) * RV_D + d] = (RV_T)(sum * shares[r] * shares[RV_PAD + r]);
#else
      ((RV_GLOBAL float*)scratch)[((RV_OUT_ROW + index) * splits + split) * RV_D + d] = sum;
#endif
    }
  }
  RV_BARRIER();
}
