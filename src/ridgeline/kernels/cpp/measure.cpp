// measure: the ceilings of this machine under this instruction set: read bandwidth, f32 FMA, int8 dot products.
#include "vec.h"

namespace ridgeline::RL_ISA {

double read(const void* data, int64_t bytes) {
  const uint8_t* at = static_cast<const uint8_t*>(data);
  constexpr int UNROLL = 8, VECTOR = 4 * LANES;
  I sums[UNROLL] = {};
  int64_t i = 0;
  for (; i + UNROLL * VECTOR <= bytes; i += UNROLL * VECTOR) {
    for (int line = 0; line < UNROLL * VECTOR; line += 64) __builtin_prefetch(at + i + line + 6144);
#pragma GCC unroll 8
    for (int j = 0; j < UNROLL; j++) sums[j] ^= load_int(at + i + j * VECTOR);
  }
  I total = (sums[0] ^ sums[1]) ^ (sums[2] ^ sums[3]) ^ (sums[4] ^ sums[5]) ^ (sums[6] ^ sums[7]);
  return static_cast<double>(sum(total));
}

// kind 0: fma; 1: the int8 dot instruction (or the sequence) the linears use. Operations: multiplies + adds.
double arithmetic(int kind, int64_t iterations, double* operations) {
  constexpr int CHAINS = RL_LEVEL == 2 ? 24 : 12;
  if (kind == 0) {
    F sums[CHAINS] = {};
    F a = splat(1.0000001f), b = splat(1e-9f);
    for (int64_t i = 0; i < iterations; i++) {
      asm volatile("" : "+m"(*operations));
#pragma GCC unroll 24
      for (int c = 0; c < CHAINS; c++) {
        sums[c] = fma(sums[c], a, b);
#if RL_LEVEL > 0
        asm volatile("" : "+v"(sums[c]));  // the chains are equal: without this the compiler keeps only one
#endif
      }
    }
    F total = sums[0];
#pragma GCC unroll 24
    for (int c = 1; c < CHAINS; c++) total = total + sums[c];
    *operations = 2.0 * LANES * CHAINS * static_cast<double>(iterations);
    return sum(total);
  }
  if (kind != 1) return -1.0;
#if RL_LEVEL == 2
  __m512i sums[CHAINS];
  __m512i a = _mm512_set1_epi32(0x01020304), b = _mm512_set1_epi32(static_cast<int>(iterations & 1));
#pragma GCC unroll 24
  for (int c = 0; c < CHAINS; c++) sums[c] = _mm512_set1_epi32(c);
  for (int64_t i = 0; i < iterations; i++) {
#pragma GCC unroll 24
    for (int c = 0; c < CHAINS; c++) sums[c] = _mm512_dpbusd_epi32(sums[c], a, b);
  }
#elif RL_LEVEL == 1
  __m256i sums[CHAINS];
#pragma GCC unroll 24
  for (int c = 0; c < CHAINS; c++) sums[c] = _mm256_set1_epi32(c);
  __m256i a = _mm256_set1_epi32(0x01020304), b = _mm256_set1_epi32(0x01010101), one = _mm256_set1_epi16(1);
  for (int64_t i = 0; i < iterations; i++) {
#pragma GCC unroll 24
    for (int c = 0; c < CHAINS; c++) {
      asm volatile("" : "+x"(a));
      sums[c] = _mm256_add_epi32(sums[c], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), one));
    }
  }
#else  // the plain linears multiply in f32
  F sums[CHAINS];
  F a = splat(0.9999f), b = splat(1e-3f);
#pragma GCC unroll 24
  for (int c = 0; c < CHAINS; c++) sums[c] = splat(static_cast<float>(c));
  for (int64_t i = 0; i < iterations; i++) {
#pragma GCC unroll 24
    for (int c = 0; c < CHAINS; c++)
#pragma GCC unroll 4
      for (int k = 0; k < 4; k++) sums[c] = fma(sums[c], a, b);
  }
#endif
  *operations = 8.0 * LANES * CHAINS * static_cast<double>(iterations);
  double total = 0.0;
#pragma GCC unroll 24
  for (int c = 0; c < CHAINS; c++) total += static_cast<double>(sum((I)sums[c]));
  return total;
}

}  // namespace ridgeline::RL_ISA
