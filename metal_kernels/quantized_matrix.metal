// Rows of x times packed weights, on Metal's simdgroup matrices: for more rows than plain lanes have registers for. A
// threadgroup of four simdgroups owns 32 outputs of all rows.
// Metal injects: thread_position_in_threadgroup threadgroup_position_in_grid simdgroup_index_in_threadgroup
RV_SHARED RV_T weights[2 * 32 * 40];  // [output, 32 of K], eight more a row against bank conflicts
RV_SHARED RV_T xs[2 * RV_ROWS * 40];
RV_SHARED float sums[RV_ROWS * 32];
const int thread_at = RV_LOCAL_ID.x, simd = RV_SIMD;
const int rows = x_shape[0], width = x_shape[1], outs = weight_shape[0], first = (int)RV_GROUP.x * 32;
const int own = thread_at / 4, part = thread_at % 4 * RV_VEC;  // a thread unpacks eight weights of one output
const rv_index n = first + own < outs ? first + own : outs - 1;
#include "matrix_steps.metal"
for (int i = thread_at; i < RV_ROWS * 32; i += 128) {
  const int r = i / 32, o = first + i % 32;
  if (r < rows && o < outs) out[(rv_index)r * outs + o] = (RV_T)sums[i];
}
