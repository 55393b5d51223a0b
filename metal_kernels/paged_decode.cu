// paged_decode on CUDA's matrix units, with the same contract. A warp takes stages of RV_STEP tokens: scores are
// keys x queries (tokens down, queries across), outputs values x weights (elements down, queries across); keys and
// values go from memory to registers as they lie, and each product's free dimensions are numbered to fit. The next
// stage's keys are loaded while this one's weights are worked out, its values while the next scores are.
// Threadgroup: (kv head and query tile, row, split).
// Metal injects: thread_position_in_threadgroup threadgroup_position_in_grid threadgroups_per_grid
RV_SHARED float4 sums[RV_MERGE_VECTORS];  // first the tile's queries [column, D], then the warps' sums
RV_SHARED float peaks[RV_SIMDGROUPS * RV_PAD];
RV_SHARED float weights[RV_SIMDGROUPS * RV_PAD];
RV_SHARED float shares[2 * RV_PAD];
RV_SHARED float units[2 * RV_PAD];  // what a column's scores are multiplied by, and where their sums start
const int simd = RV_SIMD, lane = RV_LANE, g = lane / 4, t = lane % 4;
#include "decode_begin.metal"

for (int c = simd; c < RV_PAD; c += RV_SIMDGROUPS) {
  const int index = tile * RV_TILE + c;
  const bool is_real = c < RV_TILE && index < RV_ROWS;
  const RV_T* from = queries + row * queries_strides[0] + (head * RV_GROUP_SIZE + (is_real ? index : 0) / RV_QUERY_LEN) * queries_strides[1]
                     + (index % RV_QUERY_LEN) * queries_strides[2];
  float x[(RV_D + 31) / 32], unit = 1;
  RV_UNROLL for (int i = 0; i < (RV_D + 31) / 32; i++)
    x[i] = is_real && i * 32 + lane < RV_D ? rv_element(from, queries_strides[3], i * 32 + lane, RV_ROPE_ROW) : 0.0f;
#if RV_KIND == 3  // half has fewer exponents than bfloat16: a power of two brings the row near 1
  float largest = 0;
  RV_UNROLL for (int i = 0; i < (RV_D + 31) / 32; i++) largest = fmaxf(largest, fabsf(x[i]));
  unit = __uint_as_float(__float_as_uint(rv_simd_max(largest)) & 0x7f800000u);
  if (!(unit > 1e-30f && unit < 1e30f)) unit = 1;
#endif
  float sum = 0;
  RV_UNROLL for (int i = 0; i < (RV_D + 31) / 32; i++) {
    const unsigned short bits = (unsigned short)rv_pack(x[i] * (1.0f / unit), 0);
    if (i * 32 + lane < RV_D) ((unsigned short*)sums)[c * RV_D + i * 32 + lane] = bits;
#if RV_KIND == 3
    sum += rv_half(bits);
#endif
  }
#if RV_KIND == 3
  sum = rv_simd_sum(sum);
#endif
  if (lane == 0) units[RV_PAD + c] = sum * RV_KEY_START;
#ifdef RV_SOFTCAP
  if (lane == 0) units[c] = unit * (RV_SCALE * RV_KEY_UNIT);
#else
  if (lane == 0) units[c] = unit * (RV_SCALE * RV_LOG2E * RV_KEY_UNIT);
#endif
}
__syncthreads();  // the queries and the new tokens are there

unsigned q[RV_N][RV_D / 16][2];
RV_UNROLL for (int n = 0; n < RV_N; n++) {
  const unsigned* from = (const unsigned*)sums + (n * 8 + g) * RV_D / 2;
  RV_UNROLL for (int k = 0; k < RV_D / 16; k++) {
    const int steps = RV_KEY_VEC / 4, load = k / steps;
    const int at = load < RV_KEY_LOADS ? (4 * load + t) * RV_KEY_VEC + k % steps * 4 : RV_D - 16 + 4 * t;
    q[n][k][0] = from[at / 2];
    q[n][k][1] = from[at / 2 + 1];
  }
}
float unit[RV_N][2], start[RV_N][2], peak[RV_N][2], weight[RV_N][2], acc[RV_N][RV_VALUE_LOADS * RV_VALUE_VEC / 2][4];
RV_UNROLL for (int n = 0; n < RV_N; n++) {
  RV_UNROLL for (int e = 0; e < 2; e++) {
    unit[n][e] = units[n * 8 + 2 * t + e];
    start[n][e] = units[RV_PAD + n * 8 + 2 * t + e];
    peak[n][e] = RV_NEVER;
    weight[n][e] = 0;
  }
  RV_UNROLL for (int i = 0; i < RV_VALUE_LOADS * RV_VALUE_VEC / 2; i++)
    RV_UNROLL for (int e = 0; e < 4; e++) acc[n][i][e] = 0;
}

unsigned keys_now[2 * RV_M][RV_ROW_WORDS], values_now[4 * RV_M][RV_VALUE_LOADS * RV_VALUE_WORDS];
const int per_block = RV_BLOCK / RV_STEP, held = context - first;
const int stop = min(end * per_block, (held + RV_STEP - 1) / RV_STEP);
int s = begin * per_block + simd;
int block = s < stop ? table[s / per_block] : 0;
int ahead = s + RV_SIMDGROUPS < stop ? table[(s + RV_SIMDGROUPS) / per_block] : 0;
rv_index place = rv_plane(block, layer[0], 0, head) * RV_BLOCK + s % per_block * RV_STEP;
#if RV_KIND == 3
float key_scale[2 * RV_M], value_scale[2 * RV_M];
if (s < stop) rv_load_scales(key_scale, value_scale, scales + place, held - s * RV_STEP - 1, g);
#endif
if (s < stop) {
  rv_load_keys(keys_now, arena + place * RV_D, held - s * RV_STEP - 1, g, t);
  rv_load_values(values_now, arena + (place + RV_KV_HEADS * RV_BLOCK) * RV_D, held - s * RV_STEP - 1, g, t);
}
for (; s < stop; s += RV_SIMDGROUPS) {
  const int next = s + RV_SIMDGROUPS, next_last = held - next * RV_STEP - 1;
  const int next_block = ahead;
  if (next + RV_SIMDGROUPS < stop) ahead = table[(next + RV_SIMDGROUPS) / per_block];
  const rv_index next_place = rv_plane(next_block, layer[0], 0, head) * RV_BLOCK + next % per_block * RV_STEP;
  float dots[RV_N][RV_M][4];
  RV_UNROLL for (int n = 0; n < RV_N; n++)
    RV_UNROLL for (int m = 0; m < RV_M; m++)
      RV_UNROLL for (int e = 0; e < 4; e++) dots[n][m][e] = start[n][e % 2];
  RV_UNROLL for (int m = 0; m < RV_M; m++) {
#if RV_KIND == 3
    RV_UNROLL for (int k = 0; k < RV_D / 16; k++) {
      unsigned low[2], high[2];
      rv_key_pairs(keys_now[2 * m][k], low);
      rv_key_pairs(keys_now[2 * m + 1][k], high);
      RV_UNROLL for (int n = 0; n < RV_N; n++) rv_mma(dots[n][m], low[0], high[0], low[1], high[1], q[n][k][0], q[n][k][1]);
    }
#else
    RV_UNROLL for (int k = 0; k < RV_D / 16; k++)
      RV_UNROLL for (int n = 0; n < RV_N; n++)
        rv_mma(dots[n][m], keys_now[2 * m][2 * k], keys_now[2 * m + 1][2 * k], keys_now[2 * m][2 * k + 1],
               keys_now[2 * m + 1][2 * k + 1], q[n][k][0], q[n][k][1]);
#endif
  }
  if (next < stop) rv_load_keys(keys_now, arena + next_place * RV_D, next_last, g, t);
#if RV_KIND == 3
  float key_unit[2 * RV_M], value_unit[2 * RV_M], value_log[2 * RV_M];
  RV_UNROLL for (int r = 0; r < 2 * RV_M; r++) {
    key_unit[r] = key_scale[r];
    value_unit[r] = value_scale[r];
    value_log[r] = fmaxf(__log2f(value_scale[r]), -60.0f);
  }
  if (next < stop) rv_load_scales(key_scale, value_scale, scales + next_place, next_last, g);
#endif
  unsigned packed[RV_N][RV_M][2];
  RV_UNROLL for (int n = 0; n < RV_N; n++) {
    float top[2] = {2 * RV_NEVER, 2 * RV_NEVER}, shrink[2], sum[2] = {0, 0};  // of columns 2 t and 2 t + 1
    RV_UNROLL for (int i = 0; i < 4 * RV_M; i++) {
      const int r = i / 2, e = i % 2, position = first + s * RV_STEP + g + 8 * r;
      const int query = context - RV_QUERY_LEN + (tile * RV_TILE + n * 8 + 2 * t + e) % RV_QUERY_LEN;
      float x = dots[n][r / 2][r % 2 * 2 + e] * unit[n][e];
#if RV_KIND == 3
      x *= key_unit[r];
#endif
#ifdef RV_SOFTCAP
      x = RV_SOFTCAP * tanhf(x * (1.0f / RV_SOFTCAP)) * RV_LOG2E;
#endif
      const bool seen = position <= query && (RV_WINDOW == 0 || position > query - RV_WINDOW);
      x = seen ? x : 2 * RV_NEVER;
      dots[n][r / 2][r % 2 * 2 + e] = x;
#if RV_KIND == 3
      x += value_log[r];  // so that a weight times its value's scale stays below 2^RV_BIAS
#endif
      top[e] = fmaxf(top[e], x);
    }
    RV_UNROLL for (int mask = 4; mask < 32; mask <<= 1) {
      top[0] = fmaxf(top[0], rv_xor(top[0], mask));
      top[1] = fmaxf(top[1], rv_xor(top[1], mask));
    }
    RV_UNROLL for (int e = 0; e < 2; e++) {
      top[e] = fmaxf(peak[n][e], top[e] - RV_BIAS);
      shrink[e] = rv_exp2(peak[n][e] - top[e]);
    }
    RV_UNROLL for (int i = 0; i < 4 * RV_M; i++) {
      const int r = i / 2, e = i % 2;
      float p = rv_exp2(dots[n][r / 2][r % 2 * 2 + e] - top[e]);
      sum[e] += p;
#if RV_KIND == 3
      p *= value_unit[r];
#endif
      dots[n][r / 2][r % 2 * 2 + e] = p;
    }
    weight[n][0] = weight[n][0] * shrink[0] + sum[0];
    weight[n][1] = weight[n][1] * shrink[1] + sum[1];
    if (__any_sync(0xffffffffu, peak[n][0] != top[0] || peak[n][1] != top[1])) {
      RV_UNROLL for (int i = 0; i < RV_VALUE_LOADS * RV_VALUE_VEC / 2; i++)
        RV_UNROLL for (int e = 0; e < 4; e++) acc[n][i][e] *= shrink[e % 2];
    }
    peak[n][0] = top[0];
    peak[n][1] = top[1];
    RV_UNROLL for (int m = 0; m < RV_M; m++) {
      packed[n][m][0] = rv_transposed(rv_pack(dots[n][m][0], dots[n][m][1]));
      packed[n][m][1] = rv_transposed(rv_pack(dots[n][m][2], dots[n][m][3]));
    }
  }
  RV_UNROLL for (int m = 0; m < RV_M; m++) {
    RV_UNROLL for (int i = 0; i < RV_VALUE_LOADS * RV_VALUE_WORDS; i++) {
      unsigned low[RV_PER_WORD], high[RV_PER_WORD];
      rv_value_pairs(values_now[4 * m][i], values_now[4 * m + 1][i], low);
      rv_value_pairs(values_now[4 * m + 2][i], values_now[4 * m + 3][i], high);
      RV_UNROLL for (int h = 0; h < RV_PER_WORD / 2; h++)
        RV_UNROLL for (int n = 0; n < RV_N; n++)
          rv_mma(acc[n][i * (RV_PER_WORD / 2) + h], low[2 * h], low[2 * h + 1], high[2 * h], high[2 * h + 1],
                 packed[n][m][0], packed[n][m][1]);
    }
  }
  if (next < stop) rv_load_values(values_now, arena + (next_place + RV_KV_HEADS * RV_BLOCK) * RV_D, next_last, g, t);
  place = next_place;
}

// One maximum and weight for the threadgroup, then the sums of its warps.
RV_UNROLL for (int n = 0; n < RV_N; n++) {
  RV_UNROLL for (int e = 0; e < 2; e++) {
    RV_UNROLL for (int mask = 4; mask < 32; mask <<= 1) weight[n][e] += rv_xor(weight[n][e], mask);
    if (g == 0) { peaks[simd * RV_PAD + n * 8 + 2 * t + e] = peak[n][e]; weights[simd * RV_PAD + n * 8 + 2 * t + e] = weight[n][e]; }
  }
}
__syncthreads();
#include "decode_weigh.metal"
RV_UNROLL for (int start = 0; start < RV_TILE; start += RV_MERGE) {
  RV_UNROLL for (int n = 0; n < RV_N; n++) {
    RV_UNROLL for (int e = 0; e < 2; e++) {
      const int column = n * 8 + 2 * t + e;
      float top = RV_NEVER;
      RV_UNROLL for (int w = 0; w < RV_SIMDGROUPS; w++) top = fmaxf(top, peaks[w * RV_PAD + column]);
      const float shrink = rv_exp2(peak[n][e] - top);
      if (column >= start && column < start + RV_MERGE && column < RV_TILE) {
        float* to = (float*)sums + (column - start) * (RV_SIMDGROUPS * RV_D + 8) + simd * RV_D;
        RV_UNROLL for (int i = 0; i < RV_VALUE_LOADS; i++) {
          RV_UNROLL for (int v = 0; v < RV_VALUE_VEC / 4; v++) {
            const int at = i * RV_VALUE_VEC / 2 + 2 * v;  // two rows of four elements
            if ((8 * i + g) * RV_VALUE_VEC < RV_D)
              *(float4*)(to + (8 * i + g) * RV_VALUE_VEC + 4 * v) = make_float4(
                  acc[n][at][e] * shrink, acc[n][at][2 + e] * shrink, acc[n][at + 1][e] * shrink, acc[n][at + 1][2 + e] * shrink);
          }
        }
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < RV_MERGE * RV_D / 4; i += RV_SIMDGROUPS * 32) {
    const int r = start + i / (RV_D / 4), d = i % (RV_D / 4) * 4, index = tile * RV_TILE + r;
    if (r < RV_TILE && index < RV_ROWS) {
      float4 sum = make_float4(0, 0, 0, 0);
      RV_UNROLL for (int w = 0; w < RV_SIMDGROUPS; w++) {
        const float4 x = *(float4*)((float*)sums + (r - start) * (RV_SIMDGROUPS * RV_D + 8) + w * RV_D + d);
        sum.x += x.x; sum.y += x.y; sum.z += x.z; sum.w += x.w;
      }
#ifdef RV_FINAL
      RV_T* to = out + (RV_OUT_ROW + index) * RV_D + d;
      const float factor = shares[r], inverse = shares[RV_PAD + r];
      to[0] = (RV_T)(sum.x * factor * inverse); to[1] = (RV_T)(sum.y * factor * inverse);
      to[2] = (RV_T)(sum.z * factor * inverse); to[3] = (RV_T)(sum.w * factor * inverse);
#else
      *(float4*)((float*)scratch + ((RV_OUT_ROW + index) * splits + split) * RV_D + d) = sum;
#endif
    }
  }
  __syncthreads();
}
