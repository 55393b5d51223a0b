// Where a head's elements lie: its query, its key, then its value. RV_SHARING value heads share a key head.

// The convolution's channel: all queries, all keys, all values.
RV_FN int rv_channel(int element, int head, int key_head) {
  if (element < RV_DK) return key_head * RV_DK + element;
  if (element < 2 * RV_DK) return (RV_KEY_HEADS + key_head) * RV_DK + element - RV_DK;
  return 2 * RV_KEY_HEADS * RV_DK + head * RV_DV + element - 2 * RV_DK;
}

// The place in a token's projection. RV_BY_KEY_HEAD: each key head's queries, keys, values and gates stand together.
RV_FN int rv_place(int element, int key_head, int sharer) {
#if RV_BY_KEY_HEAD == 1
  const int start = key_head * (2 * RV_DK + 2 * RV_SHARING * RV_DV);
  return start + element + (element < 2 * RV_DK ? 0 : sharer * RV_DV);
#else
  return rv_channel(element, key_head * RV_SHARING + sharer, key_head);
#endif
}
#if RV_BY_KEY_HEAD == 1
#define RV_Z_AT(key_head, sharer) ((key_head + 1) * 2 * (RV_DK + RV_SHARING * RV_DV) - (RV_SHARING - sharer) * RV_DV)
#define RV_B_AT(key_head, sharer) (key_head * 2 * RV_SHARING + sharer)
#define RV_A_AT(key_head, sharer) (key_head * 2 * RV_SHARING + RV_SHARING + sharer)
#else
#define RV_Z_AT(key_head, sharer) ((key_head * RV_SHARING + sharer) * RV_DV)
#define RV_B_AT(key_head, sharer) (key_head * RV_SHARING + sharer)
#define RV_A_AT(key_head, sharer) (key_head * RV_SHARING + sharer)
#endif

RV_FN float rv_rounded(float x) { return (float)(RV_T)x; }

RV_FN float rv_sigmoid(float x) { return 1.0f / (1.0f + RV_EXP(-x)); }

// log(1 + exp(x)), exact where exp(x) is small beside one.
RV_FN float rv_softplus(float x) {
  const float power = RV_EXP(x < 0 ? x : -x), sum = 1.0f + power;
  const float log = sum == 1.0f ? power : RV_LOG(sum) * (power / (sum - 1.0f));
  return (x > 0 ? x : 0.0f) + log;
}

RV_FN void rv_four(float4 from, RV_LOCAL float* to) {
  to[0] = from.x; to[1] = from.y; to[2] = from.z; to[3] = from.w;
}
