// Enough of Metal's language and library for g++: address spaces vanish, a thread is a fiber, a threadgroup runs
// its fibers in shuffled order up to each barrier, every other one a simdgroup at a time. Threadgroup memory and
// outputs start poisoned (all bits set). What runs the threads is runtime.cpp, which is compiled once for all texts:
// nothing is included here that a kernel does not need.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned long ulong;
typedef _Float16 half;
typedef _Float16 float16_t;

struct bfloat {
  uint16_t bits;
  bfloat() = default;
  bfloat(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    bits = x != x ? uint16_t((u >> 16) | 64) : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
  }
  operator float() const {
    uint32_t u = uint32_t(bits) << 16;
    float x;
    memcpy(&x, &u, 4);
    return x;
  }
};
typedef bfloat bfloat16_t;
struct uint2 { uint x, y; };
struct alignas(16) uint4 { uint x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
struct uint3 { uint x, y, z; };
struct ulong2 { ulong x, y; ulong2(ulong x, ulong y) : x(x), y(y) {} };

template <typename To, typename From>
inline To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs equal sizes");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

namespace emulator {
enum Kind { kShuffle = 1, kSimdBarrier = 2, kGroupBarrier = 3 };
struct Simd { int waiting, kind; float slots[2][32]; };
struct Ids { uint3 in_grid, in_group, group, groups, group_size, grid; };

extern Simd* simds;
extern int current;   // the thread that runs
extern int* parities; // of each thread: which of its simdgroup's slots it uses next
extern char* buffers[64];

void simd_wait(int kind);
void group_wait();
void* shared_array(size_t bytes, int which);

template <typename F>
inline float exchange(float x, F source) {
  const int me = current, lane = me % 32;
  float(&slots)[32] = simds[me / 32].slots[parities[me] ^= 1];
  slots[lane] = x;
  simd_wait(kShuffle);
  return slots[source(lane) & 31];
}
}  // namespace emulator

namespace metal {
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
inline float exp2(float x) { return ::exp2f(x); }
inline float exp(float x) { return ::expf(x); }
inline float rint(float x) { return ::rintf(x); }
inline float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
template <typename T> inline T max(T a, T b) { return a > b ? a : b; }
template <typename T> inline T min(T a, T b) { return a < b ? a : b; }
namespace precise {
inline float tanh(float x) { return ::tanhf(x); }
inline float cos(float x) { return ::cosf(x); }
inline float sin(float x) { return ::sinf(x); }
inline float rsqrt(float x) { return 1.0f / ::sqrtf(x); }
inline float exp(float x) { return ::expf(x); }
inline float log(float x) { return ::logf(x); }
}
namespace fast {
inline float exp(float x) { return ::expf(x); }
inline float exp2(float x) { return ::exp2f(x); }
}
inline void threadgroup_barrier(mem_flags) { emulator::group_wait(); }
inline void simdgroup_barrier(mem_flags) { emulator::simd_wait(emulator::kSimdBarrier); }
inline float simd_shuffle_xor(float x, ushort mask) { return emulator::exchange(x, [=](int l) { return l ^ mask; }); }
inline float simd_shuffle(float x, ushort from) { return emulator::exchange(x, [=](int) { return int(from); }); }
inline float simd_shuffle_down(float x, ushort by) { return emulator::exchange(x, [=](int l) { return l + by < 31 ? l + by : 31; }); }
inline float simd_sum(float x) {
  for (int mask = 16; mask > 0; mask >>= 1) x += simd_shuffle_xor(x, mask);
  return x;
}
inline float simd_max(float x) {
  for (int mask = 16; mask > 0; mask >>= 1) x = max(x, simd_shuffle_xor(x, mask));
  return x;
}
struct simd_vote {
  typedef ulong vote_t;
  vote_t votes;
  explicit operator vote_t() const { return votes; }
};
inline simd_vote simd_ballot(bool x) {
  const int lane = emulator::current % 32;
  const float low = simd_sum(x && lane < 16 ? float(1u << lane) : 0.0f);
  const float high = simd_sum(x && lane >= 16 ? float(1u << (lane - 16)) : 0.0f);
  return {ulong(high) << 16 | ulong(low)};
}
inline uint popcount(uint x) { return __builtin_popcount(x); }
template <typename T> struct limits { static constexpr T finite_min = std::numeric_limits<T>::lowest(); };
template <typename T> struct numeric_limits : std::numeric_limits<T> {};
}  // namespace metal
using namespace metal;
#define device
#define constant
#define thread
#define threadgroup
