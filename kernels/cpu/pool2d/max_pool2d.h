// What the files of maximum pooling share: where a place is kept, and the rows' way.
#pragma once

#include "kernels/cpu/pool2d/pool2d.h"
#include "kernels/max_pool2d.h"

namespace pydl::cpu::PYDL_ISA {

// Output rows [begin, end), counted over all planes, of an NCHW output; the input's rows are dense, and the
// windows one or two pixels apart.
template <class T>
void max_pool2d_rows(const MaxPool2dParams& p, int64_t begin, int64_t end);

// The same for any distance of windows.
template <class T>
void max_pool2d_direct(const MaxPool2dParams& p, int64_t begin, int64_t end);

namespace {

PYDL_INLINE int64_t place_at(const MaxPool2dParams& p, int64_t i) {
  return p.byte_places ? static_cast<const uint8_t*>(p.places)[i] : static_cast<const int32_t*>(p.places)[i];
}
PYDL_INLINE void put_place(const MaxPool2dParams& p, int64_t i, int64_t place) {
  if (p.byte_places)
    static_cast<uint8_t*>(p.places)[i] = static_cast<uint8_t>(place);
  else
    static_cast<int32_t*>(p.places)[i] = static_cast<int32_t>(place);
}
// The first n lanes of k.
template <class M>
PYDL_INLINE void put_places(const MaxPool2dParams& p, int64_t i, M k, int64_t n) {
  if (p.byte_places)
    store_integers(static_cast<uint8_t*>(p.places) + i, k, n);
  else
    store_integers(static_cast<int32_t*>(p.places) + i, k, n);
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
