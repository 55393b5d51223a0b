// A step of a layer of gated delta nets: the short convolution, the norms of queries and keys, both gates, the state's
// recurrence and the gated norm of what is read from it, for all tokens of a row. A threadgroup has one value head of one
// row; RV_ROW_LANES lanes share a row of its state, which stays in their registers for RV_TOKENS tokens. Results are
// rounded to the model's type where its own definition rounds them.
// Metal injects: thread_position_in_threadgroup threadgroup_position_in_grid
// Metal injects: thread_index_in_simdgroup simdgroup_index_in_threadgroup
RV_SHARED float4 fours[RV_TOKENS * (2 * RV_DK + RV_DV) / 4];
RV_SHARED_PTR float* heads = (RV_SHARED_PTR float*)fours;  // of each token: query, key, value
RV_SHARED float outputs[RV_TOKENS * RV_DV];
RV_SHARED float gates[2 * RV_TOKENS];  // of each token: what the state keeps, how much is written
const int lane = RV_LANE, simd = RV_SIMD, at_thread = RV_LOCAL_ID.x, threads = RV_SIMDGROUPS * 32;
const int head = RV_GROUP.x, row = RV_GROUP.y, size = 2 * RV_DK + RV_DV;
const int key_head = head / RV_SHARING, sharer = head % RV_SHARING;
const int tokens = mixed_shape[1];
const rv_index head_at = (rv_index)row * RV_VALUE_HEADS + head;
for (int first = 0; first < tokens; first += RV_TOKENS) {
  const int count = tokens - first < RV_TOKENS ? tokens - first : RV_TOKENS;
  for (int i = at_thread; i < count * size; i += threads) {
    const int element = i % size, channel = rv_channel(element, head, key_head);
    float sum = 0;
    RV_UNROLL for (int tap = 0; tap < RV_TAPS; tap++) {
      const int token = first + i / size + tap - (RV_TAPS - 1);
      float x;
      if (token < 0) x = (float)conv[((rv_index)row * (RV_TAPS - 1) + token + RV_TAPS - 1) * RV_CHANNELS + channel];
      else x = (float)mixed[row * mixed_strides[0] + token * mixed_strides[1] + rv_place(element, key_head, sharer)];
      sum = RV_FMA(x, (float)taps[channel * RV_TAPS + tap], sum);
    }
    sum = rv_rounded(sum);
    heads[i] = rv_rounded(sum * rv_rounded(rv_sigmoid(sum)));
  }
  if (at_thread < count) {
    const int token = first + at_thread;
    const float x = rv_rounded((float)a[row * a_strides[0] + token * a_strides[1] + RV_A_AT(key_head, sharer)] + (float)shift[head]);
    gates[2 * at_thread] = RV_EXP(-rates[head] * rv_rounded(rv_softplus(x)));
    const float y = (float)b[row * b_strides[0] + token * b_strides[1] + RV_B_AT(key_head, sharer)];
    gates[2 * at_thread + 1] = rv_rounded(rv_sigmoid(y));
  }
  RV_BARRIER();
  for (int job = simd; job < 2 * count; job += RV_SIMDGROUPS) {
    RV_SHARED_PTR float* x = heads + job / 2 * size + job % 2 * RV_DK;
    float sum = 0;
    for (int d = lane; d < RV_DK; d += 32) sum = RV_FMA(x[d], x[d], sum);
    const float inverse = RV_RSQRT(rv_simd_sum(sum) / RV_DK + RV_KEY_EPS);
    const float scale = job % 2 == 0 ? RV_QUERY_SCALE : RV_KEY_SCALE;
    for (int d = lane; d < RV_DK; d += 32) x[d] = rv_rounded(scale * rv_rounded(x[d] * inverse));
  }
  RV_BARRIER();
  for (int start = 0; start < RV_DV; start += threads / RV_ROW_LANES) {
    const int d = start + at_thread / RV_ROW_LANES, part = lane % RV_ROW_LANES;
    const bool is_real = d < RV_DV;
    const rv_index at = (head_at * RV_DV + (is_real ? d : RV_DV - 1)) * RV_DK + part * 4;
    float s[RV_LANE_KEYS];
    RV_UNROLL for (int j = 0; j < RV_LANE_KEYS; j += 4) {
      const rv_index from = at + j * RV_ROW_LANES;
      if (first == 0) rv_four(*(const RV_GLOBAL float4*)(state + from), s + j);
      else rv_four(*(const RV_GLOBAL float4*)(state_after + from), s + j);
    }
    for (int t = 0; t < count; t++) {
      RV_SHARED_PTR const float* query = heads + t * size + part * 4;
      RV_SHARED_PTR const float* key = query + RV_DK;
      float memory = 0, read = 0;
      float k[RV_LANE_KEYS];
      RV_UNROLL for (int j = 0; j < RV_LANE_KEYS; j += 4) {
        rv_four(*(RV_SHARED_PTR const float4*)(key + j * RV_ROW_LANES), k + j);
        RV_UNROLL for (int e = j; e < j + 4; e++) {
          s[e] *= gates[2 * t];
          memory = RV_FMA(s[e], k[e], memory);
        }
      }
      RV_UNROLL for (int mask = RV_ROW_LANES / 2; mask > 0; mask >>= 1) memory += rv_xor(memory, mask);
      const float value = heads[t * size + 2 * RV_DK + (is_real ? d : RV_DV - 1)];
      const float change = (value - memory) * gates[2 * t + 1];
      RV_UNROLL for (int j = 0; j < RV_LANE_KEYS; j += 4) {
        float q[4];
        rv_four(*(RV_SHARED_PTR const float4*)(query + j * RV_ROW_LANES), q);
        RV_UNROLL for (int e = 0; e < 4; e++) {
          s[j + e] = RV_FMA(k[j + e], change, s[j + e]);
          read = RV_FMA(s[j + e], q[e], read);
        }
      }
      RV_UNROLL for (int mask = RV_ROW_LANES / 2; mask > 0; mask >>= 1) read += rv_xor(read, mask);
      if (part == 0 && is_real) outputs[t * RV_DV + d] = rv_rounded(read);
    }
    if (is_real) {
      RV_UNROLL for (int j = 0; j < RV_LANE_KEYS; j += 4) {
        float4 kept;
        kept.x = s[j]; kept.y = s[j + 1]; kept.z = s[j + 2]; kept.w = s[j + 3];
        *(RV_GLOBAL float4*)(state_after + at + j * RV_ROW_LANES) = kept;
      }
    }
  }
  RV_BARRIER();
  for (int t = simd; t < count; t += RV_SIMDGROUPS) {
    float sum = 0;
    for (int d = lane; d < RV_DV; d += 32) sum = RV_FMA(outputs[t * RV_DV + d], outputs[t * RV_DV + d], sum);
    const float inverse = RV_RSQRT(rv_simd_sum(sum) / RV_DV + RV_EPS);
    for (int d = lane; d < RV_DV; d += 32) {
      const rv_index gate_at = row * z_strides[0] + (first + t) * z_strides[1] + RV_Z_AT(key_head, sharer) + d;
      const float gate = (float)z[gate_at];
      const float normed = rv_rounded((float)norm[d] * rv_rounded(outputs[t * RV_DV + d] * inverse));
      const rv_index to = (((rv_index)row * tokens + first + t) * RV_VALUE_HEADS + head) * RV_DV + d;
      out[to] = (RV_T)(gate * rv_sigmoid(gate) * normed);
    }
  }
}
for (int i = at_thread; i < (RV_TAPS - 1) * size; i += threads) {
  const int element = i % size, channel = rv_channel(element, head, key_head);
  const int kept = i / size, token = tokens - (RV_TAPS - 1) + kept;
  if (element < 2 * RV_DK && sharer != 0) continue;  // the first of those that share a key head writes it
  const rv_index plane = (rv_index)row * (RV_TAPS - 1);
  RV_T x;
  if (token < 0) x = conv[(plane + token + RV_TAPS - 1) * RV_CHANNELS + channel];
  else x = mixed[row * mixed_strides[0] + token * mixed_strides[1] + rv_place(element, key_head, sharer)];
  conv_after[(plane + kept) * RV_CHANNELS + channel] = x;
}
