// Enough of Metal's language and library for g++: address spaces vanish, a thread is a fiber, a threadgroup runs
// its fibers in shuffled order up to each barrier, every other one a simdgroup at a time. Threadgroup memory and
// outputs start poisoned (all bits set).
#pragma once
#include <sys/mman.h>
#include <csignal>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <unistd.h>
#include <vector>
#include <algorithm>
#ifndef __x86_64__
#include <ucontext.h>
#endif

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
[[noreturn]] inline void fail(int code, const char* what) {
  fprintf(stderr, "%s\n", what);
  fflush(stderr);
  _exit(code);
}
constexpr int kOutOfBounds = 40, kDivergent = 41, kThreadgroupMemory = 42, kRedzone = 43;
constexpr size_t kPage = 4096, kStack = 128 * 1024, kThreadgroupLimit = 32 * 1024;

// Memory whose end touches an unreadable page; the bytes that alignment leaves over are a red zone.
struct Guarded {
  char* base = nullptr;
  char* data = nullptr;
  size_t size = 0, mapped = 0;
  explicit Guarded(size_t bytes) : size(bytes) {
    const size_t inner = (std::max<size_t>(bytes, 1) + 15) / 16 * 16;
    mapped = (inner + kPage - 1) / kPage * kPage + 2 * kPage;
    base = (char*)mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(base, 0xff, mapped);
    data = base + mapped - kPage - inner;
    mprotect(base, kPage, PROT_NONE);
    mprotect(base + mapped - kPage, kPage, PROT_NONE);
  }
  void poison() { memset(base + kPage, 0xff, mapped - 2 * kPage); }
  void check() const {
    for (char* p = base + kPage; p < base + mapped - kPage; p++)
      if ((p < data || p >= data + size) && *p != char(0xff)) fail(kRedzone, "red zone overwritten beside a buffer");
  }
};

enum State { kReady, kSimdWait, kGroupWait, kDone };
enum Kind { kShuffle = 1, kSimdBarrier = 2, kGroupBarrier = 3 };
struct Fiber {
#ifdef __x86_64__
  void* sp;
#else
  ucontext_t context;
#endif
  State state;
  int kind, parity;
};
struct Simd { int waiting, kind; float slots[2][32]; };
struct Ids { uint3 in_grid, in_group, group, groups, group_size, grid; };

inline std::vector<Fiber> fibers;
inline std::vector<Simd> simds;
inline std::vector<Guarded*> arrays;
inline size_t next_array, shared_bytes;
inline int current, group_waiting, live;
inline char* stacks;
inline Ids ids;
inline void (*entry)(const Ids&, uint index);

#ifdef __x86_64__
inline void* scheduler_sp;
extern "C" void emulator_switch(void** save, void* to);
asm(".text\n.globl emulator_switch\nemulator_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
inline void leave() { emulator_switch(&fibers[current].sp, scheduler_sp); }
inline void enter(int i) { current = i; emulator_switch(&scheduler_sp, fibers[i].sp); }
#else
inline ucontext_t scheduler_context;
inline void leave() { swapcontext(&fibers[current].context, &scheduler_context); }
inline void enter(int i) { current = i; swapcontext(&scheduler_context, &fibers[i].context); }
#endif

inline void body() {
  Ids mine = ids;
  const uint t = current;
  mine.in_group = {t % ids.group_size.x, t / ids.group_size.x % ids.group_size.y, t / ids.group_size.x / ids.group_size.y};
  mine.in_grid = {ids.group.x * ids.group_size.x + mine.in_group.x, ids.group.y * ids.group_size.y + mine.in_group.y,
                  ids.group.z * ids.group_size.z + mine.in_group.z};
  entry(mine, t);
  fibers[current].state = kDone;
  live--;
  leave();
}

inline void prepare(int i) {
  char* top = stacks + (i + 1) * kStack;
#ifdef __x86_64__
  void** sp = (void**)top;
  *--sp = nullptr;           // keeps the stack aligned as after a call
  *--sp = (void*)body;
  for (int k = 0; k < 6; k++) *--sp = nullptr;
  fibers[i].sp = sp;
#else
  getcontext(&fibers[i].context);
  fibers[i].context.uc_stack = {top - kStack, 0, kStack};
  fibers[i].context.uc_link = nullptr;
  makecontext(&fibers[i].context, body, 0);
#endif
  fibers[i].state = kReady;
  fibers[i].kind = fibers[i].parity = 0;
}

inline void simd_wait(int kind) {
  Fiber& me = fibers[current];
  Simd& simd = simds[current / 32];
  if (simd.waiting == 0) simd.kind = kind;
  if (simd.kind != kind) fail(kDivergent, "divergent simdgroup operation: lanes wait at different kinds");
  if (++simd.waiting == 32) {
    simd.waiting = 0;
    for (int i = current / 32 * 32, end = i + 32; i < end; i++) fibers[i].state = kReady;
    return;
  }
  me.state = kSimdWait;
  leave();
}

inline void group_wait() {
  if (++group_waiting == (int)fibers.size()) {
    group_waiting = 0;
    for (Fiber& f : fibers) f.state = kReady;
    return;
  }
  fibers[current].state = kGroupWait;
  leave();
}

template <typename F>
inline float exchange(float x, F source) {
  const int me = current, lane = me % 32;
  float(&slots)[32] = simds[me / 32].slots[fibers[me].parity ^= 1];
  slots[lane] = x;
  simd_wait(kShuffle);
  return slots[source(lane) & 31];
}

// The threadgroup array that a thread declares next; every thread of a group declares the same ones in order.
inline void* shared_array(size_t bytes, int which) {
  while ((int)arrays.size() <= which) arrays.push_back(nullptr);
  if (!arrays[which]) {
    arrays[which] = new Guarded(bytes);
    shared_bytes += bytes;
    if (shared_bytes > kThreadgroupLimit) fail(kThreadgroupMemory, "threadgroup memory over 32 KiB");
  }
  return arrays[which]->data;
}

inline void on_fault(int, siginfo_t* info, void*) {
  char text[96];
  int n = snprintf(text, sizeof text, "out of bounds access at %p\n", info->si_addr);
  if (write(2, text, n) < 0) _exit(1);
  _exit(kOutOfBounds);
}

// Every thread moves once: threads of a simdgroup are far apart, simdgroups stay together.
inline bool run_evenly(const std::vector<int>& order) {
  bool moved = false;
  for (int i : order)
    if (fibers[i].state == kReady) { moved = true; enter(i); }
  return moved;
}

// A simdgroup runs as far as it gets before another one starts: none may rely on a neighbour being as far.
inline bool run_greedily(const std::vector<int>& order) {
  bool moved = false;
  std::vector<bool> ran(simds.size(), false);
  for (int first : order) {
    const int simd = first / 32;
    if (ran[simd]) continue;
    ran[simd] = true;
    for (bool again = true; again;) {
      again = false;
      for (int i : order)
        if (i / 32 == simd && fibers[i].state == kReady) { again = moved = true; enter(i); }
    }
  }
  return moved;
}

inline unsigned turn;  // threadgroups that have run: every other one runs greedily

inline void run_group(std::vector<int>& order, std::mt19937& random) {
  for (Guarded* array : arrays) if (array) array->poison();
  std::fill(simds.begin(), simds.end(), Simd{});
  live = fibers.size();
  group_waiting = 0;
  for (size_t i = 0; i < fibers.size(); i++) prepare(i);
  std::shuffle(order.begin(), order.end(), random);
  const bool greedy = turn++ % 2 == 0;
  while (live > 0) {
    const bool moved = greedy ? run_greedily(order) : run_evenly(order);
    if (!moved) fail(kDivergent, "divergent barrier: some threads wait where others never arrive");
  }
  for (Guarded* array : arrays) if (array) array->check();
}

inline void run_grid(uint3 grid, uint3 group_size, unsigned seed) {
  struct sigaction action = {};
  stack_t alternative = {malloc(65536), 0, 65536};
  sigaltstack(&alternative, nullptr);
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
  const int threads = group_size.x * group_size.y * group_size.z;
  fibers.resize(threads);
  simds.resize((threads + 31) / 32);
  stacks = (char*)mmap(nullptr, threads * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ids.grid = grid;
  ids.group_size = group_size;
  ids.groups = {(grid.x + group_size.x - 1) / group_size.x, (grid.y + group_size.y - 1) / group_size.y,
                (grid.z + group_size.z - 1) / group_size.z};
  std::mt19937 random(seed);
  std::vector<int> order(threads);
  for (int i = 0; i < threads; i++) order[i] = i;
  std::vector<uint> groups(ids.groups.x * ids.groups.y * ids.groups.z);
  for (size_t i = 0; i < groups.size(); i++) groups[i] = i;
  std::shuffle(groups.begin(), groups.end(), random);
  for (uint g : groups) {
    ids.group = {g % ids.groups.x, g / ids.groups.x % ids.groups.y, g / ids.groups.x / ids.groups.y};
    run_group(order, random);
  }
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
inline float simd_shuffle_down(float x, ushort by) { return emulator::exchange(x, [=](int l) { return std::min(l + by, 31); }); }
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
