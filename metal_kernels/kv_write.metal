// Writes the new tokens' keys and values into their blocks, in place; int8 arenas get one scale a token and head.
// One simdgroup a (token, kv head, row); called where the attention kernel does not write itself: for a prompt, and
// for several tokens of a sequence in one call, which read each other's. RV_ROPE_DIMS: keys are rotated, or
// values of latents (1 token a row).
// Metal injects: thread_index_in_simdgroup threadgroup_position_in_grid
const int lane = RV_LANE;
const int query_len = descriptor[1], max_blocks = descriptor[2];
const int token_index = RV_GROUP.x, head = RV_GROUP.y, row = RV_GROUP.z;
if (token_index == 0 && head == 0 && row == 0 && lane < 8) fence_out[lane] = rv_next_fence(fence[0]);
if (token_index >= query_len || head >= RV_KV_HEADS || row >= descriptor[0]) return;
const int context = descriptor[RV_HEADER + row * RV_ROW_FIELDS];
const int first = descriptor[RV_HEADER + row * RV_ROW_FIELDS + 1];
const int offset = context - query_len + token_index - first;  // in tokens from the table's first block
if (context <= 0 || offset < 0 || offset >= max_blocks * RV_BLOCK) return;
const int block = descriptor[RV_HEADER + descriptor[0] * RV_ROW_FIELDS + row * max_blocks + offset / RV_BLOCK];
if (block == 0) return;  // padding
#if RV_KIND == 3
RV_GLOBAL float* to_scales = (RV_GLOBAL float*)scales;
#else
RV_GLOBAL float* to_scales = 0;
#endif
#ifdef RV_ROPE_DIMS
const RV_GLOBAL float* turns = rope + row * RV_ROPE_DIMS;
#ifdef RV_TURNS_VALUES
const bool turns_keys = false, turns_values = true;
#else
const bool turns_keys = true, turns_values = false;
#endif
#else
const RV_GLOBAL float* turns = 0;
const bool turns_keys = false, turns_values = false;
#endif
const rv_index place = rv_plane(block, layer[0], 0, head) * RV_BLOCK + offset % RV_BLOCK;
rv_put<RV_D>(keys + row * keys_strides[0] + head * keys_strides[1] + token_index * keys_strides[2], keys_strides[3], turns,
             turns_keys, (RV_GLOBAL RV_KV*)arena + rv_token(block, layer[0], 0, head, offset % RV_BLOCK), to_scales, place, lane);
rv_put<RV_VALUE_D>(values + row * values_strides[0] + head * values_strides[1] + token_index * values_strides[2],
                   values_strides[3], turns, turns_values,
                   (RV_GLOBAL RV_KV*)arena + rv_token(block, layer[0], 1, head, offset % RV_BLOCK), to_scales,
                   place + RV_KV_HEADS * RV_BLOCK, lane);
