// linear: out[:, part] = in . weight[part]^T + bias + residual, on the stored bits.
// Idea: a block of R rows (tokens) x T units (LANES weight rows each) keeps its sums in registers while the packed tile
// streams by once. Promise 1: for one output the sequence of operations over k is the same in every R x T variant
//   f32, bf16:  two sums (even k, odd k), added at the end
//   q8_0, q4_1: per group of 32 an exact integer dot of each plane (high, low), each then sum = fma(d_w * d_a, dot, sum);
//               q4_1 adds fma(m_w, sum of both planes' d_a * sum q, .)
// so neither the number of rows, nor threads, nor tiles beside it can change a bit.
// A block of few rows streams one tile and prefetches it (the weights come from memory once: one stream at a time beats
// two, KERNELS.md §2); integer blocks take up to PANEL rows of one unit, float ones up to HOT_ROWS of two.
// Measured numbers: docs/findings (command: ridgeline doctor, bench/).
// size: one operator; every instruction set's inner loops stand beside each other to be compared
#include "quantise.h"

namespace ridgeline::RL_ISA {
namespace {

constexpr int UNITS_IN_TILE = RL_TILE_ROWS / LANES;
constexpr int HOT_ROWS = 6, HOT_UNITS = 2;  // float blocks of AVX-512: 24 sums in 32 registers
constexpr int64_t FETCH_BYTES = 6144;       // KERNELS.md §2: 4-8 KB ahead gives +10 %
constexpr int64_t CHUNK_ROWS = 192;         // rows of a work item: a multiple of PANEL; their activations stay in the second cache

// Units that a block of R rows computes at once: enough independent sums to hide latency, few enough for the registers.
template <int R>
constexpr int units() {
  constexpr int sums = RL_LEVEL == 2 ? 1 : RL_LEVEL == 1 ? 4 : 4;
  return R >= sums ? 1 : sums / R < UNITS_IN_TILE ? (sums / R) : UNITS_IN_TILE;
}

// The activations a block reads.
struct Reads {
  const float* x;        // of the first row
  const uint8_t* panel;  // quantised: exactly these R rows (quantise.h)
  int64_t stride;        // floats between rows of x
  int64_t columns;
};

template <bool FETCH>
RL_INLINE void fetch(const uint8_t* line) {
  if constexpr (FETCH) __builtin_prefetch(line + FETCH_BYTES);
}

// ---- f32 and bf16

template <int R, int T, bool FETCH>
RL_INLINE void dot_f32(const Reads& from, const uint8_t* const (&tile)[T], const int (&lane)[T], F (&out)[R][T]) {
  F even[R][T] = {}, odd[R][T] = {};
  const float* x = from.x;
  int64_t k = 0;
  for (; k + 1 < from.columns; k += 2) {
    F first_weight[T], second_weight[T];
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) {
      const float* w = reinterpret_cast<const float*>(tile[t]) + k * 16 + lane[t];
      first_weight[t] = load(w);
      second_weight[t] = load(w + 16);
    }
    fetch<FETCH>(tile[0] + k * 64);
    fetch<FETCH>(tile[0] + k * 64 + 64);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      F a = splat(x[r * from.stride + k]), b = splat(x[r * from.stride + k + 1]);
#pragma GCC unroll 12
      for (int t = 0; t < T; t++) {
        even[r][t] = fma(a, first_weight[t], even[r][t]);
        odd[r][t] = fma(b, second_weight[t], odd[r][t]);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) {
      if (k < from.columns) {
        const float* w = reinterpret_cast<const float*>(tile[t]) + k * 16 + lane[t];
        even[r][t] = fma(splat(x[r * from.stride + k]), load(w), even[r][t]);
      }
      out[r][t] = even[r][t] + odd[r][t];
    }
  }
}

template <int R, int T, bool FETCH>
RL_INLINE void dot_bf16(const Reads& from, const uint8_t* const (&tile)[T], const int (&lane)[T], F (&out)[R][T]) {
  F even[R][T] = {}, odd[R][T] = {};
  const float* x = from.x;
  int64_t k = 0;
  for (; k + 1 < from.columns; k += 2) {
    F first_weight[T], second_weight[T];
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) load_pairs(tile[t] + k * 32 + lane[t] * 4, first_weight[t], second_weight[t]);
    fetch<FETCH>(tile[0] + k * 32);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      F a = splat(x[r * from.stride + k]), b = splat(x[r * from.stride + k + 1]);
#pragma GCC unroll 12
      for (int t = 0; t < T; t++) {
        even[r][t] = fma(a, first_weight[t], even[r][t]);
        odd[r][t] = fma(b, second_weight[t], odd[r][t]);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) {
      if (k < from.columns) {
        F w, none;
        load_pairs(tile[t] + k * 32 + lane[t] * 4, w, none);
        even[r][t] = fma(splat(x[r * from.stride + k]), w, even[r][t]);
      }
      out[r][t] = even[r][t] + odd[r][t];
    }
  }
}

// ---- integer groups: group_q8 and group_q4 give the exact dot of 32 weights and 32 activations as a float.
// w: the group's first weight byte of each unit (stored + 128 for q8); q: the panel's group, whose last R words are the
// offsets -128 * sum that undo the + 128.

template <int R>
RL_INLINE int32_t offset_of(const uint8_t* q, int r) {
  return reinterpret_cast<const int32_t*>(q)[9 * R + r];
}
template <int R>
RL_INLINE float scale_of(const uint8_t* q, int r) {
  return reinterpret_cast<const float*>(q)[8 * R + r];
}

#if RL_LEVEL == 2

// GCC 12 does not fold a broadcast into vpdpbusd by itself.
RL_INLINE void dot4(I& sum, I weights, const uint8_t* q) {
  typedef int Four __attribute__((may_alias));
  asm("vpdpbusd %1%{1to16%}, %2, %0" : "+v"(sum) : "m"(*reinterpret_cast<const Four*>(q)), "v"(weights));
}

template <int R, int T>
RL_INLINE void group_q8(const uint8_t* const (&w)[T], const uint8_t* q, F (&dot)[R][T]) {
  I total[R][T];
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) total[r][t] = splat_int(offset_of<R>(q, r));
#pragma GCC unroll 12
  for (int j = 0; j < 8; j++) {
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      I weights = load_int(w[t] + 64 * j);
#pragma GCC unroll 12
      for (int r = 0; r < R; r++) dot4(total[r][t], weights, q + (j * R + r) * 4);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) dot[r][t] = to_float(total[r][t]);
}

template <int R, int T>
RL_INLINE void group_q4(const uint8_t* const (&w)[T], const uint8_t* q, F (&dot)[R][T]) {
  I total[R][T] = {};
  const I low = splat_int(0x0f0f0f0f);
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      I both = load_int(w[t] + 64 * j);
      I weights = both & low, next = (both >> 4) & low;
#pragma GCC unroll 12
      for (int r = 0; r < R; r++) dot4(total[r][t], weights, q + (2 * j * R + r) * 4);
#pragma GCC unroll 12
      for (int r = 0; r < R; r++) dot4(total[r][t], next, q + ((2 * j + 1) * R + r) * 4);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) dot[r][t] = to_float(total[r][t]);
}

#elif RL_LEVEL == 1

RL_INLINE __m256i broadcast4(const uint8_t* q) {
  int four;
  memcpy(&four, q, 4);
  return _mm256_set1_epi32(four);
}

// maddubs would saturate on 8-bit weights: widen to 16 bits, even and odd bytes apart.
template <int R, int T>
RL_INLINE void group_q8(const uint8_t* const (&w)[T], const uint8_t* q, F (&dot)[R][T]) {
  __m256i total[R][T];
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) total[r][t] = _mm256_set1_epi32(offset_of<R>(q, r));
#pragma GCC unroll 12
  for (int j = 0; j < 8; j++) {
    __m256i even[T], odd[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      __m256i weights = (__m256i)load_int(w[t] + 64 * j);
      even[t] = _mm256_and_si256(weights, _mm256_set1_epi16(255));
      odd[t] = _mm256_srli_epi16(weights, 8);
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      __m256i both = broadcast4(q + (j * R + r) * 4);
      __m256i a = _mm256_srai_epi16(_mm256_slli_epi16(both, 8), 8), b = _mm256_srai_epi16(both, 8);
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) {
        __m256i part = _mm256_add_epi32(_mm256_madd_epi16(even[t], a), _mm256_madd_epi16(odd[t], b));
        total[r][t] = _mm256_add_epi32(total[r][t], part);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) dot[r][t] = _mm256_cvtepi32_ps(total[r][t]);
}

// 8 pairs of products of at most 15 * 128 stay within 16 bits, so widening is needed once a group.
template <int R, int T>
RL_INLINE void group_q4(const uint8_t* const (&w)[T], const uint8_t* q, F (&dot)[R][T]) {
  __m256i total[R][T] = {};
  const __m256i low = _mm256_set1_epi8(15);
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      __m256i both = (__m256i)load_int(w[t] + 64 * j);
      __m256i weights = _mm256_and_si256(both, low), next = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
#pragma GCC unroll 12
      for (int r = 0; r < R; r++) {
        __m256i part = _mm256_maddubs_epi16(weights, broadcast4(q + (2 * j * R + r) * 4));
        part = _mm256_add_epi16(part, _mm256_maddubs_epi16(next, broadcast4(q + ((2 * j + 1) * R + r) * 4)));
        total[r][t] = _mm256_add_epi16(total[r][t], part);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++)
      dot[r][t] = _mm256_cvtepi32_ps(_mm256_madd_epi16(total[r][t], _mm256_set1_epi16(1)));
}

#else

// All partial sums stay below 2^24, so float arithmetic is exact here; SSE2 has no 32-bit multiply.
template <int R, int T>
RL_INLINE void group_q8(const uint8_t* const (&w)[T], const uint8_t* q, F (&dot)[R][T]) {
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) dot[r][t] = splat(static_cast<float>(offset_of<R>(q, r)));
  const int8_t* a = reinterpret_cast<const int8_t*>(q);
  for (int j = 0; j < 8; j++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      I weights = load_int(w[t] + 64 * j);
#pragma GCC unroll 4
      for (int b = 0; b < 4; b++) {
        F one = to_float(weights >> (8 * b) & 255);
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) dot[r][t] += one * splat(static_cast<float>(a[(j * R + r) * 4 + b]));
      }
    }
}

template <int R, int T>
RL_INLINE void group_q4(const uint8_t* const (&w)[T], const uint8_t* q, F (&dot)[R][T]) {
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) dot[r][t] = splat(0.0f);
  const int8_t* a = reinterpret_cast<const int8_t*>(q);
  for (int j = 0; j < 4; j++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      I weights = load_int(w[t] + 64 * j);
#pragma GCC unroll 12
      for (int b = 0; b < 8; b++) {  // byte b % 4, low nibble first
        F one = to_float(weights >> (8 * (b % 4) + b / 4 * 4) & 15);
#pragma GCC unroll 12
        for (int r = 0; r < R; r++)
          dot[r][t] += one * splat(static_cast<float>(a[((2 * j + b / 4) * R + r) * 4 + b % 4]));
      }
    }
}

#endif

// scale * sum of the R rows of a panel's group.
template <int R>
RL_INLINE void weighted_sums(const uint8_t* q, float (&out)[16]) {
#if RL_LEVEL == 2
  const float* scales = reinterpret_cast<const float*>(q) + 8 * R;
  F offset = to_float((I)_mm512_maskz_loadu_epi32(first(R), scales + R));
  store(out, load_part(scales, R) * (offset * splat(-0x1p-7f)));
  asm("" : "+m"(out));  // really to memory: 12 broadcasts by permutation would fill the port that dots need
#else
  for (int r = 0; r < R; r++) out[r] = scale_of<R>(q, r) * (static_cast<float>(offset_of<R>(q, r)) * -0x1p-7f);
#endif
}

template <int R, int T, bool FETCH, bool Q4>
RL_INLINE void dot_groups(const Reads& from, const uint8_t* const (&tile)[T], const int (&lane)[T], F (&out)[R][T]) {
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) out[r][t] = splat(0.0f);
  constexpr int V = PLANES * R;  // high and low planes are lanes of their own
  const int64_t groups = from.columns / RL_GROUP;
  const uint8_t* q = from.panel;
  for (int64_t g = 0; g < groups; g++, q += R * PANEL_GROUP) {
    const int64_t scales = Q4 ? g * 320 : q8_scales(g), quants = Q4 ? g * 320 + 64 : q8_quants(g, groups);
    const uint8_t* w[T];
    F scale[T], dot[V][T];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      w[t] = tile[t] + quants + lane[t] * 4;
      scale[t] = load_half(reinterpret_cast<const uint16_t*>(tile[t] + scales) + lane[t]);
    }
#pragma GCC unroll 9
    for (int line = 0; line < (Q4 ? 320 : 544); line += 64) fetch<FETCH>(tile[0] + quants + line);
    if constexpr (Q4)
      group_q4<V, T>(w, q, dot);
    else
      group_q8<V, T>(w, q, dot);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) {
        out[r][t] = fma(scale[t] * splat(scale_of<V>(q, PLANES * r)), dot[PLANES * r][t], out[r][t]);
        out[r][t] = fma(scale[t] * splat(scale_of<V>(q, PLANES * r + 1)), dot[PLANES * r + 1][t], out[r][t]);
      }
    if constexpr (Q4) {
      float sums[16];
      weighted_sums<V>(q, sums);
      F least[T];
#pragma GCC unroll 4
      for (int t = 0; t < T; t++)
        least[t] = load_half(reinterpret_cast<const uint16_t*>(tile[t] + scales + 32) + lane[t]);
#pragma GCC unroll 12
      for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int t = 0; t < T; t++)
          out[r][t] = fma(least[t], splat(sums[PLANES * r] + sums[PLANES * r + 1]), out[r][t]);
    }
  }
}

// ---- blocks

struct Part {
  const RlWeight* weight;
  int64_t tile_bytes, tiles, column;  // column: where this part starts in the output row
};

struct Writes {
  float* out;
  const float* residual;  // nullptr: none; may be out
  int64_t stride;         // floats
};

template <int FORMAT, int R, int T, bool FETCH>
void block(const Reads& from, const Part& part, int64_t unit, const Writes& to) {
  const uint8_t* tile[T];
  int lane[T];
#pragma GCC unroll 12
  for (int t = 0; t < T; t++) {
    const int64_t row = (unit + t) * LANES;
    tile[t] = static_cast<const uint8_t*>(part.weight->data) + row / RL_TILE_ROWS * part.tile_bytes;
    lane[t] = static_cast<int>(row % RL_TILE_ROWS);
  }
  F result[R][T];
  if constexpr (FORMAT == RL_F32)
    dot_f32<R, T, FETCH>(from, tile, lane, result);
  else if constexpr (FORMAT == RL_BF16)
    dot_bf16<R, T, FETCH>(from, tile, lane, result);
  else
    dot_groups<R, T, FETCH, FORMAT == RL_Q4_1>(from, tile, lane, result);
#pragma GCC unroll 12
  for (int t = 0; t < T; t++) {
    const int64_t row = (unit + t) * LANES, left = part.weight->rows - row;
    if (left <= 0) break;
    const int n = left < LANES ? static_cast<int>(left) : LANES;
    F bias = {};
    if (part.weight->bias) bias = n < LANES ? load_part(part.weight->bias + row, n) : load(part.weight->bias + row);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      F y = result[r][t];
      const int64_t at = r * to.stride + part.column + row;
      if (part.weight->bias) y = y + bias;
      if (to.residual) y = y + (n < LANES ? load_part(to.residual + at, n) : load(to.residual + at));
      if (n < LANES)
        store_part(to.out + at, y, n);
      else
        store(to.out + at, y);
    }
  }
}

typedef void (*Block)(const Reads&, const Part&, int64_t unit, const Writes&);

// Blocks by format and number of rows. A full panel of integers is one of many: its tile is in the cache already.
struct Blocks {
  Block at[4][PANEL];
  int units[PANEL];

  constexpr Blocks() : at{}, units{} { fill<1>(); }
  template <int R>
  constexpr void fill() {
    units[R - 1] = ridgeline::RL_ISA::units<R>();
    at[RL_F32][R - 1] = block<RL_F32, R, ridgeline::RL_ISA::units<R>(), true>;
    at[RL_BF16][R - 1] = block<RL_BF16, R, ridgeline::RL_ISA::units<R>(), true>;
    at[RL_Q8_0][R - 1] = block<RL_Q8_0, R, ridgeline::RL_ISA::units<R>(), R < PANEL>;
    at[RL_Q4_1][R - 1] = block<RL_Q4_1, R, ridgeline::RL_ISA::units<R>(), R < PANEL>;
    if constexpr (R < PANEL) fill<R + 1>();
  }
};
constexpr Blocks BLOCKS;

struct Linear {
  const Step& step;
  const RlInstr& in;
  Part parts[3];
  int64_t tiles, bytes, rows;

  Reads reads(int64_t row) const {
    return {in.in >= 0 ? floats(step, in.in) + row * in.width_in : nullptr,
            in.in_quant >= 0 ? panel_at(step, in.in_quant, in.width_in, row) : nullptr, in.width_in, in.width_in};
  }
  Writes writes(int64_t row) const {
    return {floats(step, in.out) + row * in.width_out,
            in.in2 >= 0 ? floats(step, in.in2) + row * in.width_out : nullptr, in.width_out};
  }
};

struct Rows {
  int64_t begin, end;
};

void run_rows(const Linear& job, const Part& part, int64_t unit, int64_t unit_count, Rows rows) {
  for (int64_t row = rows.begin; row < rows.end; row += PANEL) {
    const int64_t count = rows.end - row < PANEL ? rows.end - row : PANEL;
    const Reads from = job.reads(row);
    const Writes to = job.writes(row);
    for (int64_t u = unit; u < unit + unit_count; u += BLOCKS.units[count - 1])
      BLOCKS.at[part.weight->format][count - 1](from, part, u, to);
  }
}

// Rows x tiles [first, last) of one part.
void run(const Linear& job, const Part& part, int64_t first, int64_t last, Rows rows) {
  int64_t tile = first;
#if RL_LEVEL == 2
  if (part.weight->format <= RL_BF16 && rows.end - rows.begin > PANEL) {
    const Block hot = part.weight->format == RL_F32 ? block<RL_F32, HOT_ROWS, HOT_UNITS, false>
                                                    : block<RL_BF16, HOT_ROWS, HOT_UNITS, false>;
    for (; tile + HOT_UNITS <= last; tile += HOT_UNITS) {
      int64_t row = rows.begin;
      for (; row + HOT_ROWS <= rows.end; row += HOT_ROWS) hot(job.reads(row), part, tile, job.writes(row));
      run_rows(job, part, tile, HOT_UNITS, {row, rows.end});
    }
  }
#endif
  for (; tile < last; tile++) run_rows(job, part, tile * UNITS_IN_TILE, UNITS_IN_TILE, rows);
}

// Few rows: every thread streams one contiguous range of bytes, equal to within a tile.
void run_static(const Linear& job, const Worker& worker) {
  const int64_t begin = job.bytes * worker.thread / worker.threads;
  const int64_t end = job.bytes * (worker.thread + 1) / worker.threads;
  int64_t start = 0;
  for (int p = 0; p < job.in.parts; p++) {
    const Part& part = job.parts[p];
    const int64_t half = part.tile_bytes / 2;
    auto tile_at = [&](int64_t byte) {
      int64_t tile = (byte - start + half) / part.tile_bytes;
      return byte <= start ? 0 : tile > part.tiles ? part.tiles : tile;
    };
    run(job, part, tile_at(begin), worker.thread + 1 == worker.threads ? part.tiles : tile_at(end), {0, job.rows});
    start += part.tiles * part.tile_bytes;
  }
}

// Many rows: tickets of a few tiles x CHUNK_ROWS rows.
void run_dynamic(const Linear& job, Worker& worker) {
  int64_t step = job.tiles / (worker.threads * 8) / 2 * 2;
  step = step < 2 ? 2 : step > 16 ? 16 : step;
  for (int64_t ticket = take(worker);; ticket = take(worker)) {
    int64_t item = ticket;
    int p = 0;
    for (; p < job.in.parts; p++) {
      const int64_t items = (job.parts[p].tiles + step - 1) / step * ((job.rows + CHUNK_ROWS - 1) / CHUNK_ROWS);
      if (item < items) break;
      item -= items;
    }
    if (p == job.in.parts) return;
    const Part& part = job.parts[p];
    const int64_t spans = (part.tiles + step - 1) / step;
    const int64_t first = item % spans * step, begin = item / spans * CHUNK_ROWS;
    run(job, part, first, first + step < part.tiles ? first + step : part.tiles,
        {begin, begin + CHUNK_ROWS < job.rows ? begin + CHUNK_ROWS : job.rows});
  }
}

}  // namespace

void linear(Worker& worker, const Step& step, const RlInstr& in) {
  Linear job{step, in, {}, 0, 0, row_count(step, in)};
  int64_t column = 0;
  for (int p = 0; p < in.parts; p++) {
    const RlWeight& weight = in.weight[p];
    const int64_t tiles = (weight.rows + RL_TILE_ROWS - 1) / RL_TILE_ROWS;
    job.parts[p] = Part{&weight, tile_bytes(weight.format, weight.columns), tiles, column};
    job.tiles += tiles;
    job.bytes += tiles * job.parts[p].tile_bytes;
    column += weight.rows;
  }
  if (job.rows <= PANEL)
    run_static(job, worker);
  else
    run_dynamic(job, worker);
  if (in.out_quant < 0) return;
  barrier(worker);  // groups of 32 columns span tiles
  int64_t begin, end;
  share(job.rows, worker, begin, end);
  for (int64_t row = begin; row < end; row++) finish_row(step, in, row, floats(step, in.out) + row * in.width_out);
}

}  // namespace ridgeline::RL_ISA
