// Rows of x times the packed weights of the experts that they ask for, on Metal's simdgroup matrices: as
// quantized_matrix.metal, whose sums these are. Eight rows of an expert share what is unpacked of its weights.
// Metal injects: thread_position_in_threadgroup threadgroup_position_in_grid thread_index_in_simdgroup simdgroup_index_in_threadgroup
RV_SHARED int list[RV_PAIRS];
RV_SHARED RV_T weights[2 * 32 * 40];
RV_SHARED RV_T xs[2 * RV_ROWS * 40];
RV_SHARED float sums[RV_ROWS * 32];
const int thread_at = RV_LOCAL_ID.x, lane = RV_LANE, simd = RV_SIMD, outs = weight_shape[0] / RV_EXPERTS;
#include "gathered_expert.metal"
#include "gathered_pairs.metal"
const int width = x_shape[1], first = (int)RV_GROUP.x * 32;
const int own = thread_at / 4, part = thread_at % 4 * RV_VEC;
const rv_index n = (rv_index)expert * outs + (first + own < outs ? first + own : outs - 1);
for (int done = 0; done < count; done += RV_ROWS) {
#include "matrix_steps.metal"
  for (int i = thread_at; i < RV_ROWS * 32; i += 128) {
    const int r = done + i / 32, o = first + i % 32;
    if (r < count && o < outs) out[(rv_index)list[r] * outs + o] = (RV_T)sums[i];
  }
}
