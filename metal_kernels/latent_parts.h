// Pieces of latent_decode: a token is RV_D elements of the latent, then RV_VALUE_D of rotation, in vectors of eight.
#define RV_LATENT_VECTORS (RV_D / RV_VEC)
#define RV_TOKEN_VECTORS ((RV_D + RV_VALUE_D) / RV_VEC)
#define RV_LANE_VECTORS ((RV_TOKEN_VECTORS + 31) / 32)
#define RV_OUT_VECTORS ((RV_LATENT_VECTORS + 31) / 32)
#define RV_SCORES (RV_STEP * RV_OWN_ROWS)  // [token, query row] of a simdgroup and a stage
#define RV_THREADS (RV_SIMDGROUPS * 32)
#define RV_FETCHES ((RV_STEP * RV_TOKEN_VECTORS + RV_THREADS - 1) / RV_THREADS)

RV_FN void rv_stage(RV_SHARED_PTR float4* to, int i, rv_raw raw) {
#if RV_KIND == 0
  ((RV_SHARED_PTR uint4*)to)[2 * i] = raw.a;
  ((RV_SHARED_PTR uint4*)to)[2 * i + 1] = raw.b;
#elif RV_KIND == 3
  ((RV_SHARED_PTR uint2*)to)[i] = raw.a;
#else
  ((RV_SHARED_PTR uint4*)to)[i] = raw.a;
#endif
}

RV_FN rv_raw rv_staged(RV_SHARED_PTR float4* from, int i) {
  rv_raw raw;
#if RV_KIND == 0
  raw.a = ((RV_SHARED_PTR uint4*)from)[2 * i];
  raw.b = ((RV_SHARED_PTR uint4*)from)[2 * i + 1];
#elif RV_KIND == 3
  raw.a = ((RV_SHARED_PTR uint2*)from)[i];
#else
  raw.a = ((RV_SHARED_PTR uint4*)from)[i];
#endif
  return raw;
}

// The vectors of thread `number` of the RV_STEP tokens of `block` from `t` on. Tokens past `left` read as zeros: an unused slot
// may hold anything, NaN too.
RV_FN void rv_fetch(RV_LOCAL rv_raw* to, const RV_GLOBAL RV_KV* arena, int block, int layer, int t, int left, int number) {
  RV_UNROLL for (int i = 0; i < RV_FETCHES; i++) {
    const int index = i * RV_THREADS + number, token = index / RV_TOKEN_VECTORS, vector = index % RV_TOKEN_VECTORS;
    to[i] = rv_zero();
    if (token < RV_STEP && token < left) {
      const int kv = vector < RV_LATENT_VECTORS ? 0 : 1;
      to[i] = rv_load(arena + rv_token(block, layer, kv, 0, t + token) + (vector - kv * RV_LATENT_VECTORS) * RV_VEC);
    }
  }
}

// Sums RV_SCORES values over the lanes, halving what each lane carries while it has several: v[0] is then the score
// that rv_own_score names.
RV_FN void rv_sum_scores(RV_LOCAL float* v, int lane) {
  RV_UNROLL for (int step = 0; step < 5; step++) {
    const int mask = 1 << step, half_count = RV_SCORES >> (step + 1);
    const bool upper = (lane & mask) != 0;
    if (half_count == 0) {
      v[0] += rv_xor(v[0], mask);
    } else {
      RV_UNROLL for (int i = 0; i < (RV_SCORES + 1) / 2; i++) {
        if (i < half_count) {
          const float give = upper ? v[i] : v[i + half_count];
          const float keep = upper ? v[i + half_count] : v[i];
          v[i] = keep + rv_xor(give, mask);
        }
      }
    }
  }
}

RV_FN int rv_own_score(int lane) {
  int index = 0;
  RV_UNROLL for (int step = 0; step < 5; step++) index += (lane >> step & 1) * (RV_SCORES >> (step + 1));
  return index;
}
