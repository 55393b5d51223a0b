// One vocabulary for Metal and CUDA: address spaces, barriers, lane exchange, 8-element vector loads.
// The launch code prepends: RV_METAL or RV_CUDA, RV_T (model type), RV_KV (arena type), RV_KIND (0 float, 1 half,
// 2 bfloat, 3 int8), RV_D (head size) and the sizes that a body names.
#ifdef RV_CUDA
#define RV_FN static __device__ __forceinline__
#define RV_GLOBAL
#define RV_SHARED __shared__
#define RV_SHARED_PTR
#define RV_LOCAL
#define RV_GROUP blockIdx
#define RV_GROUPS gridDim
#define RV_LOCAL_ID threadIdx
#define RV_LANE (threadIdx.x % 32)
#define RV_SIMD (threadIdx.x / 32)
#define RV_BARRIER() __syncthreads()
#define RV_DEVICE_BARRIER() __syncthreads()
#define RV_SIMD_BARRIER() __syncwarp()
#define RV_EXP2(x) exp2f(x)
#define RV_EXP(x) expf(x)
#define RV_LOG(x) logf(x)
#define RV_TANH(x) tanhf(x)
#define RV_COS(x) cosf(x)
#define RV_SIN(x) sinf(x)
#define RV_RSQRT(x) rsqrtf(x)
#define RV_MAX(a, b) fmaxf(a, b)
#define RV_FMA(a, b, c) fmaf(a, b, c)
#define RV_ROUND(x) rintf(x)
#define RV_BITS(x) __uint_as_float(x)
RV_FN float rv_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
RV_FN float rv_half(unsigned int x) { return __half2float(__ushort_as_half((unsigned short)x)); }
RV_FN unsigned int rv_word(float x) { return __float_as_uint(x); }
template <typename T> RV_FN unsigned int rv_bits16(T x) { return *(unsigned short*)&x; }
RV_FN unsigned int rv_ballot(bool x) { return __ballot_sync(0xffffffffu, x); }  // bit l: lane l's
RV_FN int rv_count_bits(unsigned int x) { return __popc(x); }
typedef long long rv_stride;
typedef unsigned long long rv_index;
#else
#define RV_FN static inline
#define RV_GLOBAL device
#define RV_SHARED threadgroup
#define RV_SHARED_PTR threadgroup
#define RV_LOCAL thread
#define RV_GROUP threadgroup_position_in_grid
#define RV_GROUPS threadgroups_per_grid
#define RV_LOCAL_ID thread_position_in_threadgroup
#define RV_LANE thread_index_in_simdgroup
#define RV_SIMD simdgroup_index_in_threadgroup
#define RV_BARRIER() threadgroup_barrier(metal::mem_flags::mem_threadgroup)
#define RV_DEVICE_BARRIER() threadgroup_barrier(metal::mem_flags::mem_device | metal::mem_flags::mem_threadgroup)
#define RV_SIMD_BARRIER() simdgroup_barrier(metal::mem_flags::mem_threadgroup)
#define RV_EXP2(x) metal::exp2(x)
#define RV_EXP(x) metal::precise::exp(x)
#define RV_LOG(x) metal::precise::log(x)
#define RV_TANH(x) metal::precise::tanh(x)
#define RV_COS(x) metal::precise::cos(x)
#define RV_SIN(x) metal::precise::sin(x)
#define RV_RSQRT(x) metal::precise::rsqrt(x)
#define RV_MAX(a, b) metal::max(a, b)
#define RV_FMA(a, b, c) metal::fma(a, b, c)
#define RV_ROUND(x) metal::rint(x)
#define RV_BITS(x) as_type<float>(x)
RV_FN float rv_xor(float x, int mask) { return metal::simd_shuffle_xor(x, (ushort)mask); }
RV_FN float rv_half(unsigned int x) { return (float)as_type<half>((ushort)x); }
RV_FN unsigned int rv_word(float x) { return as_type<uint>(x); }
template <typename T> RV_FN unsigned int rv_bits16(T x) { return as_type<ushort>(x); }
RV_FN unsigned int rv_ballot(bool x) { return (unsigned int)(metal::simd_vote::vote_t)metal::simd_ballot(x); }
RV_FN int rv_count_bits(unsigned int x) { return (int)metal::popcount(x); }
typedef long rv_stride;
typedef ulong rv_index;
#endif
#define RV_UNROLL _Pragma("unroll")
#define RV_BLOCK 32  // tokens a KV block
#define RV_VEC 8     // elements a lane loads at once
#define RV_CHUNKS (RV_D / RV_VEC)

// The fence after `fence`. It counts writes, wraps at 2^31 and is never negative.
RV_FN int rv_next_fence(int fence) { return (int)(((unsigned int)fence + 1u) & 0x7fffffffu); }

RV_FN float rv_simd_max(float x) {
  RV_UNROLL for (int mask = 16; mask > 0; mask >>= 1) x = RV_MAX(x, rv_xor(x, mask));
  return x;
}

RV_FN float rv_simd_sum(float x) {
  RV_UNROLL for (int mask = 16; mask > 0; mask >>= 1) x += rv_xor(x, mask);
  return x;
}

// Eight stored elements, still packed: as many loads can be in flight as there are of these.
struct rv_raw {
#if RV_KIND == 0
  uint4 a, b;
#elif RV_KIND == 3
  uint2 a;
#else
  uint4 a;
#endif
};

RV_FN rv_raw rv_zero() {
  rv_raw raw;
#if RV_KIND == 3
  raw.a.x = 0; raw.a.y = 0;
#else
  raw.a.x = 0; raw.a.y = 0; raw.a.z = 0; raw.a.w = 0;
#endif
#if RV_KIND == 0
  raw.b = raw.a;
#endif
  return raw;
}

RV_FN rv_raw rv_load(const RV_GLOBAL RV_KV* from) {  // `from` is aligned to the eight elements
  rv_raw raw;
#if RV_KIND == 3
  raw.a = *(const RV_GLOBAL uint2*)from;
#else
  raw.a = *(const RV_GLOBAL uint4*)from;
#endif
#if RV_KIND == 0
  raw.b = *((const RV_GLOBAL uint4*)from + 1);
#endif
  return raw;
}

#if RV_KIND == 3
RV_FN void rv_unpack4(unsigned int w, RV_LOCAL float* to) {
  to[0] = (float)(signed char)(w & 255u);
  to[1] = (float)(signed char)((w >> 8) & 255u);
  to[2] = (float)(signed char)((w >> 16) & 255u);
  to[3] = (float)(signed char)(w >> 24);
}
#else
RV_FN void rv_unpack2(unsigned int w, RV_LOCAL float* to) {
#if RV_KIND == 1
  to[0] = rv_half(w & 0xffffu);
  to[1] = rv_half(w >> 16);
#else
  to[0] = RV_BITS(w << 16);
  to[1] = RV_BITS(w & 0xffff0000u);
#endif
}
#endif

RV_FN void rv_unpack(rv_raw raw, RV_LOCAL float* to) {
#if RV_KIND == 0
  to[0] = RV_BITS(raw.a.x); to[1] = RV_BITS(raw.a.y); to[2] = RV_BITS(raw.a.z); to[3] = RV_BITS(raw.a.w);
  to[4] = RV_BITS(raw.b.x); to[5] = RV_BITS(raw.b.y); to[6] = RV_BITS(raw.b.z); to[7] = RV_BITS(raw.b.w);
#elif RV_KIND == 3
  rv_unpack4(raw.a.x, to); rv_unpack4(raw.a.y, to + 4);
#else
  rv_unpack2(raw.a.x, to); rv_unpack2(raw.a.y, to + 2); rv_unpack2(raw.a.z, to + 4); rv_unpack2(raw.a.w, to + 6);
#endif
}

// Eight elements to `to` (aligned to them) in the model's type, as whole 16-byte words.
RV_FN void rv_store(RV_GLOBAL RV_T* to, RV_LOCAL const float* x) {
#if RV_T_BYTES == 2
  uint4 w;
  w.x = rv_bits16((RV_T)x[0]) | rv_bits16((RV_T)x[1]) << 16;
  w.y = rv_bits16((RV_T)x[2]) | rv_bits16((RV_T)x[3]) << 16;
  w.z = rv_bits16((RV_T)x[4]) | rv_bits16((RV_T)x[5]) << 16;
  w.w = rv_bits16((RV_T)x[6]) | rv_bits16((RV_T)x[7]) << 16;
  *(RV_GLOBAL uint4*)to = w;
#else
  uint4 w, v;
  w.x = rv_word(x[0]); w.y = rv_word(x[1]); w.z = rv_word(x[2]); w.w = rv_word(x[3]);
  v.x = rv_word(x[4]); v.y = rv_word(x[5]); v.z = rv_word(x[6]); v.w = rv_word(x[7]);
  *(RV_GLOBAL uint4*)to = w;
  *((RV_GLOBAL uint4*)to + 1) = v;
#endif
}

// First element of (block, layer, K or V, head) in the arena, counted in rows of `RV_BLOCK` tokens.
RV_FN rv_index rv_plane(int block, int layer, int kv, int head) {
  return (((rv_index)block * RV_LAYERS + layer) * 2 + kv) * RV_KV_HEADS + head;
}
