// Transposition of square blocks in registers, for kernels whose lanes are channels and whose memory is NCHW
// (and the other way round). As many rows as a vector of floats has lanes; half types are widened on the way
// in and rounded on the way out.
#pragma once

#include "kernels/cpu/base/simd.h"

namespace pydl::cpu::PYDL_ISA {
namespace {

#if defined(PYDL_AVX512)
PYDL_INLINE void transpose(vec<float> (&row)[16]) {
  __m512 a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {  // pairs of rows
    a[2 * i] = _mm512_unpacklo_ps((__m512)row[2 * i], (__m512)row[2 * i + 1]);
    a[2 * i + 1] = _mm512_unpackhi_ps((__m512)row[2 * i], (__m512)row[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // columns of 4 rows, within each 16 bytes
    const __m512d p = _mm512_castps_pd(a[4 * i]), q = _mm512_castps_pd(a[4 * i + 2]);
    const __m512d r = _mm512_castps_pd(a[4 * i + 1]), s = _mm512_castps_pd(a[4 * i + 3]);
    b[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(p, q));
    b[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(p, q));
    b[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(r, s));
    b[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(r, s));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // gather the 16-byte pieces of one column: 8 rows, then 16
    const __m512 p = _mm512_shuffle_f32x4(b[i], b[4 + i], 0x88),
                 q = _mm512_shuffle_f32x4(b[i], b[4 + i], 0xdd);
    const __m512 r = _mm512_shuffle_f32x4(b[8 + i], b[12 + i], 0x88),
                 s = _mm512_shuffle_f32x4(b[8 + i], b[12 + i], 0xdd);
    row[i] = (vec<float>)_mm512_shuffle_f32x4(p, r, 0x88);
    row[4 + i] = (vec<float>)_mm512_shuffle_f32x4(q, s, 0x88);
    row[8 + i] = (vec<float>)_mm512_shuffle_f32x4(p, r, 0xdd);
    row[12 + i] = (vec<float>)_mm512_shuffle_f32x4(q, s, 0xdd);
  }
}
#elif defined(PYDL_AVX2)
PYDL_INLINE void transpose(vec<float> (&row)[8]) {
  __m256 a[8], b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = _mm256_unpacklo_ps((__m256)row[2 * i], (__m256)row[2 * i + 1]);
    a[2 * i + 1] = _mm256_unpackhi_ps((__m256)row[2 * i], (__m256)row[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    b[4 * i] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0x44);
    b[4 * i + 1] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0xee);
    b[4 * i + 2] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0x44);
    b[4 * i + 3] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    row[i] = (vec<float>)_mm256_permute2f128_ps(b[i], b[4 + i], 0x20);
    row[4 + i] = (vec<float>)_mm256_permute2f128_ps(b[i], b[4 + i], 0x31);
  }
}
#else
PYDL_INLINE void transpose(vec<float> (&row)[lanes<float>]) {
  for (int i = 0; i < lanes<float>; ++i)
    for (int j = 0; j < i; ++j) {
      const float x = row[i][j];
      row[i][j] = row[j][i];
      row[j][i] = x;
    }
}
#endif
PYDL_INLINE void transpose(vec<double> (&row)[lanes<double>]) {
  for (int i = 0; i < lanes<double>; ++i)
    for (int j = 0; j < i; ++j) {
      const double x = row[i][j];
      row[i][j] = row[j][i];
      row[j][i] = x;
    }
}

// to[j * to_stride + i] = from[i * from_stride + j] for i < rows <= lanes, j < columns; lanes beyond rows
// become zero.
template <class T>
void transpose_in(const T* from, int64_t from_stride, int64_t rows, int64_t columns, float* to,
                  int64_t to_stride) {
  constexpr int L = lanes<float>;
  for (int64_t first = 0; first < columns; first += L) {
    const int64_t n = min_of(L, columns - first);
    vec<float> block[L];
    if (n == L && rows == L) {
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) block[i] = load(from + i * from_stride + first);
      transpose(block);
#pragma GCC unroll 16
      for (int j = 0; j < L; ++j) store(to + (first + j) * to_stride, block[j]);
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i)
        block[i] = i < rows ? load_n(from + i * from_stride + first, n) : vec<float>{};
      transpose(block);
#pragma GCC unroll 16
      for (int j = 0; j < L; ++j)
        if (j < n) store(to + (first + j) * to_stride, block[j]);
    }
  }
}

// The same of rows x columns pixels that follow each other in memory, while the same pixels of the next
// channels are on their way: pixel (i, j) of all channels goes to to + i * row + j * L. Squares cross the
// ends of rows, so that narrow images fill them.
template <class T>
void transpose_in_rows(const T* from, int64_t channel, int64_t count, int64_t rows, int64_t columns,
                       float* to, int64_t row) {
  constexpr int L = lanes<float>;
  const int64_t pixels = rows * columns;
  int64_t left = columns;
  for (int64_t first = 0; first < pixels; first += L) {
    const int64_t n = min_of(L, pixels - first);
    vec<float> block[L];
    for (int64_t i = 0; i < count; ++i) prefetch(from + (L + i) * channel + first);
    if (n == L && count == L) {
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) block[i] = load(from + i * channel + first);
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) block[i] = i < count ? load_n(from + i * channel + first, n) : vec<float>{};
    }
    transpose(block);
#pragma GCC unroll 16
    for (int j = 0; j < L; ++j) {
      if (j >= n) break;
      store(to, block[j]);
      to += L;
      if (--left == 0) {
        to += row - columns * L;
        left = columns;
      }
    }
  }
}

// The same a square at a time, while the same places of the rows at `next` are on their way: rows are planes
// apart, where no hardware looks ahead.
template <class T>
void transpose_in(const T* from, int64_t from_stride, int64_t rows, int64_t columns, float* to,
                  int64_t to_stride, const T* next) {
  constexpr int L = lanes<float>;
  for (int64_t first = 0; first < columns; first += L) {
    for (int64_t i = 0; i < L; ++i) prefetch(next + i * from_stride + first);
    transpose_in(from + first, from_stride, rows, min_of(L, columns - first), to + first * to_stride,
                 to_stride);
  }
}

// The way back: to[j * to_stride + i] = from[i * from_stride + j] for i < rows, j < columns <= lanes. Reads
// whole vectors of `from`.
template <class T>
void transpose_out(const float* from, int64_t from_stride, int64_t rows, int64_t columns, T* to,
                   int64_t to_stride) {
  constexpr int L = lanes<float>;
  for (int64_t first = 0; first < rows; first += L) {
    const int64_t n = min_of(L, rows - first);
    vec<float> block[L];
    if (n == L && columns == L) {
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) block[i] = load(from + (first + i) * from_stride);
      transpose(block);
#pragma GCC unroll 16
      for (int j = 0; j < L; ++j) store(to + j * to_stride + first, block[j]);
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) block[i] = i < n ? load(from + (first + i) * from_stride) : vec<float>{};
      transpose(block);
#pragma GCC unroll 16
      for (int j = 0; j < L; ++j)
        if (j < columns) store_n(to + j * to_stride + first, block[j], n);
    }
  }
}

// The way back for rows x columns pixels that follow each other in memory: pixel (i, j) of all channels comes
// from from + i * row + j * L.
template <class T>
void transpose_out_rows(const float* from, int64_t row, int64_t rows, int64_t columns, int64_t count, T* to,
                        int64_t channel) {
  constexpr int L = lanes<float>;
  const int64_t pixels = rows * columns;
  int64_t left = columns;
  for (int64_t first = 0; first < pixels; first += L) {
    const int64_t n = min_of(L, pixels - first);
    vec<float> block[L];
#pragma GCC unroll 16
    for (int j = 0; j < L; ++j) {
      block[j] = load(from);  // beyond the last pixel the last one again
      if (j + 1 >= n && first + n == pixels) continue;
      from += L;
      if (--left == 0) {
        from += row - columns * L;
        left = columns;
      }
    }
    transpose(block);
    if (n == L && count == L) {
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) store(to + i * channel + first, block[i]);
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i)
        if (i < count) store_n(to + i * channel + first, block[i], n);
    }
  }
}

// The same a square at a time, while the places of the next square are on their way.
template <class T>
void transpose_out_ahead(const float* from, int64_t from_stride, int64_t rows, int64_t columns, T* to,
                         int64_t to_stride) {
  constexpr int L = lanes<float>;
  for (int64_t first = 0; first < rows; first += L) {
    for (int64_t j = 0; j < columns; ++j)
      prefetch_to_write(to + j * to_stride + min_of(first + 2 * L, rows) - 1);
    transpose_out(from + first * from_stride, from_stride, min_of(L, rows - first), columns, to + first,
                  to_stride);
  }
}

}  // namespace
}  // namespace pydl::cpu::PYDL_ISA
