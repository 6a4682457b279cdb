#include "csrc/launchers.h"

#include "csrc/torch.h"

namespace pydl {

const Launchers launchers = {
    [](const OptimParams& params) { PYDL_CPU_CALL(optim_step)(params, torch_threads()); },
    [](const GradsParams& params) { PYDL_CPU_CALL(grads_square_sums)(params, torch_threads()); },
    [](const GradsParams& params) { PYDL_CPU_CALL(grads_scale)(params, torch_threads()); },
    [](const CastParams& params) { PYDL_CPU_CALL(cast)(params, torch_threads()); },
};

}  // namespace pydl
