// Metal's words over C++ for OpenCL, whose address spaces are as strict as Metal's. For syntax checks only.
#pragma once
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#define device __global
#define threadgroup __local
#define thread __private
typedef char int8_t;
typedef unsigned char uint8_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef half float16_t;

struct bfloat {
  ushort bits;
  bfloat() = default;
  bfloat(float x) : bits((ushort)(as_uint(x) >> 16)) {}
  operator float() const { return as_float((uint)bits << 16); }
  operator float() const __constant { return as_float((uint)bits << 16); }
};
typedef bfloat bfloat16_t;

template <typename To, typename From>
To as_type(From from) {
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

namespace metal {
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
inline float exp2(float x) { return x; }
inline float rint(float x) { return x; }
inline float fma(float a, float b, float c) { return a * b + c; }
template <typename T> T max(T a, T b) { return a > b ? a : b; }
template <typename T> T min(T a, T b) { return a < b ? a : b; }
namespace precise {
inline float tanh(float x) { return x; }
inline float cos(float x) { return x; }
inline float sin(float x) { return x; }
inline float rsqrt(float x) { return x; }
inline float exp(float x) { return x; }
inline float log(float x) { return x; }
}  // namespace precise
inline void threadgroup_barrier(mem_flags) {}
inline void simdgroup_barrier(mem_flags) {}
inline float simd_shuffle_xor(float x, ushort) { return x; }
struct simd_vote {
  typedef ulong vote_t;
  vote_t votes;
  explicit operator vote_t() const { return votes; }
};
inline simd_vote simd_ballot(bool) { return simd_vote(); }
inline uint popcount(uint x) { return x; }

struct origin2 {  // OpenCL's vectors have no such constructor
  ulong x, y;
  origin2(ulong x = 0, ulong y = 0) : x(x), y(y) {}
};
#define ulong2 metal::origin2
template <typename T, int Columns, int Rows>
class simdgroup_matrix {  // which lane has which element is unspecified: a text may not read them
  T held;

 public:
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T x) : held(x) {}
};
template <typename T>
void simdgroup_load(__private simdgroup_matrix<T, 8, 8>&, const __local T*, ulong, ulong2 = ulong2(), bool = false) {}
template <typename T>
void simdgroup_store(__private const simdgroup_matrix<T, 8, 8>&, __local T*, ulong) {}
template <typename D, typename A, typename B, typename C>
void simdgroup_multiply_accumulate(__private D&, __private const A&, __private const B&, __private const C&) {}
template <typename T, int Columns, int Rows>
simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T x) {
  return simdgroup_matrix<T, Columns, Rows>(x);
}
}  // namespace metal
