// The pipeline from memory to a thread: a ring of places in shared memory, each for the inputs of one item.
//
// copy() starts the copies of an item and commit_copies() closes them as one group; wait_for_copies() returns when the
// oldest item's have landed, and leaves those of the items after it on their way. (A load into a register would be
// waited for where the compiler likes, together with all loads that follow it.) A place that has been read is filled
// for the item kStages after its last one.
#pragma once

#include "cuda_primitives.cuh"
#include "scan_plan.h"

namespace gspn {

// A warp's place holds field after field, lane by lane, so that copies and reads of a field are contiguous.
template <typename T, int V, int Fields, int Words>
struct Ring {
  static constexpr int kWarp = 32, kAccess = slot_bytes(sizeof(T) * V), kPlace = kWarp * (Fields * kAccess + Words * 4);
  Shared fields;     // this lane's part of the first field, in the first place of its warp's ring
  Shared words;      // and of the first word
  int place;         // bytes to the one at hand

  __device__ __forceinline__ Ring(int floats_before, int plane) : place(0) {
    const Shared first = shared_memory() + floats_before * 4;
    const int thread = number(plane);
    fields = first + of_thread(thread, kAccess);
    words = first + kWarp * Fields * kAccess + of_thread(thread, 4);
  }

  static __device__ __forceinline__ int number(int plane) {
    return (plane * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  }

  static __device__ __forceinline__ int of_thread(int thread, int bytes) {
    return thread / kWarp * (kStages * kPlace) + thread % kWarp * bytes;
  }

  // `fields` of the thread that many after this one.
  __device__ __forceinline__ Shared fields_of(int threads, int plane) const {
    const int thread = number(plane);
    return fields + (of_thread(thread + threads, kAccess) - of_thread(thread, kAccess));
  }

  // V elements, or zeros; nothing unless wanted.
  __device__ __forceinline__ void copy(int field, const T* from, bool exists, bool wanted = true) const {
    start_copy<sizeof(T) * V>(fields + place + field * (kWarp * kAccess), from, exists, wanted);
  }

  // One element: as it is where a copy can be so small, else within the aligned word that holds it.
  __device__ __forceinline__ void copy_word(int word, const T* from, bool exists, bool wanted) const {
    const Shared to = words + place + word * (kWarp * 4);
    if constexpr (V == 1)
      start_copy<sizeof(T)>(to, from, exists, wanted);
    else
      start_copy<4>(to, reinterpret_cast<const T*>(reinterpret_cast<uintptr_t>(from) & ~uintptr_t{3}), exists,
                    wanted);
  }

  __device__ __forceinline__ void advance() { place = place == (kStages - 1) * kPlace ? 0 : place + kPlace; }

  __device__ __forceinline__ void read(int field, Packed<T, V>& packed) const { read_of(fields, field, packed); }

  __device__ __forceinline__ void read_of(Shared thread, int field, Packed<T, V>& packed) const {
    read_copy<T, V>(packed, thread + place + field * (kWarp * kAccess));
  }

  // `lane`: `words`, and as many bytes more as lie between the aligned word and the element.
  __device__ __forceinline__ void read_word(int word, Shared lane, Packed<T, 1>& packed) const {
    read_copy<T, 1>(packed, lane + place + word * (kWarp * 4));
  }
};

}  // namespace gspn
