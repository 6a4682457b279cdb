// The stand-ins of emulated.h beside the instructions: the same operands to both, the same bits expected, any nan for
// nan. Run by tests/build/test_avx512_emulated.py on a CPU that has AVX-512 and its bf16 instructions.
#include <stdio.h>
#include <sys/mman.h>

#define PYDL_ISA emulated
#include "tests/support/avx512/emulated.h"
#undef _mm512_shuffle_epi32

namespace {

namespace ours = pydl::cpu::emulated;
int failures = 0;

uint64_t state = 1;
uint32_t word() {
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return static_cast<uint32_t>(state >> 32);
}

// Any bits, numbers around one, whole numbers, and what rounds or propagates in a way of its own.
float number(float) {
  constexpr float kSpecial[] = {0.0f,      -0.0f,   __builtin_inff(), -__builtin_inff(), __builtin_nanf(""),
                                0x1p-149f, -1e-39f, 0x1p-126f,        3.4028234e38f,     -3.4028234e38f,
                                65519.99f, 65520.0f};
  const uint32_t bits = word(), near = (bits & 0x80ffffffu) | 0x3f000000u;
  float any, one;
  memcpy(&any, &bits, 4);
  memcpy(&one, &near, 4);
  const uint32_t kind = word() % 4;
  return kind == 0   ? any
         : kind == 1 ? one
         : kind == 2 ? static_cast<float>(bits % 601) - 300
                     : kSpecial[bits % 12];
}
double number(double) {
  const uint64_t bits = static_cast<uint64_t>(word()) << 32 | word();
  double any;
  memcpy(&any, &bits, 8);
  return word() % 3 == 0 ? any : static_cast<double>(number(0.0f));
}
int32_t number(int32_t) { return static_cast<int32_t>(word() % 3 == 0 ? word() % 4 : word()); }

template <class V, class E>
V vector() {
  E lane[sizeof(V) / sizeof(E)];
  for (E& x : lane) x = number(E{});
  V v;
  memcpy(&v, lane, sizeof v);
  return v;
}

template <class E, class V>
void expect(const char* what, V theirs, V mine) {
  E a[sizeof(V) / sizeof(E)], b[sizeof(V) / sizeof(E)];
  memcpy(a, &theirs, sizeof theirs);
  memcpy(b, &mine, sizeof mine);
  for (size_t i = 0; i < sizeof(V) / sizeof(E); ++i) {
    if (memcmp(&a[i], &b[i], sizeof(E)) == 0 || (a[i] != a[i] && b[i] != b[i])) continue;
    if (++failures <= 40)
      printf("%s, lane %zu: expected %.9g, got %.9g\n", what, i, static_cast<double>(a[i]),
             static_cast<double>(b[i]));
  }
}
#define EXPECT(E, name, ...) expect<E>(#name, ::name(__VA_ARGS__), ours::name(__VA_ARGS__))

void arithmetic() {
  const __m512 a = vector<__m512, float>(), b = vector<__m512, float>(), c = vector<__m512, float>();
  const __m512d p = vector<__m512d, double>(), q = vector<__m512d, double>();
  const __m512i i = vector<__m512i, int32_t>(), j = vector<__m512i, int32_t>(),
                k = vector<__m512i, int32_t>();
  const __mmask16 m = static_cast<__mmask16>(word());
  const __mmask8 n = static_cast<__mmask8>(word());
  const __mmask32 lanes = word();
  const __m256i halves = _mm512_castsi512_si256(i);
  const __m128i bytes = _mm512_castsi512_si128(j);

  EXPECT(float, _mm512_sqrt_ps, a);
  EXPECT(double, _mm512_sqrt_pd, p);
  EXPECT(float, _mm512_max_ps, a, b);
  EXPECT(double, _mm512_max_pd, p, q);
  EXPECT(float, _mm512_mask_add_ps, c, m, a, b);
  EXPECT(double, _mm512_mask_add_pd, q, n, p, q);
  EXPECT(float, _mm512_maskz_mul_ps, m, a, b);
  EXPECT(float, _mm512_reduce_add_ps, a);
  EXPECT(float, _mm512_reduce_max_ps, a);
  EXPECT(double, _mm512_reduce_add_pd, p);
  EXPECT(double, _mm512_reduce_max_pd, p);
  const __m512 whole = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), b);  // not: a nan and 2^inf
  const __m512d wide = _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(p, p, _CMP_ORD_Q), q);
  EXPECT(float, _mm512_scalef_ps, a, whole);
  EXPECT(double, _mm512_scalef_pd, p, wide);
  EXPECT(uint64_t, _mm512_mul_epu32, i, j);
  EXPECT(uint64_t, _mm512_ternarylogic_epi64, i, j, k, 0x6A);
  EXPECT(uint32_t, _mm512_mask_ternarylogic_epi32, i, m, j, k, 0x96);

  EXPECT(uint32_t, _mm512_cvtepu16_epi32, halves);
  EXPECT(uint16_t, _mm512_cvtepi32_epi16, i);
  EXPECT(uint32_t, _mm512_cvtepu8_epi32, bytes);
  EXPECT(uint64_t, _mm512_cvtepu8_epi64, bytes);
  EXPECT(uint32_t, _mm512_mask_cvtepu8_epi32, i, m, bytes);
  EXPECT(float, _mm512_cvtph_ps, halves);
  EXPECT(uint16_t, _mm512_cvtps_ph, a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  expect<uint16_t>("_mm512_cvtneps_pbh", (__m256i)::_mm512_cvtneps_pbh(a),
                   (__m256i)ours::_mm512_cvtneps_pbh(a));
  expect<uint16_t>("_mm512_cvtne2ps_pbh", (__m512i)::_mm512_cvtne2ps_pbh(a, b),
                   (__m512i)ours::_mm512_cvtne2ps_pbh(a, b));
  const __m512bh x = ::_mm512_cvtne2ps_pbh(a, b), y = ::_mm512_cvtne2ps_pbh(b, c);
  EXPECT(float, _mm512_dpbf16_ps, c, x, y);
  EXPECT(float, _mm512_dpbf16_ps, c, (__m512bh)i, (__m512bh)j);

  EXPECT(uint16_t, _mm512_movepi32_mask, i);
  EXPECT(uint16_t, _mm512_cmp_ps_mask, a, b, _CMP_GT_OQ);
  EXPECT(uint16_t, _mm512_cmp_ps_mask, a, b, _CMP_UNORD_Q);
  EXPECT(uint8_t, _mm512_cmp_pd_mask, p, q, _CMP_GT_OQ);
  EXPECT(uint8_t, _mm512_cmp_pd_mask, p, q, _CMP_UNORD_Q);
  EXPECT(uint16_t, _mm512_cmpeq_epi32_mask, i, j);
  EXPECT(uint8_t, _mm512_cmpeq_epi64_mask, i, _mm512_mask_mov_epi64(j, n, i));
  EXPECT(uint16_t, _mm512_cmpge_epu32_mask, i, j);
  EXPECT(uint32_t, _mm512_mask_mov_ps, a, m, b);
  EXPECT(uint64_t, _mm512_mask_mov_pd, p, n, q);
  EXPECT(uint32_t, _mm512_mask_mov_epi32, i, m, j);
  EXPECT(uint64_t, _mm512_mask_mov_epi64, i, n, j);

  EXPECT(uint32_t, _mm512_unpacklo_ps, a, b);
  EXPECT(uint32_t, _mm512_unpackhi_ps, a, b);
  EXPECT(uint64_t, _mm512_unpacklo_pd, p, q);
  EXPECT(uint64_t, _mm512_unpackhi_pd, p, q);
  EXPECT(uint32_t, _mm512_shuffle_ps, a, b, 0x11);
  EXPECT(uint32_t, _mm512_shuffle_ps, a, b, 0xBB);
  EXPECT(uint32_t, _mm512_shuffle_f32x4, a, b, 0x88);
  EXPECT(uint32_t, _mm512_shuffle_f32x4, a, b, 0xDD);
  EXPECT(uint32_t, _mm512_shuffle_epi32, i, _MM_PERM_CDAB);
  EXPECT(uint32_t, _mm512_permutexvar_ps, i, a);
  EXPECT(uint16_t, _mm512_maskz_permutexvar_epi16, lanes, i, j);
  EXPECT(uint64_t, _mm512_permutexvar_pd, i, p);
  EXPECT(uint32_t, _mm512_permutex2var_ps, a, i, b);
  EXPECT(uint64_t, _mm512_permutex2var_pd, p, i, q);
  EXPECT(uint64_t, _mm512_inserti64x4, i, halves, 1);
}

// The first `count` lanes of what ends where a page begins that may not be touched.
#define EXPECT_STORE(E, name, v)                 \
  memset(end - 64, 0, 64);                       \
  ::name(end - count * sizeof(E), first, v);     \
  memcpy(theirs, end - 64, 64);                  \
  memset(end - 64, 0, 64);                       \
  ours::name(end - count * sizeof(E), first, v); \
  expect<E>(#name, *reinterpret_cast<__m512i_u*>(theirs), *reinterpret_cast<__m512i_u*>(end - 64))

void memory(char* end) {
  char theirs[64];
  for (size_t i = 0; i < 64; ++i) end[static_cast<int64_t>(i) - 64] = static_cast<char>(word());
  const __m512i v = vector<__m512i, int32_t>();
  for (size_t count = 0; count <= 16; ++count) {
    const __mmask16 first = static_cast<__mmask16>((1u << count) - 1);
    EXPECT(uint32_t, _mm512_maskz_loadu_ps, first, end - 4 * count);
    EXPECT(uint32_t, _mm512_mask_loadu_ps, (__m512)v, first, end - 4 * count);
    EXPECT(uint16_t, _mm256_maskz_loadu_epi16, first, end - 2 * count);
    EXPECT(uint8_t, _mm_maskz_loadu_epi8, first, end - count);
    for (size_t numbers = count; numbers <= 32; numbers += 16) {
      const __mmask32 lanes = static_cast<__mmask32>((uint64_t{1} << numbers) - 1);
      EXPECT(uint16_t, _mm512_maskz_loadu_epi16, lanes, end - 2 * numbers);
      memset(end - 64, 0, 64);
      ::_mm512_mask_storeu_epi16(end - 2 * numbers, lanes, v);
      memcpy(theirs, end - 64, 64);
      memset(end - 64, 0, 64);
      ours::_mm512_mask_storeu_epi16(end - 2 * numbers, lanes, v);
      expect<uint16_t>("_mm512_mask_storeu_epi16", *reinterpret_cast<__m512i_u*>(theirs),
                       *reinterpret_cast<__m512i_u*>(end - 64));
    }
    const __m512i index = _mm512_mask_mov_epi32(_mm512_set1_epi32(1 << 30), first, _mm512_set1_epi32(-1));
    EXPECT(uint32_t, _mm512_mask_i32gather_ps, (__m512)v, first, index, end, 4);
  }
  for (size_t count = 0; count <= 8; ++count) {
    const __mmask8 first = static_cast<__mmask8>((1u << count) - 1);
    EXPECT(uint64_t, _mm512_maskz_loadu_pd, first, end - 8 * count);
    EXPECT(uint64_t, _mm512_mask_loadu_pd, (__m512d)v, first, end - 8 * count);
  }
  for (size_t count = 0; count <= 16; ++count) {
    const __mmask16 first = static_cast<__mmask16>((1u << count) - 1);
    EXPECT_STORE(float, _mm512_mask_storeu_ps, (__m512)v);
    EXPECT_STORE(uint16_t, _mm256_mask_storeu_epi16, _mm512_castsi512_si256(v));
    EXPECT_STORE(uint8_t, _mm512_mask_cvtepi32_storeu_epi8, v);
  }
  for (size_t count = 0; count <= 8; ++count) {
    const __mmask8 first = static_cast<__mmask8>((1u << count) - 1);
    EXPECT_STORE(double, _mm512_mask_storeu_pd, (__m512d)v);
    EXPECT_STORE(uint8_t, _mm512_mask_cvtepi64_storeu_epi8, v);
  }
}

}  // namespace

int main() {
  char* page =
      static_cast<char*>(mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (page == MAP_FAILED || mprotect(page + 4096, 4096, PROT_NONE) != 0) return 2;
  for (int round = 0; round < 20000; ++round) arithmetic();
  for (int round = 0; round < 200; ++round) memory(page + 4096);
  printf("%d lanes differ\n", failures);
  return failures == 0 ? 0 : 1;
}
