// Copies whole blocks (all layers, keys, values, then scales) out of the arena into dense rows of 16-byte words.
// One thread a word, blocks along y; called to spill or swap blocks.
// Metal injects: thread_position_in_threadgroup threadgroup_position_in_grid
const rv_index word = (rv_index)RV_GROUP.x * RV_COPY_THREADS + RV_LOCAL_ID.x;
const int row = RV_GROUP.y;
if (word >= RV_BLOCK_WORDS + RV_SCALE_WORDS || fence[0] < 0) return;
RV_GLOBAL uint4* to = (RV_GLOBAL uint4*)saved + (rv_index)row * (RV_BLOCK_WORDS + RV_SCALE_WORDS);
const int block = blocks[row];
if (word < RV_BLOCK_WORDS) to[word] = ((RV_GLOBAL const uint4*)arena)[(rv_index)block * RV_BLOCK_WORDS + word];
#if RV_KIND == 3
else to[word] = ((RV_GLOBAL const uint4*)scales)[(rv_index)block * RV_SCALE_WORDS + (word - RV_BLOCK_WORDS)];
#endif
