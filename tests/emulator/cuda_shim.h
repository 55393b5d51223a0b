// CUDA's words over the same fibers.
#pragma once
#include "metal_shim.h"
#define __device__
#define __forceinline__ inline
#define __shared__ threadgroup
#define blockIdx threadgroup_position_in_grid
#define gridDim threadgroups_per_grid
#define threadIdx thread_position_in_threadgroup
#define __syncthreads() emulator::group_wait()
#define __syncwarp() emulator::simd_wait(emulator::kSimdBarrier)
typedef half __half;
typedef bfloat __nv_bfloat16;
inline float __half2float(half x) { return x; }
inline half __ushort_as_half(ushort x) { return as_type<half>(x); }
inline float __uint_as_float(uint x) { return as_type<float>(x); }
inline uint __float_as_uint(float x) { return as_type<uint>(x); }
inline float rsqrtf(float x) { return 1.0f / ::sqrtf(x); }
inline float __log2f(float x) { return ::log2f(x); }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float __shfl_xor_sync(uint, float x, int mask) { return metal::simd_shuffle_xor(x, mask); }
inline uint __ballot_sync(uint, bool x) { return (uint)(metal::simd_vote::vote_t)metal::simd_ballot(x); }
inline int __popc(uint x) { return __builtin_popcount(x); }
inline bool __any_sync(uint, bool x) { return metal::simd_max(x ? 1.0f : 0.0f) > 0; }
inline uint __byte_perm(uint a, uint b, uint selector) {
  const ulong both = (ulong)b << 32 | a;
  uint word = 0;
  for (int i = 0; i < 4; i++) word |= uint(both >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  return word;
}
