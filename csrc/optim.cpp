#include "csrc/optim.h"

#include "csrc/torch.h"

namespace pydl {

const OptimLaunchers optim_launchers = {
    [](const OptimParams& params) { PYDL_CPU_CALL(optim_step)(params, torch_threads()); },
    [](const GradsParams& params) { PYDL_CPU_CALL(grads_square_sums)(params, torch_threads()); },
    [](const GradsParams& params) { PYDL_CPU_CALL(grads_scale)(params, torch_threads()); },
};

}  // namespace pydl
