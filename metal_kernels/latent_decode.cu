// latent_decode on CUDA's matrix units, with the same contract. The warps of a threadgroup share the elements of each
// token: a warp works out its part of the scores (tokens down, queries across), all add up all parts in one order, and
// each turns its slice of the latents, which it still holds, for the outputs (elements down, queries across).
// Threadgroup: (query tile, row, split).
// Metal injects: thread_position_in_threadgroup threadgroup_position_in_grid threadgroups_per_grid
RV_SHARED float4 shared[RV_SHARED_VECTORS];  // first the tile's queries [column, RV_D + RV_VALUE_D], then the parts
const int simd = RV_SIMD, lane = RV_LANE, g = lane / 4, t = lane % 4;
#include "decode_begin.metal"

for (int c = simd; c < RV_PAD; c += RV_SIMDGROUPS) {
  const int index = tile * RV_TILE + c;
  const bool is_real = c < RV_TILE && index < RV_ROWS;
  const int query_head = (is_real ? index : 0) / RV_QUERY_LEN, token = index % RV_QUERY_LEN;
  const RV_T* from = queries + row * queries_strides[0] + query_head * queries_strides[1] + token * queries_strides[2];
  const RV_T* turned = rotated + row * rotated_strides[0] + query_head * rotated_strides[1] + token * rotated_strides[2];
  for (int d = lane; d < RV_D + RV_VALUE_D; d += 32) {
    float x = 0;
    if (is_real && d < RV_D) x = (float)from[d * queries_strides[3]];
    else if (is_real) x = rv_element(turned, rotated_strides[3], d - RV_D, RV_ROPE_ROW) * RV_ROTATED_BY;
    ((unsigned short*)shared)[c * (RV_D + RV_VALUE_D) + d] = (unsigned short)rv_pack(x, 0);
  }
}
__syncthreads();  // the queries and the new tokens are there

unsigned q[RV_N][RV_SLICE / 16][2], q_turned[RV_N][RV_RUNS][2];
RV_UNROLL for (int n = 0; n < RV_N; n++) {
  const unsigned* from = (const unsigned*)shared + (n * 8 + g) * ((RV_D + RV_VALUE_D) / 2);
  RV_UNROLL for (int k = 0; k < RV_SLICE / 16; k++) {
    const int pair = (simd * RV_SLICE + (4 * (k / 2) + t) * 8 + k % 2 * 4) / 2;
    q[n][k][0] = from[pair];
    q[n][k][1] = from[pair + 1];
  }
  RV_UNROLL for (int i = 0; i < RV_RUNS; i++) {
    const int run = simd + i * RV_SIMDGROUPS, pair = (RV_D + run * 16 + t * 4) / 2;
    q_turned[n][i][0] = run < RV_VALUE_D / 16 ? from[pair] : 0;
    q_turned[n][i][1] = run < RV_VALUE_D / 16 ? from[pair + 1] : 0;
  }
}
float peak[RV_N][2], weight[RV_N][2], acc[RV_N][RV_SLICE / 16][4];
RV_UNROLL for (int n = 0; n < RV_N; n++) {
  RV_UNROLL for (int e = 0; e < 2; e++) { peak[n][e] = RV_NEVER; weight[n][e] = 0; }
  RV_UNROLL for (int i = 0; i < RV_SLICE / 16; i++)
    RV_UNROLL for (int e = 0; e < 4; e++) acc[n][i][e] = 0;
}
__syncthreads();  // the queries are read

const int per_block = RV_BLOCK / RV_STEP, held = context - first;
const int stop = min(end * per_block, (held + RV_STEP - 1) / RV_STEP);
int s = begin * per_block;
int block = s < stop ? table[s / per_block] : 0;
int ahead = s + 1 < stop ? table[(s + 1) / per_block] : 0;
rv_tokens now, next;
if (s < stop)
  rv_load_tokens(now, arena + rv_token(block, layer[0], 0, 0, s % per_block * RV_STEP),
                 arena + rv_token(block, layer[0], 1, 0, s % per_block * RV_STEP), held - s * RV_STEP - 1, simd, g, t);
for (; s < stop; s++) {
  const int following = s + 1;
  if (following < stop)
    rv_load_tokens(next, arena + rv_token(ahead, layer[0], 0, 0, following % per_block * RV_STEP),
                   arena + rv_token(ahead, layer[0], 1, 0, following % per_block * RV_STEP),
                   held - following * RV_STEP - 1, simd, g, t);
  if (following + 1 < stop) ahead = table[(following + 1) / per_block];
  float4* parts = shared + s % 2 * (RV_SIMDGROUPS * RV_N * RV_M * 32);  // [warp, columns, tokens, lane]
  float dots[RV_N][RV_M][4];
  RV_UNROLL for (int n = 0; n < RV_N; n++) {
    RV_UNROLL for (int m = 0; m < RV_M; m++) {
      float* c = dots[n][m];
      c[0] = c[1] = c[2] = c[3] = 0;
      RV_UNROLL for (int k = 0; k < RV_SLICE / 16; k++)
        rv_mma(c, now.latent[2 * m][2 * k], now.latent[2 * m + 1][2 * k], now.latent[2 * m][2 * k + 1],
               now.latent[2 * m + 1][2 * k + 1], q[n][k][0], q[n][k][1]);
      RV_UNROLL for (int i = 0; i < RV_RUNS; i++)
        rv_mma(c, now.turned[2 * m][2 * i], now.turned[2 * m + 1][2 * i], now.turned[2 * m][2 * i + 1],
               now.turned[2 * m + 1][2 * i + 1], q_turned[n][i][0], q_turned[n][i][1]);
      parts[((simd * RV_N + n) * RV_M + m) * 32 + lane] = make_float4(c[0], c[1], c[2], c[3]);
    }
  }
  RV_UNROLL for (int r = 0; r < 2 * RV_M; r++)
    RV_UNROLL for (int i = 0; i < RV_LOADS_LATENT * 4; i++) now.latent[r][i] = rv_transposed(now.latent[r][i]);
  __syncthreads();  // all parts are there
  unsigned packed[RV_N][RV_M][2];
  RV_UNROLL for (int n = 0; n < RV_N; n++) {
    float top[2] = {2 * RV_NEVER, 2 * RV_NEVER}, shrink[2], sum[2] = {0, 0};  // of columns 2 t and 2 t + 1
    RV_UNROLL for (int m = 0; m < RV_M; m++) {
      float4 whole = make_float4(0, 0, 0, 0);
      RV_UNROLL for (int w = 0; w < RV_SIMDGROUPS; w++) {
        const float4 part = parts[((w * RV_N + n) * RV_M + m) * 32 + lane];
        whole.x += part.x; whole.y += part.y; whole.z += part.z; whole.w += part.w;
      }
      dots[n][m][0] = whole.x; dots[n][m][1] = whole.y; dots[n][m][2] = whole.z; dots[n][m][3] = whole.w;
    }
    RV_UNROLL for (int i = 0; i < 4 * RV_M; i++) {
      const int r = i / 2, e = i % 2, position = first + s * RV_STEP + g + 8 * r;
      const int query = context - RV_QUERY_LEN + (tile * RV_TILE + n * 8 + 2 * t + e) % RV_QUERY_LEN;
      const float x = position <= query ? dots[n][r / 2][r % 2 * 2 + e] * (RV_SCALE * RV_LOG2E) : 2 * RV_NEVER;
      dots[n][r / 2][r % 2 * 2 + e] = x;
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
      const float p = rv_exp2(dots[n][r / 2][r % 2 * 2 + e] - top[e]);
      sum[e] += p;
      dots[n][r / 2][r % 2 * 2 + e] = p;
    }
    weight[n][0] = weight[n][0] * shrink[0] + sum[0];
    weight[n][1] = weight[n][1] * shrink[1] + sum[1];
    if (__any_sync(0xffffffffu, peak[n][0] != top[0] || peak[n][1] != top[1])) {
      RV_UNROLL for (int i = 0; i < RV_SLICE / 16; i++)
        RV_UNROLL for (int e = 0; e < 4; e++) acc[n][i][e] *= shrink[e % 2];
    }
    peak[n][0] = top[0];
    peak[n][1] = top[1];
    RV_UNROLL for (int m = 0; m < RV_M; m++) {
      packed[n][m][0] = rv_transposed(rv_pack(dots[n][m][0], dots[n][m][1]));
      packed[n][m][1] = rv_transposed(rv_pack(dots[n][m][2], dots[n][m][3]));
    }
  }
  RV_UNROLL for (int m = 0; m < RV_M; m++)
    RV_UNROLL for (int i = 0; i < RV_SLICE / 16; i++)
      RV_UNROLL for (int n = 0; n < RV_N; n++)
        rv_mma(acc[n][i], now.latent[2 * m][2 * i], now.latent[2 * m][2 * i + 1], now.latent[2 * m + 1][2 * i],
               now.latent[2 * m + 1][2 * i + 1], packed[n][m][0], packed[n][m][1]);
  now = next;
}

// Lane g holds elements 0, 2, 4 and 6 of eight, or the odd ones: neighbours exchange half, and each stores four.
RV_UNROLL for (int n = 0; n < RV_N; n++) {
  RV_UNROLL for (int e = 0; e < 2; e++) {
    RV_UNROLL for (int mask = 4; mask < 32; mask <<= 1) weight[n][e] += rv_xor(weight[n][e], mask);
    const int c = n * 8 + 2 * t + e, index = tile * RV_TILE + c;
    const bool is_real = c < RV_TILE && index < RV_ROWS;
#ifdef RV_FINAL
    const float inverse = weight[n][e] > 0 ? 1.0f / weight[n][e] : 0.0f;
#else
    const rv_index place = (RV_OUT_ROW + index) * splits + split;
    float* stats = (float*)scratch + (rv_index)RV_GROUPS.y * RV_ROWS * splits * RV_D;
    if (is_real && simd == 0 && g == 0) { stats[place * 2] = peak[n][e]; stats[place * 2 + 1] = weight[n][e]; }
#endif
    RV_UNROLL for (int i = 0; i < RV_LOADS_LATENT; i++) {
      const float a = acc[n][2 * i][e], b = acc[n][2 * i][2 + e], c4 = acc[n][2 * i + 1][e], d6 = acc[n][2 * i + 1][2 + e];
      const bool odd = g % 2 == 1;
      const float x = rv_xor(odd ? a : c4, 4), y = rv_xor(odd ? b : d6, 4);
      const float4 four = odd ? make_float4(x, c4, y, d6) : make_float4(a, x, b, y);
      const int d = simd * RV_SLICE + (4 * i + g / 2) * 8 + (odd ? 4 : 0);
      if (is_real) {
#ifdef RV_FINAL
        RV_T* to = out + (RV_OUT_ROW + index) * RV_D + d;
        to[0] = (RV_T)(four.x * inverse); to[1] = (RV_T)(four.y * inverse);
        to[2] = (RV_T)(four.z * inverse); to[3] = (RV_T)(four.w * inverse);
#else
        *(float4*)((float*)scratch + place * RV_D + d) = four;
#endif
      }
    }
  }
}
