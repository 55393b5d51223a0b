const int head = RV_GROUP.x / RV_TILES, tile = RV_GROUP.x % RV_TILES;
const int row = RV_GROUP.y, split = RV_GROUP.z, splits = RV_GROUPS.z;
if (RV_GROUP.x == 0 && row == 0 && split == 0 && RV_LOCAL_ID.x < 8) fence_out[RV_LOCAL_ID.x] = rv_next_fence(fence[RV_LOCAL_ID.x]);
const int rows = descriptor[0], max_blocks = descriptor[2];
const int context = descriptor[RV_HEADER + row * RV_ROW_FIELDS];
const int first = descriptor[RV_HEADER + row * RV_ROW_FIELDS + 1];
if (row >= rows) return;
const rv_span span = rv_blocks(context, first, max_blocks);
const int size = RV_SPLIT_BLOCKS(span.end - span.begin);
const int begin = span.begin + split * size;
const int end = begin + size < span.end ? begin + size : span.end;
#ifndef RV_FINAL
if (begin >= end) return;  // the combine step reads only this row's own splits
#endif
const RV_GLOBAL int* table = descriptor + RV_HEADER + rows * RV_ROW_FIELDS + row * max_blocks;
#ifdef RV_NEW
#if RV_KIND == 3
RV_GLOBAL float* to_scales = (RV_GLOBAL float*)scales;
#else
RV_GLOBAL float* to_scales = 0;
#endif
for (int i = simd; i < 2 * RV_QUERY_LEN; i += RV_SIMDGROUPS) {  // tiles of one head write the same bytes
  const int at = context - RV_QUERY_LEN + i / 2 - first, block = at >= 0 ? at / RV_BLOCK : -1;
  if (block >= begin && block < end && table[block] != 0) {
    const rv_index place = rv_plane(table[block], layer[0], i % 2, head) * RV_BLOCK + at % RV_BLOCK;
    RV_GLOBAL RV_KV* to = (RV_GLOBAL RV_KV*)arena + rv_token(table[block], layer[0], i % 2, head, at % RV_BLOCK);
    if (i % 2 == 0)
      rv_put<RV_D>(keys + row * keys_strides[0] + head * keys_strides[1] + i / 2 * keys_strides[2], keys_strides[3],
                   RV_ROPE_ROW, RV_TURNS_KEYS, to, to_scales, place, lane);
    else
      rv_put<RV_VALUE_D>(values + row * values_strides[0] + head * values_strides[1] + i / 2 * values_strides[2],
                         values_strides[3], RV_ROPE_ROW, !RV_TURNS_KEYS, to, to_scales, place, lane);
  }
}
#endif
