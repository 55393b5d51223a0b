// Attention of a tile of query rows over one split of one row's latents, each read once for all of the tile. A latent
// is a token's key together with its rotated part, and its value alone. RV_NEW, RV_FINAL as in paged_decode.
// Threadgroup: (query tile, row, split). A stage of RV_STEP tokens goes to threadgroup memory while the next one is on
// its way; each simdgroup owns RV_OWN_ROWS query rows, each lane every 32nd vector of a token and of the output.
// Metal injects: thread_position_in_threadgroup threadgroup_position_in_grid threadgroups_per_grid
// Metal injects: thread_index_in_simdgroup simdgroup_index_in_threadgroup
RV_SHARED float4 stage[RV_STAGE_VECTORS];
RV_SHARED float weights[RV_SIMDGROUPS * (RV_SCORES + RV_OWN_ROWS)];
#if RV_KIND == 3
RV_SHARED float units[2 * RV_STEP];
#endif
const int simd = RV_SIMD, lane = RV_LANE;
#include "decode_begin.metal"

RV_SHARED_PTR float* mine = weights + simd * (RV_SCORES + RV_OWN_ROWS);  // [token, query row], then what a row shrinks by
float q[RV_OWN_ROWS][RV_LANE_VECTORS * RV_VEC], acc[RV_OWN_ROWS][RV_OUT_VECTORS * RV_VEC];
RV_UNROLL for (int r = 0; r < RV_OWN_ROWS; r++) {
  const int given = tile * RV_TILE + simd * RV_OWN_ROWS + r, index = given < RV_ROWS ? given : RV_ROWS - 1;
  const int query_head = index / RV_QUERY_LEN, token = index % RV_QUERY_LEN;
  RV_UNROLL for (int i = 0; i < RV_LANE_VECTORS * RV_VEC; i++) {
    const int d = (lane + i / RV_VEC * 32) * RV_VEC + i % RV_VEC;
    float x = 0;
    if (d < RV_D)
      x = (float)queries[row * queries_strides[0] + query_head * queries_strides[1] + token * queries_strides[2] + d * queries_strides[3]];
    else if (d < RV_D + RV_VALUE_D)
      x = rv_element(rotated + row * rotated_strides[0] + query_head * rotated_strides[1] + token * rotated_strides[2],
                     rotated_strides[3], d - RV_D, RV_ROPE_ROW) * RV_ROTATED_BY;
    q[r][i] = x * (RV_SCALE * RV_LOG2E);
  }
  RV_UNROLL for (int e = 0; e < RV_OUT_VECTORS * RV_VEC; e++) acc[r][e] = 0;
}
// A lane's own score of a stage: its token and its query row, of which it keeps maximum and weight.
const int own = rv_own_score(lane), own_token = own / RV_OWN_ROWS, own_row = own % RV_OWN_ROWS;
const int own_query = context - RV_QUERY_LEN + (tile * RV_TILE + simd * RV_OWN_ROWS + own_row) % RV_QUERY_LEN;
float peak = RV_NEVER, weight = 0;
RV_DEVICE_BARRIER();  // the new tokens are there

const int held = context - first, stop = end * RV_BLOCK < held ? end * RV_BLOCK : held;  // in tokens of the row's table
int at = begin * RV_BLOCK;
rv_raw ahead[RV_FETCHES];
int block = at < stop ? table[at / RV_BLOCK] : 0;
rv_fetch(ahead, arena, block, layer[0], at % RV_BLOCK, stop - at, RV_LOCAL_ID.x);
for (; at < stop; at += RV_STEP) {
#if RV_KIND == 3
  if (RV_LOCAL_ID.x < 2 * RV_STEP) {
    const int t = RV_LOCAL_ID.x / 2;
    units[RV_LOCAL_ID.x] = at + t < stop ? scales[rv_plane(block, layer[0], RV_LOCAL_ID.x % 2, 0) * RV_BLOCK + at % RV_BLOCK + t] : 0.0f;
  }
#endif
  RV_UNROLL for (int i = 0; i < RV_FETCHES; i++) {
    const int index = i * RV_THREADS + RV_LOCAL_ID.x;
    if (index < RV_STEP * RV_TOKEN_VECTORS) rv_stage(stage, index, ahead[i]);
  }
  RV_BARRIER();  // the stage is there
  const int next = at + RV_STEP;
  if (next < stop) block = table[next / RV_BLOCK];
  rv_fetch(ahead, arena, block, layer[0], next % RV_BLOCK, stop - next, RV_LOCAL_ID.x);
  float dots[RV_SCORES], x[RV_VEC];
  RV_UNROLL for (int t = 0; t < RV_STEP; t++) {
    RV_UNROLL for (int r = 0; r < RV_OWN_ROWS; r++) dots[t * RV_OWN_ROWS + r] = 0;
    RV_UNROLL for (int i = 0; i < RV_LANE_VECTORS; i++) {
      const int vector = lane + i * 32;
      if (vector < RV_TOKEN_VECTORS) {
        rv_unpack(rv_staged(stage, t * RV_TOKEN_VECTORS + vector), x);
#if RV_KIND == 3
        const float unit = units[2 * t + (vector < RV_LATENT_VECTORS ? 0 : 1)];
        RV_UNROLL for (int e = 0; e < RV_VEC; e++) x[e] *= unit;
#endif
        RV_UNROLL for (int r = 0; r < RV_OWN_ROWS; r++)
          RV_UNROLL for (int e = 0; e < RV_VEC; e++) dots[t * RV_OWN_ROWS + r] += q[r][i * RV_VEC + e] * x[e];
      }
    }
  }
  rv_sum_scores(dots, lane);
  const bool seen = at + own_token < stop && first + at + own_token <= own_query;
  float top = seen ? dots[0] : RV_NEVER;
  RV_UNROLL for (int mask = 1; mask < RV_STEP; mask <<= 1) top = RV_MAX(top, rv_xor(top, mask));
  top = RV_MAX(peak, top);
  const float shrink = RV_EXP2(peak - top), p = seen ? RV_EXP2(dots[0] - top) : 0.0f;
  weight = weight * shrink + p;
  peak = top;
  if (lane < RV_SCORES) mine[own] = p;
  if (lane < RV_SCORES && own_token == 0) mine[RV_SCORES + own_row] = shrink;
  RV_SIMD_BARRIER();  // the weights are there
  RV_UNROLL for (int r = 0; r < RV_OWN_ROWS; r++) {
    const float by = mine[RV_SCORES + r];
    RV_UNROLL for (int e = 0; e < RV_OUT_VECTORS * RV_VEC; e++) acc[r][e] *= by;
  }
  RV_UNROLL for (int t = 0; t < RV_STEP; t++) {
    RV_UNROLL for (int i = 0; i < RV_OUT_VECTORS; i++) {
      const int vector = lane + i * 32;
      if (vector < RV_LATENT_VECTORS) {
        rv_unpack(rv_staged(stage, t * RV_TOKEN_VECTORS + vector), x);
        RV_UNROLL for (int r = 0; r < RV_OWN_ROWS; r++) {
#if RV_KIND == 3
          const float w = mine[t * RV_OWN_ROWS + r] * units[2 * t];
#else
          const float w = mine[t * RV_OWN_ROWS + r];
#endif
          RV_UNROLL for (int e = 0; e < RV_VEC; e++) acc[r][i * RV_VEC + e] += w * x[e];
        }
      }
    }
  }
  RV_BARRIER();  // the stage is read
}

RV_UNROLL for (int mask = 1; mask < RV_STEP; mask <<= 1) weight += rv_xor(weight, mask);
if (lane < RV_SCORES && own_token == 0) { mine[2 * own_row] = peak; mine[2 * own_row + 1] = weight; }
RV_SIMD_BARRIER();
RV_UNROLL for (int r = 0; r < RV_OWN_ROWS; r++) {
  const int index = tile * RV_TILE + simd * RV_OWN_ROWS + r;
  if (index < RV_ROWS && simd * RV_OWN_ROWS + r < RV_TILE) {
#ifdef RV_FINAL
    const float total = mine[2 * r + 1], inverse = total > 0 ? 1.0f / total : 0.0f;
#else
    const rv_index place = (RV_OUT_ROW + index) * splits + split;
    RV_GLOBAL float* stats = (RV_GLOBAL float*)scratch + (rv_index)RV_GROUPS.y * RV_ROWS * splits * RV_D;
    if (lane < 2) stats[place * 2 + lane] = mine[2 * r + lane];
#endif
    RV_UNROLL for (int i = 0; i < RV_OUT_VECTORS; i++) {
      const int vector = lane + i * 32;
      if (vector < RV_LATENT_VECTORS) {
#ifdef RV_FINAL
        RV_UNROLL for (int e = 0; e < RV_VEC; e++) acc[r][i * RV_VEC + e] *= inverse;
        rv_store(out + (RV_OUT_ROW + index) * RV_D + vector * RV_VEC, acc[r] + i * RV_VEC);
#else
        RV_UNROLL for (int e = 0; e < RV_VEC; e++)
          ((RV_GLOBAL float*)scratch)[place * RV_D + vector * RV_VEC + e] = acc[r][i * RV_VEC + e];
#endif
      }
    }
  }
}
