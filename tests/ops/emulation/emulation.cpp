// The scheduler and the watchers behind emulation.h.
#include "emulator.h"

#include <ucontext.h>

#include <deque>
#include <memory>
#include <random>

Dimensions threadIdx, blockIdx, blockDim;

namespace gspn {
namespace {

constexpr int kStackBytes = 64 * 1024, kWarp = 32;
constexpr Shared kSharedBegin = 1024;  // its first address
enum class Wait { kNone, kBarrier, kShuffle, kVote, kDone };

struct Copy {
  Shared to;
  const void* from;  // null: zeros
  int bytes;
};

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Dimensions index;
  Wait wait;
  float value;  // offered to, then taken from, a shuffle or a vote; or the number of a barrier
  int mask;
  int meetings;  // calls of meet_if
  std::vector<Copy> started;              // of no group yet
  std::deque<std::vector<Copy>> groups;   // that have not landed, the oldest first
};

// Two bytes of shared memory, the least that a thread uses.
struct SharedHalf {
  int writer = -1, reader = -1;  // the last thread that did so in this epoch; -2: several readers
  int64_t write_epoch = -1, read_epoch = -1;
  bool copying = false;
};

struct Region {
  std::string name;
  const char* begin;
  int64_t bytes;
  bool output;
  std::vector<char> written;
};

std::vector<Thread> threads;
std::vector<Region> regions;
std::vector<float> shared;
std::vector<SharedHalf> halves;
std::string error;
std::mt19937 random_bits;
ucontext_t scheduler;
const std::function<void()>* body;
int current, count;
int64_t epoch;

void resume(int i) {
  current = i;
  threadIdx = threads[i].index;
  swapcontext(&scheduler, &threads[i].context);
}

void yield(Wait why) {
  threads[current].wait = why;
  const int me = current;
  swapcontext(&threads[me].context, &scheduler);
}

void enter() {
  (*body)();
  threads[current].wait = Wait::kDone;
  setcontext(&scheduler);
}

void start_threads(BlockThreads block) {
  count = block.count();
  if (static_cast<int>(threads.size()) < count) threads.resize(count);
  for (int i = 0; i < count; i++) {
    Thread& thread = threads[i];
    if (!thread.stack) thread.stack = std::make_unique<char[]>(kStackBytes);
    thread.index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    thread.wait = Wait::kNone;
    thread.meetings = 0;
    thread.started.clear();
    thread.groups.clear();
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, enter, 0);
  }
}

bool all_wait(int begin, int end, Wait why) {
  for (int i = begin; i < end; i++)
    if (threads[i].wait != why) return false;
  return true;
}

// All threads of a block wait for one barrier, and those of a warp by the same call: elsewhere the hardware hangs.
bool same_barrier() {
  for (int i = 0; i < count; i++) {
    if (threads[i].value != threads[0].value) return false;
    if (threads[i].value != 0 && threads[i].meetings != threads[i / kWarp * kWarp].meetings)
      error = "threads of a warp meet at different calls";
  }
  return error.empty();
}

// Lets a warp whose threads all offer a value swap them; those of a partial warp that do not exist offer NaN.
void swap_values(int begin) {
  const int end = std::min(begin + kWarp, count);
  std::vector<float> offered;
  for (int i = begin; i < end; i++) offered.push_back(threads[i].value);
  for (int i = begin; i < end; i++) {
    const int from = (i - begin) ^ threads[i].mask;
    threads[i].value = from < end - begin ? offered[from] : NAN;
    threads[i].wait = Wait::kNone;
  }
}

// Tells a warp whether all of its threads said yes.
void count_votes(int begin) {
  const int end = std::min(begin + kWarp, count);
  const bool all = std::all_of(threads.begin() + begin, threads.begin() + end,
                               [](const Thread& thread) { return thread.value != 0; });
  for (int i = begin; i < end; i++) threads[i].value = all, threads[i].wait = Wait::kNone;
}

void run_block(BlockThreads block) {
  start_threads(block);
  std::vector<int> order(count);
  for (int i = 0; i < count; i++) order[i] = i;
  while (error.empty() && !all_wait(0, count, Wait::kDone)) {
    std::shuffle(order.begin(), order.end(), random_bits);
    bool progress = false;
    for (int i : order) {
      if (threads[i].wait != Wait::kNone) continue;
      resume(i);
      progress = true;
      if (!error.empty()) return;
    }
    for (int begin = 0; begin < count; begin += kWarp) {
      const int end = std::min(begin + kWarp, count);
      if (all_wait(begin, end, Wait::kShuffle)) swap_values(begin);
      if (all_wait(begin, end, Wait::kVote)) count_votes(begin);
    }
    if (all_wait(0, count, Wait::kBarrier) && same_barrier()) {
      epoch++;
      for (int i = 0; i < count; i++) threads[i].wait = Wait::kNone;
    }
    if (!progress && std::none_of(threads.begin(), threads.begin() + count,
                                  [](const Thread& thread) { return thread.wait == Wait::kNone; }))
      error = "deadlock: threads of a block wait at different places";
  }
}

}  // namespace

void watch(const char* name, const void* data, int64_t bytes, bool output) {
  regions.push_back({name, static_cast<const char*>(data), bytes, output, {}});
  if (output) regions.back().written.assign(bytes, 0);
}

void reset(unsigned seed) {
  regions.clear();
  error.clear();
  random_bits.seed(seed);
}

std::string finish() {
  for (const Region& region : regions) {
    if (!error.empty() || !region.output) continue;
    const auto missing = std::find(region.written.begin(), region.written.end(), 0);
    if (missing != region.written.end())
      error = region.name + ": byte " + std::to_string(missing - region.written.begin()) + " was never written";
  }
  return error;
}

void run_grid(int64_t first, int64_t blocks, BlockThreads in_block, int shared_bytes,
              const std::function<void()>& kernel) {
  body = &kernel;
  blockDim = {in_block.x, in_block.y, in_block.z};
  std::vector<int> order(blocks - first);
  for (int64_t i = first; i < blocks; i++) order[i - first] = static_cast<int>(i);
  std::shuffle(order.begin(), order.end(), random_bits);
  for (int block : order) {
    if (!error.empty()) return;
    blockIdx = {block, 0};
    shared.assign(shared_bytes / 4, NAN);
    halves.assign(shared_bytes / 2, {});
    epoch = 0;
    run_block(in_block);
  }
}

void fail(const char* what, const void* where) {
  if (error.empty()) {
    error = what;
    for (const Region& region : regions) {
      const int64_t offset = static_cast<const char*>(where) - region.begin;
      if (offset >= 0 && offset < region.bytes) error += " in " + region.name + " at byte " + std::to_string(offset);
    }
    error += " by thread (" + std::to_string(threadIdx.x) + ", " + std::to_string(threadIdx.y) + ", " +
             std::to_string(threadIdx.z) + ") of block " + std::to_string(blockIdx.x);
  }
  yield(Wait::kDone);
}

void barrier(int number) {
  threads[current].value = number;
  yield(Wait::kBarrier);
}

void meet_if(bool here) {
  threads[current].meetings++;
  if (here) barrier(1);
}

float exchange(float value, int mask) {
  threads[current].value = value;
  threads[current].mask = mask;
  const int me = current;
  yield(Wait::kShuffle);
  return threads[me].value;
}

bool vote(bool value) {
  threads[current].value = value;
  const int me = current;
  yield(Wait::kVote);
  return threads[me].value != 0;
}

Shared shared_memory() { return kSharedBegin; }

void check_global(const void* address, int bytes, bool writes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) return fail("unaligned access", address);
  for (Region& region : regions) {
    const int64_t offset = static_cast<const char*>(address) - region.begin;
    if (offset < 0 || offset >= region.bytes) continue;
    if (offset + bytes > region.bytes) return fail("access across the end", address);
    if (writes && !region.output) return fail("write to an input", address);
    if (!region.output) return;
    for (int i = 0; i < bytes; i++) {
      char& written = region.written[offset + i];
      if (writes && written) return fail("second write", address);
      if (!writes && !written) return fail("read before the write", address);
      written = 1;
    }
    return;
  }
  fail(writes ? "write outside of every tensor" : "read outside of every tensor", address);
}

// Two bytes of shared memory are used by the thread at hand; what is wrong with that, or null.
static const char* use_half(SharedHalf& half, bool writes) {
  if (half.copying) return writes ? "write under a copy in flight" : "shared memory read before its copy has landed";
  if (half.write_epoch == epoch && half.writer != current) return "race after a write to shared memory";
  if (writes) {
    if (half.read_epoch == epoch && half.reader != current) return "race after a read of shared memory";
    half.writer = current;
    half.write_epoch = epoch;
  } else {
    if (half.write_epoch < 0) return "shared memory read before it is written";
    half.reader = half.read_epoch == epoch && half.reader != current ? -2 : current;
    half.read_epoch = epoch;
  }
  return nullptr;
}

char* use_shared(Shared address, int bytes, bool writes) {
  static char nowhere[16];
  const int64_t begin = int64_t{address} - kSharedBegin;
  const char* wrong = nullptr;
  if (begin < 0 || begin + bytes > static_cast<int64_t>(shared.size()) * 4) wrong = "access outside of shared memory";
  if (!wrong && address % bytes != 0) wrong = "unaligned access to shared memory";
  for (int64_t i = begin / 2; !wrong && i < (begin + bytes) / 2; i++) wrong = use_half(halves[i], writes);
  if (!wrong) return reinterpret_cast<char*>(shared.data()) + begin;
  fail(wrong, nullptr);
  return nowhere;
}

void start_copy(Shared to, const void* from, int bytes, bool exists) {
  if (exists) check_global(from, bytes, false);
  char* target = use_shared(to, bytes, true);
  if (bytes == 2) {  // no asynchronous copy is so small
    exists ? std::memcpy(target, from, bytes) : std::memset(target, 0, bytes);
    return;
  }
  std::memset(target, 0xff, bytes);  // NaN in every type
  for (int64_t i = (to - kSharedBegin) / 2; i < (to - kSharedBegin + bytes) / 2; i++) halves[i].copying = true;
  threads[current].started.push_back({to, exists ? from : nullptr, bytes});
}

void commit_copies() {
  threads[current].groups.push_back(std::move(threads[current].started));
  threads[current].started.clear();
}

static void land(const Copy& copy) {
  const int64_t begin = copy.to - kSharedBegin;
  for (int64_t i = begin / 2; i < (begin + copy.bytes) / 2; i++) halves[i].copying = false;
  char* target = use_shared(copy.to, copy.bytes, true);
  copy.from ? std::memcpy(target, copy.from, copy.bytes) : std::memset(target, 0, copy.bytes);
}

void wait_for_copies(int groups) {
  auto& flying = threads[current].groups;
  for (; static_cast<int>(flying.size()) > groups; flying.pop_front())
    for (const Copy& copy : flying.front()) land(copy);
}

}  // namespace gspn
