// Writes the new tokens' keys and values into their blocks, in place; int8 arenas get one scale a token and head.
// One simdgroup a (token, kv head, row); called by every attention layer before it reads.
// Metal injects: thread_position_in_threadgroup threadgroup_position_in_grid
const int lane = RV_LOCAL_ID.x;
const int query_len = descriptor[1], max_blocks = descriptor[2];
const int token_index = RV_GROUP.x, head = RV_GROUP.y, row = RV_GROUP.z;
if (token_index == 0 && head == 0 && row == 0 && lane < 8) token_out[lane] = token[0] + 1;
if (token_index >= query_len || head >= RV_KV_HEADS || row >= descriptor[0]) return;
const int context = descriptor[RV_HEADER + row * RV_ROW_FIELDS];
const int first = descriptor[RV_HEADER + row * RV_ROW_FIELDS + 1];
const int offset = context - query_len + token_index - first;  // in tokens from the table's first block
if (context <= 0 || offset < 0 || offset >= max_blocks * RV_BLOCK) return;
const int block = descriptor[RV_HEADER + descriptor[0] * RV_ROW_FIELDS + row * max_blocks + offset / RV_BLOCK];
const int slot = offset % RV_BLOCK;
RV_UNROLL for (int kv = 0; kv < 2; kv++) {
  const rv_index place = rv_plane(block, layer[0], kv, head) * RV_BLOCK + slot;
  RV_GLOBAL RV_KV* to = (RV_GLOBAL RV_KV*)arena + place * RV_D;
  float x[(RV_D + 31) / 32];
  RV_UNROLL for (int i = 0; i < (RV_D + 31) / 32; i++) {
    const int d = i * 32 + lane;
    x[i] = 0;
    if (d < RV_D && kv == 0)
      x[i] = (float)keys[row * keys_strides[0] + head * keys_strides[1] + token_index * keys_strides[2] + d * keys_strides[3]];
    if (d < RV_D && kv == 1)
      x[i] = (float)values[row * values_strides[0] + head * values_strides[1] + token_index * values_strides[2] + d * values_strides[3]];
  }
#if RV_KIND == 3
  float peak = 0;
  RV_UNROLL for (int i = 0; i < (RV_D + 31) / 32; i++) peak = RV_MAX(peak, x[i] < 0 ? -x[i] : x[i]);
  peak = rv_simd_max(peak);
  const float inverse = peak > 0 ? 127.0f / peak : 0.0f;
  if (lane == 0) ((RV_GLOBAL float*)scales)[place] = peak / 127.0f;
#endif
  RV_UNROLL for (int i = 0; i < (RV_D + 31) / 32; i++) {
    const int d = i * 32 + lane;
#if RV_KIND == 3
    if (d < RV_D) to[d] = (RV_KV)(int)RV_ROUND(x[i] * inverse);
#else
    if (d < RV_D) to[d] = (RV_KV)x[i];
#endif
  }
}
