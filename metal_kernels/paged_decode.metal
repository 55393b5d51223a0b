// Attention of a tile of query rows over one split of one row's blocks: unnormalized sums, maximum and weight.
// Threadgroup: (kv head and query tile, row, split). Each simdgroup takes whole blocks: RV_LANES lanes share a
// token's dot product, then every lane owns one token's softmax, then RV_LANES lanes own the output's elements.
// Metal injects: thread_position_in_threadgroup threadgroup_position_in_grid threadgroups_per_grid
RV_SHARED float shared[RV_SHARED_FLOATS];
RV_SHARED float peaks[RV_SIMDGROUPS * RV_PAD];
RV_SHARED float weights[RV_SIMDGROUPS * RV_PAD];
const int simd = RV_LOCAL_ID.x / 32, lane = RV_LOCAL_ID.x % 32;
const int sub = lane / RV_LANES, chunk = lane % RV_LANES;
const int head = RV_GROUP.x / RV_TILES, tile = RV_GROUP.x % RV_TILES;
const int row = RV_GROUP.y, split = RV_GROUP.z, splits = RV_GROUPS.z;
const int rows = descriptor[0], max_blocks = descriptor[2];
if (row >= rows) return;
const int context = descriptor[RV_HEADER + row * RV_ROW_FIELDS];
const int first = descriptor[RV_HEADER + row * RV_ROW_FIELDS + 1];
const rv_span span = rv_blocks(context, first, max_blocks);
const int size = RV_SPLIT_BLOCKS(span.end - span.begin);
const int begin = span.begin + split * size;
const int end = begin + size < span.end ? begin + size : span.end;
if (begin >= end) return;  // the combine step reads only this row's own splits
const RV_GLOBAL int* table = descriptor + RV_HEADER + rows * RV_ROW_FIELDS + row * max_blocks;

float q[RV_TILE][RV_VEC], acc[RV_TILE][RV_VEC], peak[RV_TILE], weight[RV_TILE];
RV_UNROLL for (int r = 0; r < RV_TILE; r++) {
  const int index = tile * RV_TILE + r < RV_ROWS ? tile * RV_TILE + r : RV_ROWS - 1;
  const rv_index at = row * queries_strides[0] + (head * RV_GROUP_SIZE + index / RV_QUERY_LEN) * queries_strides[1]
                      + (index % RV_QUERY_LEN) * queries_strides[2];
  RV_UNROLL for (int e = 0; e < RV_VEC; e++) {
    q[r][e] = chunk < RV_CHUNKS ? (float)queries[at + (chunk * RV_VEC + e) * queries_strides[3]] : 0.0f;
    acc[r][e] = 0;
  }
  peak[r] = RV_NEVER;
  weight[r] = 0;
}

RV_SHARED_PTR float* mine = shared + simd * RV_BLOCK * RV_PAD;  // this simdgroup's [token, query row]
rv_raw now[RV_LOADS], next[RV_LOADS];
int b = begin + simd;
rv_index key_plane = b < end ? rv_plane(table[b], layer[0], 0, head) : 0;
if (b < end) rv_load_batch(next, arena + key_plane * RV_BLOCK * RV_D, 0, sub, chunk, context - first - b * RV_BLOCK);
for (; b < end; b += RV_SIMDGROUPS) {
  const int left = context - first - b * RV_BLOCK;  // tokens of this block inside the context
  const RV_GLOBAL RV_KV* keys = arena + key_plane * RV_BLOCK * RV_D;
  const RV_GLOBAL RV_KV* values = keys + (rv_index)RV_KV_HEADS * RV_BLOCK * RV_D;
#if RV_KIND == 3
  const float key_scale = scales[key_plane * RV_BLOCK + lane];
  const float value_scale = scales[(key_plane + RV_KV_HEADS) * RV_BLOCK + lane];
#endif
  for (int batch = 0; batch < RV_BATCHES; batch++) {
    RV_UNROLL for (int i = 0; i < RV_LOADS; i++) now[i] = next[i];
    if (batch + 1 < RV_BATCHES) rv_load_batch(next, keys, batch + 1, sub, chunk, left);
    else rv_load_batch(next, values, 0, sub, chunk, left);
    RV_UNROLL for (int i = 0; i < RV_LOADS; i += RV_TOGETHER) {
      float dots[RV_DOTS];
      RV_UNROLL for (int j = 0; j < RV_TOGETHER; j++) {
        float x[RV_VEC];
        rv_unpack(now[i + j], x);
        RV_UNROLL for (int r = 0; r < RV_PAD; r++) {
          float dot = 0;
          if (r < RV_TILE) { RV_UNROLL for (int e = 0; e < RV_VEC; e++) dot += q[r < RV_TILE ? r : 0][e] * x[e]; }
          dots[j * RV_PAD + r] = dot;
        }
      }
      rv_store_dots(dots, mine, (batch * RV_LOADS + i) * RV_SUBS + sub, chunk);
    }
  }
  RV_SIMD_BARRIER();
  const int position = first + b * RV_BLOCK + lane;  // each lane owns one token
  RV_UNROLL for (int r = 0; r < RV_TILE; r++) {
    float s = mine[lane * RV_PAD + r] * RV_SCALE;
#if RV_KIND == 3
    s *= key_scale;
#endif
#ifdef RV_SOFTCAP
    s = RV_SOFTCAP * RV_TANH(s * (1.0f / RV_SOFTCAP));
#endif
    s *= RV_LOG2E;
    const int query = context - RV_QUERY_LEN + (tile * RV_TILE + r) % RV_QUERY_LEN;
    const bool seen = position <= query && (RV_WINDOW == 0 || position > query - RV_WINDOW);
    const float top = RV_MAX(peak[r], rv_simd_max(seen ? s : RV_NEVER));
    const float shrink = RV_EXP2(peak[r] - top);
    const float p = seen ? RV_EXP2(s - top) : 0.0f;
    weight[r] = weight[r] * shrink + p;
    peak[r] = top;
#if RV_KIND == 3
    mine[lane * RV_PAD + r] = lane < left ? p * value_scale : 0.0f;
#else
    mine[lane * RV_PAD + r] = p;
#endif
    RV_UNROLL for (int e = 0; e < RV_VEC; e++) acc[r][e] *= shrink;
  }
  RV_SIMD_BARRIER();
  const int ahead = b + RV_SIMDGROUPS;
  if (ahead < end) key_plane = rv_plane(table[ahead], layer[0], 0, head);
  for (int batch = 0; batch < RV_BATCHES; batch++) {
    RV_UNROLL for (int i = 0; i < RV_LOADS; i++) now[i] = next[i];
    if (batch + 1 < RV_BATCHES) rv_load_batch(next, values, batch + 1, sub, chunk, left);
    else if (ahead < end)
      rv_load_batch(next, arena + key_plane * RV_BLOCK * RV_D, 0, sub, chunk, context - first - ahead * RV_BLOCK);
    RV_UNROLL for (int i = 0; i < RV_LOADS; i++) {
      float x[RV_VEC];
      rv_unpack(now[i], x);
      RV_SHARED_PTR float* p = mine + ((batch * RV_LOADS + i) * RV_SUBS + sub) * RV_PAD;
      RV_UNROLL for (int r = 0; r < RV_TILE; r++) {
        const float w = p[r];
        RV_UNROLL for (int e = 0; e < RV_VEC; e++) acc[r][e] += w * x[e];
      }
    }
  }
  RV_SIMD_BARRIER();
}

// One maximum for the threadgroup, then the sums of its simdgroups.
RV_UNROLL for (int r = 0; r < RV_TILE; r++) {
  weight[r] = rv_simd_sum(weight[r]);
  RV_UNROLL for (int mask = RV_LANES; mask < 32; mask <<= 1) {
    RV_UNROLL for (int e = 0; e < RV_VEC; e++) acc[r][e] += rv_xor(acc[r][e], mask);
  }
  if (lane == 0) { peaks[simd * RV_PAD + r] = peak[r]; weights[simd * RV_PAD + r] = weight[r]; }
}
RV_BARRIER();
RV_UNROLL for (int r = 0; r < RV_TILE; r++) {
  float top = RV_NEVER, total = 0;
  RV_UNROLL for (int s = 0; s < RV_SIMDGROUPS; s++) top = RV_MAX(top, peaks[s * RV_PAD + r]);
  RV_UNROLL for (int s = 0; s < RV_SIMDGROUPS; s++) total += weights[s * RV_PAD + r] * RV_EXP2(peaks[s * RV_PAD + r] - top);
  const float shrink = RV_EXP2(peak[r] - top);
  if (sub == 0 && chunk < RV_CHUNKS) {
    RV_UNROLL for (int e = 0; e < RV_VEC; e++) shared[simd * RV_D + chunk * RV_VEC + e] = acc[r][e] * shrink;
  }
  RV_BARRIER();
  const int index = tile * RV_TILE + r;
  if (index < RV_ROWS) {
    const rv_index at = (((rv_index)row * RV_KV_HEADS + head) * RV_ROWS + index) * splits + split;
    for (int d = RV_LOCAL_ID.x; d < RV_D; d += RV_SIMDGROUPS * 32) {
      float sum = 0;
      RV_UNROLL for (int s = 0; s < RV_SIMDGROUPS; s++) sum += shared[s * RV_D + d];
      partial[at * RV_D + d] = sum;
    }
    if (RV_LOCAL_ID.x == 0) { stats[at * 2] = top; stats[at * 2 + 1] = total; }
  }
  RV_BARRIER();
}
