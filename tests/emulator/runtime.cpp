// Runs the threads of a kernel's text as fibers, over guarded buffers, and is the program around it: it opens the
// library that a text became, reads a launch from one file and writes the buffers to another.
#include "metal_shim.h"
#undef device
#undef constant
#undef thread
#undef threadgroup
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulator {
[[noreturn]] void fail(int code, const char* what) {
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
struct Fiber {
#ifdef __x86_64__
  void* sp;
#else
  ucontext_t context;
#endif
  State state;
};

std::vector<Fiber> fibers;
std::vector<Simd> simdgroups;
std::vector<int> parity_of;
Simd* simds;
int* parities;
int current;
char* buffers[64];
std::vector<Guarded*> arrays;
size_t next_array, shared_bytes;
void (*entry)(const Ids& ids, uint index);  // the kernel's
int group_waiting, live;
char* stacks;
Ids ids;

#ifdef __x86_64__
void* scheduler_sp;
extern "C" void emulator_switch(void** save, void* to);
asm(".text\n.globl emulator_switch\nemulator_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
void leave() { emulator_switch(&fibers[current].sp, scheduler_sp); }
void enter(int i) { current = i; emulator_switch(&scheduler_sp, fibers[i].sp); }
#else
ucontext_t scheduler_context;
void leave() { swapcontext(&fibers[current].context, &scheduler_context); }
void enter(int i) { current = i; swapcontext(&scheduler_context, &fibers[i].context); }
#endif

void body() {
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

void prepare(int i) {
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
  parities[i] = 0;
}

void simd_wait(int kind) {
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

void group_wait() {
  if (++group_waiting == (int)fibers.size()) {
    group_waiting = 0;
    for (Fiber& f : fibers) f.state = kReady;
    return;
  }
  fibers[current].state = kGroupWait;
  leave();
}

// The threadgroup array that a thread declares next; every thread of a group declares the same ones in order.
void* shared_array(size_t bytes, int which) {
  while ((int)arrays.size() <= which) arrays.push_back(nullptr);
  if (!arrays[which]) {
    arrays[which] = new Guarded(bytes);
    shared_bytes += bytes;
    if (shared_bytes > kThreadgroupLimit) fail(kThreadgroupMemory, "threadgroup memory over 32 KiB");
  }
  return arrays[which]->data;
}

void on_fault(int, siginfo_t* info, void*) {
  char text[96];
  int n = snprintf(text, sizeof text, "out of bounds access at %p\n", info->si_addr);
  if (write(2, text, n) < 0) _exit(1);
  _exit(kOutOfBounds);
}

// Every thread moves once: threads of a simdgroup are far apart, simdgroups stay together.
bool run_evenly(const std::vector<int>& order) {
  bool moved = false;
  for (int i : order)
    if (fibers[i].state == kReady) { moved = true; enter(i); }
  return moved;
}

// A simdgroup runs as far as it gets before another one starts: none may rely on a neighbour being as far.
bool run_greedily(const std::vector<int>& order) {
  bool moved = false;
  std::vector<bool> ran(simdgroups.size(), false);
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

unsigned turn;  // threadgroups that have run: every other one runs greedily

void run_group(std::vector<int>& order, std::mt19937& random) {
  for (Guarded* array : arrays) if (array) array->poison();
  std::fill(simdgroups.begin(), simdgroups.end(), Simd{});
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

void run_grid(uint3 grid, uint3 group_size, unsigned seed) {
  struct sigaction action = {};
  stack_t alternative = {malloc(65536), 0, 65536};
  sigaltstack(&alternative, nullptr);
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
  const int threads = group_size.x * group_size.y * group_size.z;
  fibers.resize(threads);
  simdgroups.resize((threads + 31) / 32);
  simds = simdgroups.data();
  parity_of.resize(threads);
  parities = parity_of.data();
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

int main(int argc, char** argv) {
  void* library = dlopen(argv[1], RTLD_NOW);
  if (!library) emulator::fail(2, dlerror());
  emulator::entry = (void (*)(const emulator::Ids&, uint))dlsym(library, "emulator_entry");
  FILE* in = fopen(argv[2], "rb");
  int head[8];
  if (fread(head, 4, 8, in) != 8) return 2;
  std::vector<emulator::Guarded*> guarded;
  for (int i = 0; i < head[7]; i++) {
    long size, given;
    if (fread(&size, 8, 1, in) != 1 || fread(&given, 8, 1, in) != 1) return 2;
    guarded.push_back(new emulator::Guarded(size));
    if (given && size && fread(guarded[i]->data, size, 1, in) != 1) return 2;
    emulator::buffers[i] = guarded[i]->data;
  }
  fclose(in);
  emulator::run_grid({(uint)head[0], (uint)head[1], (uint)head[2]}, {(uint)head[3], (uint)head[4], (uint)head[5]}, head[6]);
  FILE* out = fopen(argv[3], "wb");
  for (auto* buffer : guarded) {
    buffer->check();
    fwrite(buffer->data, 1, buffer->size, out);
  }
  fclose(out);
  return 0;
}
