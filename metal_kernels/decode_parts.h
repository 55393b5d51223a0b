// Pieces of paged_decode and paged_combine: a row's block range, a split's share, batched loads, the dot products' sums.
#define RV_NEVER (-1.0e30f)
#define RV_LOG2E 1.4426950408889634f
#define RV_SUBS (32 / RV_LANES)  // tokens a simdgroup touches at once

struct rv_span {
  int begin, end;  // blocks of the row's table that any of its queries sees
};

RV_FN rv_span rv_blocks(int context, int first, int max_blocks) {
  rv_span span;
  const int held = context > first ? (context - first + RV_BLOCK - 1) / RV_BLOCK : 0;
  span.end = held < max_blocks ? held : max_blocks;
  const int oldest = RV_WINDOW == 0 ? first : context - RV_QUERY_LEN - RV_WINDOW + 1;
  span.begin = oldest > first ? (oldest - first) / RV_BLOCK : 0;
  if (context <= 0) span.end = span.begin;
  return span;
}

// A split's share of its query row: `factor` brings its sums to the row's maximum, `inverse` divides by all weights.
struct rv_share { float factor, inverse; };

// One split's share where it is the only one. `total` is the same in all lanes; `sink` is RV_NEVER without sinks.
RV_FN rv_share rv_weigh(float top, float total, float sink, int lane) {
  const float best = RV_MAX(top, sink);
  rv_share share;
  share.factor = RV_EXP2(top - best);
  float sum = rv_simd_sum(lane == 0 ? total * share.factor : 0.0f);  // as paged_combine adds up its lanes
#ifdef RV_SINKS
  sum += RV_EXP2(sink - best);
#endif
  share.inverse = sum > 0 ? 1.0f / sum : 0.0f;
  return share;
}

#ifdef RV_LATENT
#define RV_TURNS_KEYS false  // the values are the part that is rotated
#else
#define RV_TURNS_KEYS true
#endif
#ifdef RV_ROPE_DIMS
#define RV_ROPE_ROW (rope + row * RV_ROPE_DIMS)
#else
#define RV_ROPE_ROW ((const RV_GLOBAL float*)0)
#endif
#define RV_OUT_ROW (((rv_index)row * RV_KV_HEADS + head) * RV_ROWS)  // first query row of this row and head

#ifdef RV_LOADS
#define RV_KEY_SUBS (32 / RV_KEY_LANES)
#define RV_OWN (RV_PARTS * RV_VEC)  // output elements a lane owns

// Stage `stage` of a block's loads: its keys (a chunk of RV_KEY_LANES tokens a lane), then its values (RV_LOADS
// chunks a lane, RV_PARTS of each token). `plane` counts rows. Tokens past `left` read as zeros: an unused slot may hold
// anything, NaN too.
RV_FN void rv_fetch(RV_LOCAL rv_raw* to, const RV_GLOBAL RV_KV* arena, rv_index plane, int left, int stage, int lane) {
  if (stage < RV_KEY_STAGES) {
    const int t = lane / RV_KEY_LANES, chunk = stage * RV_KEY_LANES + lane % RV_KEY_LANES;
    const RV_GLOBAL RV_KV* from = arena + (plane + t) * RV_D + chunk * RV_VEC;
    RV_UNROLL for (int i = 0; i < RV_KEY_LANES; i++) {
      if (t + i * RV_KEY_SUBS < left) to[i] = rv_load(from + i * RV_KEY_SUBS * RV_D);
      else to[i] = rv_zero();
    }
  } else {
    const int t = (stage - RV_KEY_STAGES) * (RV_LOADS / RV_PARTS) * RV_SUBS + lane / RV_LANES, chunk = lane % RV_LANES;
    const RV_GLOBAL RV_KV* from = arena + (plane + RV_KV_HEADS * RV_BLOCK + t) * RV_D + chunk * RV_VEC;
    RV_UNROLL for (int i = 0; i < RV_LOADS; i++) {
      if (t + i / RV_PARTS * RV_SUBS < left && chunk < RV_CHUNKS)
        to[i] = rv_load(from + i / RV_PARTS * RV_SUBS * RV_D + i % RV_PARTS * RV_LANES * RV_VEC);
      else to[i] = rv_zero();
    }
  }
}

// The token of a block whose scores `rv_sum_lanes` leaves with this lane.
RV_FN int rv_own_token(int lane) {
#if RV_KEY_LANES == 4
  return ((lane & 1) * 2 + (lane >> 1 & 1)) * RV_KEY_SUBS + lane / 4;
#else
  return (lane & 1) * RV_KEY_SUBS + lane / 2;
#endif
}

// Sums [RV_KEY_LANES tokens, query row] over the lanes that share the tokens, halving what each lane carries.
RV_FN void rv_sum_lanes(RV_LOCAL float* v, int lane) {
  RV_UNROLL for (int step = 0; step < RV_KEY_LANES / 2; step++) {
    const int mask = 1 << step, half_count = RV_KEY_LANES * RV_PAD >> (step + 1);
    const bool upper = (lane & mask) != 0;
    RV_UNROLL for (int i = 0; i < RV_KEY_LANES * RV_PAD / 2; i++) {
      if (i < half_count && i % RV_PAD < RV_TILE) {
        const float give = upper ? v[i] : v[i + half_count];
        const float keep = upper ? v[i + half_count] : v[i];
        v[i] = keep + rv_xor(give, mask);
      }
    }
  }
}

RV_FN void rv_weights(RV_SHARED_PTR float* from, RV_LOCAL float* to) {
#if RV_PAD >= 4
  RV_UNROLL for (int i = 0; i < RV_PAD / 4; i++) {
    const float4 w = ((RV_SHARED_PTR float4*)from)[i];
    to[4 * i] = w.x; to[4 * i + 1] = w.y; to[4 * i + 2] = w.z; to[4 * i + 3] = w.w;
  }
#else
  RV_UNROLL for (int i = 0; i < RV_PAD; i++) to[i] = from[i];
#endif
}
#endif
