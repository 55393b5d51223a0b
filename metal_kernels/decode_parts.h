// Pieces of paged_decode and paged_combine: a row's block range, batched loads, the dot products' reduction.
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

#ifdef RV_LOADS
// Tokens past `left` read as zeros: a block's unused slots may hold anything, NaN too.
RV_FN void rv_load_batch(RV_LOCAL rv_raw* to, const RV_GLOBAL RV_KV* plane, int batch, int sub, int chunk, int left) {
  RV_UNROLL for (int i = 0; i < RV_LOADS; i++) {
    const int t = (batch * RV_LOADS + i) * RV_SUBS + sub;
    if (t < left && chunk < RV_CHUNKS) to[i] = rv_load(plane + t * RV_D + chunk * RV_VEC);
    else to[i] = rv_zero();
  }
}

// Sums RV_DOTS values over RV_LANES lanes, halving what each lane carries, and stores them as [token, query row].
RV_FN void rv_store_dots(RV_LOCAL float* v, RV_SHARED_PTR float* scores, int t, int chunk) {
  int base = 0;
  RV_UNROLL for (int step = 0; step < 5; step++) {
    const int mask = 1 << step, half_count = RV_DOTS >> (step + 1);
    if (mask < RV_LANES) {
      const bool upper = (chunk & mask) != 0;
      if (half_count > 0) {
        RV_UNROLL for (int i = 0; i < RV_DOTS / 2; i++) {
          if (i < half_count) {
            const float give = upper ? v[i] : v[i + half_count];
            const float keep = upper ? v[i + half_count] : v[i];
            v[i] = keep + rv_xor(give, mask);
          }
        }
        if (upper) base += half_count;
      } else {
        v[0] += rv_xor(v[0], mask);
      }
    }
  }
  RV_UNROLL for (int i = 0; i < RV_DOTS; i++) {
    const int n = base + i;
    if (i < (RV_DOTS / RV_LANES > 1 ? RV_DOTS / RV_LANES : 1) && (chunk < RV_DOTS || RV_DOTS >= RV_LANES))
      scores[(t + n / RV_PAD * RV_SUBS) * RV_PAD + n % RV_PAD] = v[i];
  }
}
#endif
