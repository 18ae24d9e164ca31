// For roles that all families share: the context of the kernel's own family. Each declares Params, Schedule, Context,
// kNumConsumerThreads and sync_consumers (consumers are the warps with epilogues, which combine at the end).
#pragma once
#include "mega_moe/context_${ family }.cuh"
