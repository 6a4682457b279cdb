// pydl._C: what is no tensor op. The ops themselves register with torch when this module is loaded.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "csrc/cuda.h"
#include "csrc/memory.h"
#include "kernels/cpu/isa.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  using namespace pydl::cpu;
  m.doc() = "compiled kernels of pydl, and facts about the build";
  m.attr("compiler") = __VERSION__;
  m.def("cpu_isa", [] { return std::string(isa_name(isa_current())); }, "instruction set in use");
  m.def(
      "cpu_isa_best", [] { return std::string(isa_name(isa_supported())); },
      "best instruction set of this CPU");
  m.def("cpu_has_bf16_dot", [] { return cpu_has_bf16_dot(); });
  m.def("cpu_isas", [] {
    py::list names;
#if defined(__x86_64__)
    for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
      if (isa <= isa_supported()) names.append(isa_name(isa));
#else
    names.append(isa_name(Isa::baseline));
#endif
    return names;
  });
  m.def("set_cpu_isa", [](const std::string& name) {
    for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
      if (name == isa_name(isa) && isa_select(isa)) return;
    throw std::invalid_argument("isa: expected the instruction set to be one of this CPU's, got " + name);
  });
  m.def("load_cuda", &pydl::load_cuda, "loads the library of CUDA kernels at a path");
  m.def(
      "cuda_architectures",
      [] { return std::string(pydl::cuda_library ? pydl::cuda_library->architectures : ""); },
      "what the loaded CUDA library is compiled for");
  m.def("memory_stats", [] {
    const pydl::MemoryStats stats = pydl::memory::stats();
    py::dict d;
    d["enabled"] = stats.enabled;
    d["used"] = stats.used;
    d["idle"] = stats.idle;
    d["peak"] = stats.peak;
    d["limit"] = stats.limit;
    d["fresh"] = stats.fresh;
    d["reused"] = stats.reused;
    d["given_back"] = stats.given_back;
    return d;
  });
  m.def("memory_empty_cache", &pydl::memory::empty_cache);
  m.def("memory_set_limit", &pydl::memory::set_limit);
}
