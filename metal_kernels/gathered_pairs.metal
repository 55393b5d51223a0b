// `list` gets the pairs that ask for the group's expert, `count` their number. Where a group stands for a pair, the first
// pair that asks for an expert computes all of its pairs.
int count = 0, next = lane < pairs ? (int)experts[lane] : -1;  // the next loads do not wait for the last ones
for (int start = 0; start < pairs; start += 32) {
  const bool asks = next == expert;
  next = start + 32 + lane < pairs ? (int)experts[start + 32 + lane] : -1;
  count = rv_list_pairs(asks, start, count, simd == 0, list, lane);
  if (pairs <= RV_EXPERTS && count > 0 && start + 32 <= slot) return;
}
if (count == 0) return;
RV_BARRIER();
if (pairs <= RV_EXPERTS && list[0] != slot) return;
