// pydl._C: what is no tensor op. The ops themselves register with torch when this module is loaded.
//
// Python's own interface: ten plain functions do not need a library of templates, which took as long to
// compile as a kernel.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdexcept>
#include <string>

#include "csrc/cuda.h"
#include "csrc/launchers.h"
#include "csrc/memory.h"
#include "csrc/memory_of_torch.h"
#include "csrc/selection.h"
#include "kernels/isa.h"
#include "kernels/machine.h"

namespace {

using namespace pydl::cpu;

PyObject* cpu_isa(PyObject*, PyObject*) { return PyUnicode_FromString(isa_name(isa_current())); }

PyObject* cpu_isa_best(PyObject*, PyObject*) { return PyUnicode_FromString(isa_name(isa_supported())); }

PyObject* has_bf16_dot(PyObject*, PyObject*) { return PyBool_FromLong(cpu_has_bf16_dot()); }

PyObject* use_bf16_dot(PyObject*, PyObject* argument) {
  const int use = PyObject_IsTrue(argument);
  if (use < 0) return nullptr;
  cpu_use_bf16_dot(use == 1);
  Py_RETURN_NONE;
}

PyObject* is_avx512_emulated(PyObject*, PyObject*) { return PyBool_FromLong(avx512_is_emulated()); }

constexpr Isa kIsas[] = {Isa::baseline,
#if defined(__x86_64__)
                         Isa::avx2, Isa::avx512
#endif
};

PyObject* cpu_isas(PyObject*, PyObject*) {
  PyObject* names = PyList_New(0);
  for (Isa isa : kIsas) {
    if (names == nullptr || isa > isa_supported()) break;
    PyObject* name = PyUnicode_FromString(isa_name(isa));
    if (name == nullptr || PyList_Append(names, name) != 0) Py_CLEAR(names);
    Py_XDECREF(name);
  }
  return names;
}

PyObject* cpu_caches(PyObject*, PyObject*) {
  const pydl::Machine& m = pydl::machine();
  return Py_BuildValue("(LLL)", static_cast<long long>(m.level1), static_cast<long long>(m.level2),
                       static_cast<long long>(m.level3));
}

PyObject* set_cpu_caches(PyObject*, PyObject* sizes) {
  long long bytes[3];
  if (!PyArg_ParseTuple(sizes, "LLL", &bytes[0], &bytes[1], &bytes[2])) return nullptr;
  for (long long size : bytes)
    if (size <= 0)
      return PyErr_Format(PyExc_ValueError, "caches: expected sizes in bytes to be positive, got %lld", size);
  pydl::machine_set({bytes[0], bytes[1], bytes[2]});
  Py_RETURN_NONE;
}

PyObject* set_cpu_isa(PyObject*, PyObject* argument) {
  const char* name = PyUnicode_AsUTF8(argument);
  if (name == nullptr) return nullptr;
  for (Isa isa : kIsas)
    if (std::string(name) == isa_name(isa) && isa_select(isa)) Py_RETURN_NONE;
  return PyErr_Format(PyExc_ValueError, "isa: expected the instruction set to be one of this CPU's, got %s",
                      name);
}

PyObject* conv2d_algorithms(PyObject*, PyObject* argument) {
  const char* pass = PyUnicode_AsUTF8(argument);
  if (pass == nullptr) return nullptr;
  try {
    const std::vector<std::string> found = pydl::conv2d_algorithms(pass);
    PyObject* names = PyList_New(0);
    for (const std::string& one : found) {
      if (names == nullptr) break;
      PyObject* name = PyUnicode_FromString(one.c_str());
      if (name == nullptr || PyList_Append(names, name) != 0) Py_CLEAR(names);
      Py_XDECREF(name);
    }
    return names;
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
}

PyObject* use_conv2d_algorithm(PyObject*, PyObject* arguments) {
  const char *name = nullptr, *pass = nullptr;
  if (!PyArg_ParseTuple(arguments, "z|z", &name, &pass)) return nullptr;
  try {
    pydl::use_conv2d_algorithm(name ? name : "", pass ? pass : "");
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

PyObject* conv2d_algorithm_served(PyObject*, PyObject*) {
  const char* name = pydl::conv2d_selection.served;
  if (name == nullptr) Py_RETURN_NONE;
  return PyUnicode_FromString(name);
}

PyObject* is_exact(PyObject*, PyObject*) { return PyBool_FromLong(pydl::exact); }

PyObject* set_exact(PyObject*, PyObject* argument) {
  const int value = PyObject_IsTrue(argument);
  if (value < 0) return nullptr;
  pydl::exact = value == 1;
  Py_RETURN_NONE;
}

PyObject* load_cuda(PyObject*, PyObject* argument) {
  const char* path = PyUnicode_AsUTF8(argument);
  if (path == nullptr) return nullptr;
  try {
    pydl::load_cuda(path);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

PyObject* cuda_architectures(PyObject*, PyObject*) {
  return PyUnicode_FromString(pydl::cuda_library ? pydl::cuda_library->architectures : "");
}

PyObject* memory_stats(PyObject*, PyObject*) {
  const pydl::MemoryStats s = pydl::memory::stats();
  return Py_BuildValue("{s:O,s:O,s:L,s:L,s:L,s:L,s:L,s:L,s:L}", "enabled", s.enabled ? Py_True : Py_False,
                       "serves_torch", pydl::memory::serves_torch() ? Py_True : Py_False, "used",
                       static_cast<long long>(s.used), "idle", static_cast<long long>(s.idle), "peak",
                       static_cast<long long>(s.peak), "limit", static_cast<long long>(s.limit), "fresh",
                       static_cast<long long>(s.fresh), "reused", static_cast<long long>(s.reused),
                       "given_back", static_cast<long long>(s.given_back));
}

PyObject* memory_empty_cache(PyObject*, PyObject*) {
  pydl::memory::empty_cache();
  Py_RETURN_NONE;
}

PyObject* memory_set_limit(PyObject*, PyObject* argument) {
  const long long bytes = PyLong_AsLongLong(argument);
  if (bytes == -1 && PyErr_Occurred()) return nullptr;
  pydl::memory::set_limit(bytes);
  Py_RETURN_NONE;
}

PyObject* memory_capsule(PyObject*, PyObject*) {
  return PyCapsule_New(const_cast<pydl::memory::Shared*>(pydl::memory::shared()), pydl::memory::kCapsule,
                       nullptr);
}

PyObject* memory_serve_torch(PyObject*, PyObject* on) {
  pydl::memory::serve_torch(on == Py_True);
  Py_RETURN_NONE;
}

PyMethodDef kFunctions[] = {
    {"cpu_isa", cpu_isa, METH_NOARGS, "instruction set in use"},
    {"cpu_isa_best", cpu_isa_best, METH_NOARGS, "best instruction set of this CPU"},
    {"cpu_has_bf16_dot", has_bf16_dot, METH_NOARGS, "whether this CPU multiplies pairs of bfloat16"},
    {"use_cpu_bf16_dot", use_bf16_dot, METH_O, "whether kernels do so where it can: for tests"},
    {"avx512_is_emulated", is_avx512_emulated, METH_NOARGS,
     "whether the avx512 kernels are compiled for AVX2"},
    {"cpu_isas", cpu_isas, METH_NOARGS, "instruction sets that this CPU runs, lowest first"},
    {"cpu_caches", cpu_caches, METH_NOARGS, "bytes of a core's data caches, first to last level"},
    {"set_cpu_caches", set_cpu_caches, METH_VARARGS, "takes other sizes for them: for tests, and for tuning"},
    {"set_cpu_isa", set_cpu_isa, METH_O, "selects the instruction set of that name"},
    {"conv2d_algorithms", conv2d_algorithms, METH_O, "names of conv2d's algorithms for a pass, best first"},
    {"use_conv2d_algorithm", use_conv2d_algorithm, METH_VARARGS,
     "(name or None, pass or None): asks for an algorithm"},
    {"conv2d_algorithm_served", conv2d_algorithm_served, METH_NOARGS, "which one served the last call"},
    {"is_exact", is_exact, METH_NOARGS, "whether none but algorithms that multiply each pair once serve"},
    {"set_exact", set_exact, METH_O, "asks for such algorithms alone"},
    {"load_cuda", load_cuda, METH_O, "loads the library of CUDA kernels at a path"},
    {"cuda_architectures", cuda_architectures, METH_NOARGS, "what the loaded CUDA library is compiled for"},
    {"memory_stats", memory_stats, METH_NOARGS, "what the pool holds and has done"},
    {"memory_empty_cache", memory_empty_cache, METH_NOARGS, "unmaps all idle memory"},
    {"memory_capsule", memory_capsule, METH_NOARGS, "the pool for pydl._torch"},
    {"memory_serve_torch", memory_serve_torch, METH_O, "whether torch's large tensors come from the pool"},
    {"memory_set_limit", memory_set_limit, METH_O, "most bytes that stay idle"},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef kModule = {PyModuleDef_HEAD_INIT,
                       "_C",
                       "compiled kernels of pydl, and facts about the build",
                       -1,
                       kFunctions,
                       nullptr,
                       nullptr,
                       nullptr,
                       nullptr};

}  // namespace

// The compiler with its name: __VERSION__ alone is "12.2.0" for g++.
#if defined(__apple_build_version__)
#define PYDL_COMPILER "Apple clang " __clang_version__
#elif defined(__clang__)
#define PYDL_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define PYDL_COMPILER "g++ " __VERSION__
#else
#define PYDL_COMPILER "an unnamed compiler"
#endif

PyMODINIT_FUNC PyInit__C() {
  PyObject* module = PyModule_Create(&kModule);
  if (module && PyModule_AddStringConstant(module, "compiler", PYDL_COMPILER) != 0) Py_CLEAR(module);
  if (module && PyModule_AddStringConstant(module, "torch_version", PYDL_TORCH_VERSION) != 0)
    Py_CLEAR(module);
  PyObject* launchers =
      PyCapsule_New(const_cast<pydl::Launchers*>(&pydl::launchers), pydl::kLaunchersCapsule, nullptr);
  if (module && PyModule_AddObjectRef(module, "launchers", launchers) != 0) Py_CLEAR(module);
  Py_XDECREF(launchers);
  return module;
}
