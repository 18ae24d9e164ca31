// Fences between proxies and grids. PTX ISA, "Parallel Synchronization and Communication Instructions: membar/fence" and
// "griddepcontrol".
#pragma once
#include "types.cuh"

namespace ptx {

// Orders generic accesses to shared memory (ordinary stores, cp.async) and async-proxy ones (wgmma, TMA), both ways.
__device__ __forceinline__ void fence_proxy_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The same for global memory.
__device__ __forceinline__ void fence_proxy_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

// Waits until the grids before this one in a programmatic dependent launch have ended; no effect in an ordinary launch.
__device__ __forceinline__ void griddepcontrol_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets a dependent grid start its prologue; gives it no view of this grid's writes (griddepcontrol_wait does).
__device__ __forceinline__ void griddepcontrol_launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

}  // namespace ptx
