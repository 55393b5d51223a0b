// Rows' keys and values, dense, in the model's type; zeros past a row's context and for padding blocks.
// One thread an 8-element vector; precedes MLX's attention over a prompt's chunk.
// Metal injects: thread_position_in_threadgroup threadgroup_position_in_grid
const int count = length[0];
const int index = RV_GROUP.x * RV_GATHER_THREADS + RV_LOCAL_ID.x;
const int kv = RV_GROUP.y, head = RV_GROUP.z % RV_KV_HEADS, row = RV_GROUP.z / RV_KV_HEADS;
const int width = kv == 0 ? RV_D : RV_VALUE_D;
const int chunk = index % (width / RV_VEC), t = index / (width / RV_VEC);
const int rows = descriptor[0], max_blocks = descriptor[2];
if (t >= count || kv > 1 || row >= rows) return;
const int context = descriptor[RV_HEADER + row * RV_ROW_FIELDS], first = descriptor[RV_HEADER + row * RV_ROW_FIELDS + 1];
float x[RV_VEC];
RV_UNROLL for (int e = 0; e < RV_VEC; e++) x[e] = 0;
const bool is_held = t < context - first && t < max_blocks * RV_BLOCK && fence[0] >= 0;
const int block = is_held ? descriptor[RV_HEADER + rows * RV_ROW_FIELDS + row * max_blocks + t / RV_BLOCK] : 0;
if (block != 0) {
  rv_unpack(rv_load(arena + rv_token(block, layer[0], kv, head, t % RV_BLOCK) + chunk * RV_VEC), x);
#if RV_KIND == 3
  const float scale = scales[rv_plane(block, layer[0], kv, head) * RV_BLOCK + t % RV_BLOCK];
  RV_UNROLL for (int e = 0; e < RV_VEC; e++) x[e] *= scale;
#endif
}
rv_store((kv == 0 ? keys : values) + ((rv_index)RV_GROUP.z * count + t) * width + chunk * RV_VEC, x);
