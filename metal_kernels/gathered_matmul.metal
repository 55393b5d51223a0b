// Rows of x times the packed weights of the experts that they ask for, on plain lanes: as quantized_matmul.metal, whose
// sums these are. A threadgroup finds the rows of its expert and reads that expert's weights once for up to eight of them.
// Metal injects: threadgroup_position_in_grid thread_index_in_simdgroup simdgroup_index_in_threadgroup
RV_SHARED int list[RV_PAIRS];
const int lane = RV_LANE, simd = RV_SIMD, outs = weight_shape[0] / RV_EXPERTS;
#include "gathered_expert.metal"
#include "gathered_pairs.metal"
const int first = ((int)RV_GROUP.x * RV_SIMDGROUPS + simd) * RV_OUTS;
if (first >= outs) return;
const int width = x_shape[1];
const rv_index base = (rv_index)expert * outs;
for (int done = 0; done < count;) {
  const int left = count - done;
  if (left == 1) {
    rv_expert_rows<1>(x, RV_THE_PACKED, out, list + done, width, left, each, base, first, outs, lane);
    done += 1;
  } else if (left == 2) {
    rv_expert_rows<2>(x, RV_THE_PACKED, out, list + done, width, left, each, base, first, outs, lane);
    done += 2;
  } else if (left <= 4) {
    rv_expert_rows<4>(x, RV_THE_PACKED, out, list + done, width, left, each, base, first, outs, lane);
    done += 4;
  } else {
    rv_expert_rows<8>(x, RV_THE_PACKED, out, list + done, width, left, each, base, first, outs, lane);
    done += 8;
  }
}
