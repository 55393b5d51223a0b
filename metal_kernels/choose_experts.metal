// The experts with a row's largest logits, largest first, and their shares of the softmax, of all experts or of the chosen
// ones. One simdgroup a row. What is no number counts as the largest, so that the shares are none either.
// Metal injects: threadgroup_position_in_grid thread_index_in_simdgroup
const int lane = RV_LANE, row = (int)RV_GROUP.x;
const float infinity = RV_BITS(0x7f800000u);
float score[RV_SLOTS], peak = -infinity, sum = 0, chosen = 0, share = 0;
RV_UNROLL for (int i = 0; i < RV_SLOTS; i++) {
  const int expert = i * 32 + lane;
  const float logit = expert < RV_EXPERTS ? (float)logits[(rv_index)row * RV_EXPERTS + expert] : -infinity;
  score[i] = logit == logit ? logit : infinity;
  peak = RV_MAX(peak, score[i]);
}
peak = rv_simd_max(peak);
RV_UNROLL for (int i = 0; i < RV_SLOTS; i++) sum += RV_EXP(score[i] - peak);
sum = rv_simd_sum(sum);
unsigned int taken = 0;
for (int place = 0; place < RV_EACH; place++) {
  float best = -infinity;
  int slot = -1;
  RV_UNROLL for (int i = 0; i < RV_SLOTS; i++) {
    const bool is_left = i * 32 + lane < RV_EXPERTS && (taken >> i & 1u) == 0;
    if (is_left && (slot < 0 || score[i] > best)) {
      best = score[i];
      slot = i;
    }
  }
  const float top = rv_simd_max(best);
  const bool leads = slot >= 0 && best == top;
  const unsigned int leaders = rv_ballot(leads);
  if (leads && (leaders & ((1u << lane) - 1u)) == 0) {
    taken |= 1u << slot;
    experts[row * RV_EACH + place] = (unsigned int)(slot * 32 + lane);
  }
  const float part = RV_EXP(top - peak);
  chosen += part;
  if (lane == place) share = part;
}
if (lane < RV_EACH) shares[row * RV_EACH + lane] = (RV_T)(share / (RV_OF_CHOSEN ? chosen : sum));
