// Every constant of this kernel's description, as Python computed it: `block_m` there is `config::kBlockM` here.
#pragma once

#include "types.cuh"

namespace config {
${ constants | definitions }
}  // namespace config
