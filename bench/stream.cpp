// A STREAM-like program that knows nothing of Ridgeline. Best of several passes; every figure per second.
//   g++ -O3 -march=native -ffast-math -fopenmp stream.cpp -o stream
//   stream memory MEGABYTES PASSES THREADS -> read (a sum), copy, triad over doubles, in bytes: read counts the array
//     once, copy what is read and written, triad two read and one written
//   stream peak PASSES THREADS -> f32 multiply-adds, int8 dot products (0: not on this machine), in operations
#include <immintrin.h>
#include <omp.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

static double *array(long count) {
  void *place = mmap(nullptr, count * sizeof(double), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (place == MAP_FAILED) exit(1);
  madvise(place, count * sizeof(double), MADV_HUGEPAGE);
  double *values = static_cast<double *>(place);
#pragma omp parallel for schedule(static)
  for (long i = 0; i < count; i++) values[i] = 1.0;
  return values;
}

static void least(double &best, double took) {
  if (took < best) best = took;
}

static int memory(long bytes, int passes) {
  const long count = bytes / sizeof(double), third = count / 3;
  double *a = array(count), *b = array(third), *c = array(third), *d = array(third);
  double read = 1e9, copy = 1e9, triad = 1e9, total = 0.0;
  for (int pass = 0; pass < passes; pass++) {  // nothing else between two reads: a small array stays in its cache
    double sum = 0.0;
    const double began = omp_get_wtime();
#pragma omp parallel for schedule(static) reduction(+ : sum)
    for (long i = 0; i < count; i++) sum += a[i];
    least(read, omp_get_wtime() - began);
    total += sum;
  }
  for (int pass = 0; pass < passes; pass++) {
    double began = omp_get_wtime();
#pragma omp parallel for schedule(static)
    for (long i = 0; i < third; i++) b[i] = c[i];
    least(copy, omp_get_wtime() - began);
    began = omp_get_wtime();
#pragma omp parallel for schedule(static)
    for (long i = 0; i < third; i++) d[i] = b[i] + 3.0 * c[i];
    least(triad, omp_get_wtime() - began);
    total += b[pass] + d[pass];
  }
  printf("%.6g %.6g %.6g\n", bytes / read, 16.0 * third / copy, 24.0 * third / triad);
  return total == 0.5;
}

typedef float Lanes __attribute__((vector_size(64)));
constexpr int CHAINS = 16;
constexpr long ROUNDS = 400000;

static double multiply_adds() {
  Lanes sums[CHAINS], by = {}, more = {};
  by += 0.9999f, more += 1e-7f;
  for (int c = 0; c < CHAINS; c++) sums[c] = more * static_cast<float>(c);
  for (long i = 0; i < ROUNDS; i++)
    for (int c = 0; c < CHAINS; c++) sums[c] = sums[c] * by + more;
  Lanes total = sums[0];
  for (int c = 1; c < CHAINS; c++) total += sums[c];
  return total[0] + total[15];
}

static double dot_products() {
#ifdef __AVX512VNNI__
  // Every loop over the chains is unrolled, or g++ 12 keeps them in memory.
  __m512i sums[CHAINS], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(1);
#pragma GCC unroll 16
  for (int c = 0; c < CHAINS; c++) sums[c] = _mm512_set1_epi32(c);
  for (long i = 0; i < ROUNDS; i++)
#pragma GCC unroll 16
    for (int c = 0; c < CHAINS; c++) asm volatile("vpdpbusd %2, %1, %0" : "+v"(sums[c]) : "v"(a), "v"(b));
  __m512i total = sums[0];
#pragma GCC unroll 16
  for (int c = 1; c < CHAINS; c++) total = _mm512_xor_si512(total, sums[c]);
  return _mm512_reduce_add_epi32(total);
#else
  return 0.0;
#endif
}

static int peak(int passes, int threads) {
  double floats = 1e9, bytes = 1e9, total = 0.0;
  for (int pass = 0; pass < passes; pass++) {
    double began = omp_get_wtime();
#pragma omp parallel reduction(+ : total)
    total += multiply_adds();
    least(floats, omp_get_wtime() - began);
    began = omp_get_wtime();
#pragma omp parallel reduction(+ : total)
    total += dot_products();
    least(bytes, omp_get_wtime() - began);
  }
#ifndef __AVX512VNNI__
  bytes = 1e300;
#endif
  const double steps = static_cast<double>(ROUNDS) * CHAINS * threads;
  printf("%.6g %.6g\n", steps * 32 / floats, steps * 128 / bytes);
  return total == 0.5;
}

int main(int argc, char **argv) {
  if (argc < 4) return fprintf(stderr, "stream memory MEGABYTES PASSES THREADS | stream peak PASSES THREADS\n"), 2;
  const int threads = atoi(argv[argc - 1]), passes = atoi(argv[argc - 2]);
  omp_set_num_threads(threads);
  return strcmp(argv[1], "peak") ? memory(atol(argv[2]) << 20, passes) : peak(passes, threads);
}
