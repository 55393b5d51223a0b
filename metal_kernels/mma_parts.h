// Operands of the matrix units: keys and values as they lie in memory, int8 unpacked to half.
template <int WORDS> RV_FN void rv_words(unsigned* to, const void* from) {
  if constexpr (WORDS == 4) {
    const uint4 w = *(const uint4*)from;
    to[0] = w.x; to[1] = w.y; to[2] = w.z; to[3] = w.w;
  } else if constexpr (WORDS == 2) {
    const uint2 w = *(const uint2*)from;
    to[0] = w.x; to[1] = w.y;
  } else {
    to[0] = *(const unsigned*)from;
  }
}

#if RV_KIND == 3
// Four int8 of one token: two pairs of neighbours, each x as the half (x + 128) / 2^24, whose bits are x + 128. Sums of
// products start at minus the surplus.
#define RV_KEY_UNIT 16777216.0f
#define RV_KEY_START (-128.0f / RV_KEY_UNIT)
RV_FN void rv_key_pairs(unsigned w, unsigned* pairs) {
  w ^= 0x80808080u;
  pairs[0] = __byte_perm(w, 0, 0x4140);
  pairs[1] = __byte_perm(w, 0, 0x4342);
}
// Four int8 of two tokens: four pairs of one element each.
RV_FN void rv_value_pairs(unsigned a, unsigned b, unsigned* pairs) {
  a ^= 0x80808080u; b ^= 0x80808080u;
  const unsigned low = __byte_perm(a, b, 0x5140), high = __byte_perm(a, b, 0x7362);
  pairs[0] = rv_less(__byte_perm(low, 0x64646464u, 0x4140));
  pairs[1] = rv_less(__byte_perm(low, 0x64646464u, 0x4342));
  pairs[2] = rv_less(__byte_perm(high, 0x64646464u, 0x4140));
  pairs[3] = rv_less(__byte_perm(high, 0x64646464u, 0x4342));
}
#define RV_PER_WORD 4  // elements
#else
RV_FN void rv_value_pairs(unsigned a, unsigned b, unsigned* pairs) {
  pairs[0] = __byte_perm(a, b, 0x5410);
  pairs[1] = __byte_perm(a, b, 0x7632);
}
#define RV_PER_WORD 2
#define RV_KEY_UNIT 1.0f
#define RV_KEY_START 0.0f
#endif

// Where a lane finds its elements of a token: whole loads of RV_KEY_WORDS, 4 lanes a token, then a rest of 16 elements.
#define RV_KEY_VEC (RV_KEY_WORDS * RV_PER_WORD)
#define RV_KEY_LOADS (RV_D / (4 * RV_KEY_VEC))
#define RV_KEY_REST (RV_D - 4 * RV_KEY_VEC * RV_KEY_LOADS)  // 0 or 16
#define RV_REST_WORDS (4 / RV_PER_WORD)
#define RV_ROW_WORDS (RV_KEY_LOADS * RV_KEY_WORDS + (RV_KEY_REST ? RV_REST_WORDS : 0))
#define RV_VALUE_VEC (RV_VALUE_WORDS * RV_PER_WORD)
#define RV_VALUE_LOADS ((RV_D + 8 * RV_VALUE_VEC - 1) / (8 * RV_VALUE_VEC))  // 8 lanes a token
#define RV_M (RV_STEP / 16)

// Keys of RV_STEP tokens: rows g, g + 8, ... of the stage. Rows past `last` repeat it: what they give is masked.
RV_FN void rv_load_keys(unsigned (*to)[RV_ROW_WORDS], const RV_KV* from, int last, int g, int t) {
  RV_UNROLL for (int r = 0; r < 2 * RV_M; r++) {
    const RV_KV* row = from + min(g + 8 * r, last) * RV_D;
    RV_UNROLL for (int i = 0; i < RV_KEY_LOADS; i++)
      rv_words<RV_KEY_WORDS>(to[r] + i * RV_KEY_WORDS, row + (4 * i + t) * RV_KEY_VEC);
    if constexpr (RV_KEY_REST != 0)
      rv_words<RV_REST_WORDS>(to[r] + RV_KEY_LOADS * RV_KEY_WORDS, row + RV_D - 16 + 4 * t);
  }
}

// Values of RV_STEP tokens: of each 16 the tokens 2 t, 2 t + 1, 2 t + 8 and 2 t + 9; lane g's elements of each.
RV_FN void rv_load_values(unsigned (*to)[RV_VALUE_LOADS * RV_VALUE_WORDS], const RV_KV* from, int last, int g, int t) {
  RV_UNROLL for (int r = 0; r < 4 * RV_M; r++) {
    const RV_KV* row = from + min(r / 4 * 16 + r % 4 / 2 * 8 + r % 2 + 2 * t, last) * RV_D;
    RV_UNROLL for (int i = 0; i < RV_VALUE_LOADS; i++)
      rv_words<RV_VALUE_WORDS>(to[r] + i * RV_VALUE_WORDS, row + min(8 * i + g, RV_D / RV_VALUE_VEC - 1) * RV_VALUE_VEC);
  }
}

#if RV_KIND == 3
RV_FN void rv_load_scales(float* keys, float* values, const float* from, int last, int g) {
  RV_UNROLL for (int r = 0; r < 2 * RV_M; r++) {
    keys[r] = from[min(g + 8 * r, last)];
    values[r] = from[RV_KV_HEADS * RV_BLOCK + min(g + 8 * r, last)];
  }
}
#endif

// MLX writes the kernel's signature; this is the only way to bound its registers, so that enough of them run at once.
#undef __global__
#define __global__ __attribute__((global)) __launch_bounds__(RV_SIMDGROUPS * 32, RV_RESIDENT)
