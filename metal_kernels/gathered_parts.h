// Rows of x that go through one expert. A pair is a row of x and an expert that it asks for; pair p has row p / each of x.

// Adds those of 32 pairs that ask for the expert, in order, to the list; returns how long it is now. One whole simdgroup.
RV_FN int rv_list_pairs(bool asks, int first, int count, bool writes, RV_SHARED_PTR int* list, int lane) {
  const unsigned int votes = rv_ballot(asks);
  if (asks && writes) list[count + rv_count_bits(votes & ((1u << lane) - 1u))] = first + lane;
  return count + rv_count_bits(votes);
}

// SwiGLU of two products, which are rounded as a definition rounds them.
RV_FN float rv_gated(float sum, float gate) {
  const float g = (float)(RV_T)gate;
  return g / (1.0f + RV_EXP(-g)) * (float)(RV_T)sum;
}
