// Copies whole blocks (all layers, keys, values and scales) from pairs[i][0] to pairs[i][1], in place.
// One thread a 16-byte word, pairs along y; called for copy-on-write. A pair with equal ends is padding.
// Metal injects: thread_position_in_threadgroup threadgroup_position_in_grid
const rv_index word = (rv_index)RV_GROUP.x * RV_COPY_THREADS + RV_LOCAL_ID.x;
const int pair = RV_GROUP.y;
if (word < 8 && pair == 0) fence_out[word] = rv_next_fence(fence[0]);
const int from = pairs[2 * pair], to = pairs[2 * pair + 1];
if (from == to) return;
if (word < RV_BLOCK_WORDS) {
  RV_GLOBAL uint4* words = (RV_GLOBAL uint4*)arena;
  words[(rv_index)to * RV_BLOCK_WORDS + word] = words[(rv_index)from * RV_BLOCK_WORDS + word];
}
#if RV_KIND == 3
else if (word < RV_BLOCK_WORDS + RV_SCALE_WORDS) {
  RV_GLOBAL uint4* words = (RV_GLOBAL uint4*)scales;
  const rv_index at = word - RV_BLOCK_WORDS;
  words[(rv_index)to * RV_SCALE_WORDS + at] = words[(rv_index)from * RV_SCALE_WORDS + at];
}
#endif
