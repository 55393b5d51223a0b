// Metal's matrices of a simdgroup.
#include <metal_simdgroup_matrix>
