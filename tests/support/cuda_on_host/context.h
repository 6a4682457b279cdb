// Stacks that take turns on one thread of the processor.
//
// On x86-64 the switch is a dozen instructions. swapcontext() is what other processors take: it asks the kernel for
// the signal mask twice, and AddressSanitizer clears the shadow of the whole stack before each call, which
// together were three quarters of the twin's time. The sanitizer is told of the switches by the caller.
#pragma once

#include <stddef.h>

#if defined(__x86_64__)

extern "C" void twin_switch_stacks(void** saved, void* next);
asm(R"(
.text
.globl twin_switch_stacks
.hidden twin_switch_stacks
.type twin_switch_stacks, @function
twin_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size twin_switch_stacks, . - twin_switch_stacks
)");

namespace twin {

struct Context {
  void* top = nullptr;  // of its stack, below which its registers are kept

  // Makes this a context that begins with entry(), which must never return.
  void begin(void* stack, size_t bytes, void (*entry)()) {
    void** end = reinterpret_cast<void**>(static_cast<char*>(stack) + bytes);  // a multiple of 16
    // as if entry() had been called from nowhere: six registers, the address to go to, the one to return to
    for (int i = 1; i <= 8; ++i) end[-i] = nullptr;
    end[-2] = reinterpret_cast<void*>(entry);
    top = end - 8;
  }
  void switch_to(Context& next) { twin_switch_stacks(&top, next.top); }
};

}  // namespace twin

#else

#include <ucontext.h>

namespace twin {

struct Context {
  ucontext_t context;

  void begin(void* stack, size_t bytes, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  void switch_to(Context& next) { swapcontext(&context, &next.context); }
};

}  // namespace twin

#endif
