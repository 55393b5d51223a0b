// Writes saved blocks (as kv_save gave them) back into the arena, in place.
// One thread a 16-byte word, blocks along y; called to restore spilled or swapped blocks.
// Metal injects: thread_position_in_threadgroup threadgroup_position_in_grid
const rv_index word = (rv_index)RV_GROUP.x * RV_COPY_THREADS + RV_LOCAL_ID.x;
const int row = RV_GROUP.y;
if (word < 8 && row == 0) fence_out[word] = rv_next_fence(fence[0]);
if (word >= RV_BLOCK_WORDS + RV_SCALE_WORDS) return;
RV_GLOBAL const uint4* from = (RV_GLOBAL const uint4*)saved + (rv_index)row * (RV_BLOCK_WORDS + RV_SCALE_WORDS);
const int block = blocks[row];
if (word < RV_BLOCK_WORDS) ((RV_GLOBAL uint4*)arena)[(rv_index)block * RV_BLOCK_WORDS + word] = from[word];
#if RV_KIND == 3
else ((RV_GLOBAL uint4*)scales)[(rv_index)block * RV_SCALE_WORDS + (word - RV_BLOCK_WORDS)] = from[word];
#endif
