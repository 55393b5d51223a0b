// Group `RV_GROUP.y` stands for an expert where there are fewer experts than pairs, else for a pair: then the first pair
// that asks for an expert computes all of its pairs. `list` gets these, `count` their number.
const int pairs = experts_shape[0], each = pairs / x_shape[0], slot = RV_GROUP.y;
const int expert = pairs > RV_EXPERTS ? slot : (int)experts[slot];
int count = 0;
for (int start = 0; start < pairs; start += 32) {
  const bool asks = start + lane < pairs && (int)experts[start + lane] == expert;
  count = rv_list_pairs(asks, start, count, simd == 0, list, lane);
  if (pairs <= RV_EXPERTS && count > 0 && start + 32 <= slot) return;
}
if (count == 0) return;
RV_BARRIER();
if (pairs <= RV_EXPERTS && list[0] != slot) return;
