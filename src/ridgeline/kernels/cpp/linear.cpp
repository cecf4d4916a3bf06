// linear: out[:, part] = in . weight[part]^T + bias + residual, on the stored bits.
// Idea: a block of R rows (tokens) x T units (LANES weight rows each) keeps its sums in registers while the packed tile
// streams by once. Promise 1: for one output the sequence of operations over k is the same in every R x T variant
//   f32, bf16:  two sums (even k, odd k), added at the end
//   q8_0, q4_1: per group of 32 an exact integer dot, then sum = fma(d_w * d_a, dot, sum); q4_1 adds fma(m_w, d_a * sum q, .)
// so neither the number of rows, nor threads, nor tiles beside it can change a bit.
// Cold blocks (few rows: the weights come from memory once) walk one tile at a time and prefetch; hot blocks (many rows)
// use two units a block. Measured numbers: docs/findings (command: scripts/measure-kernels).
#include "quantise.h"

namespace ridgeline::RL_ISA {
namespace {

#if RL_LEVEL == 2
constexpr int COLD_ROWS = 6, COLD_UNITS = 1, HOT_ROWS = 6, HOT_UNITS = 2;
#elif RL_LEVEL == 1
constexpr int COLD_ROWS = 2, COLD_UNITS = 2, HOT_ROWS = 4, HOT_UNITS = 1;
#else
constexpr int COLD_ROWS = 1, COLD_UNITS = 4, HOT_ROWS = 2, HOT_UNITS = 2;
#endif
constexpr int UNITS_IN_TILE = RL_TILE_ROWS / LANES;
constexpr int FETCH_BYTES = 6144;  // KERNELS.md §2: 4-8 KB ahead gives +10 %
constexpr int CHUNK_ROWS = 192;    // rows of a work item: their activations stay in the second cache

// What a block reads: R rows of activations, T units of one part.
struct Reads {
  const float* x;            // f32 activations of the first row
  int64_t x_stride;          // floats
  const uint8_t* q;          // quantised activations of the first row
  int64_t q_stride;          // bytes
  int64_t columns;
};

template <int T, bool FETCH>
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
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      const float* w = reinterpret_cast<const float*>(tile[t]) + k * 16 + lane[t];
      first_weight[t] = load(w);
      second_weight[t] = load(w + 16);
    }
    fetch<T, FETCH>(tile[0] + k * 64);
    fetch<T, FETCH>(tile[0] + k * 64 + 64);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      F a = splat(x[r * from.x_stride + k]), b = splat(x[r * from.x_stride + k + 1]);
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) {
        even[r][t] = fma(a, first_weight[t], even[r][t]);
        odd[r][t] = fma(b, second_weight[t], odd[r][t]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      if (k < from.columns) {
        const float* w = reinterpret_cast<const float*>(tile[t]) + k * 16 + lane[t];
        even[r][t] = fma(splat(x[r * from.x_stride + k]), load(w), even[r][t]);
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
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) load_pairs(tile[t] + k * 32 + lane[t] * 4, first_weight[t], second_weight[t]);
    fetch<T, FETCH>(tile[0] + k * 32);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      F a = splat(x[r * from.x_stride + k]), b = splat(x[r * from.x_stride + k + 1]);
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) {
        even[r][t] = fma(a, first_weight[t], even[r][t]);
        odd[r][t] = fma(b, second_weight[t], odd[r][t]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      if (k < from.columns) {
        F w, none;
        load_pairs(tile[t] + k * 32 + lane[t] * 4, w, none);
        even[r][t] = fma(splat(x[r * from.x_stride + k]), w, even[r][t]);
      }
      out[r][t] = even[r][t] + odd[r][t];
    }
  }
}

// ---- integer groups: group_q8 and group_q4 give the exact dot of 32 weights and 32 activations as a float.
// w: the group's first weight byte of this unit (stored + 128 for q8); q: the first row's activations of this group.

#if RL_LEVEL == 2

// GCC 12 does not fold a broadcast into vpdpbusd by itself.
RL_INLINE void dot4(I& sum, I weights, const int8_t* q) {
  typedef int Four __attribute__((may_alias));
  asm("vpdpbusd %1%{1to16%}, %2, %0" : "+v"(sum) : "m"(*reinterpret_cast<const Four*>(q)), "v"(weights));
}

template <int R, int T>
RL_INLINE void group_q8(const uint8_t* const (&w)[T], const int8_t* q, int64_t stride, const int (&sums)[R],
                        F (&dot)[R][T]) {
  I total[R][T];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) total[r][t] = splat_int(-128 * sums[r]);
#pragma GCC unroll 8
  for (int j = 0; j < 8; j++) {
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      I weights = load_int(w[t] + 64 * j);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) dot4(total[r][t], weights, q + r * stride + 4 * j);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) dot[r][t] = to_float(total[r][t]);
}

template <int R, int T>
RL_INLINE void group_q4(const uint8_t* const (&w)[T], const int8_t* q, int64_t stride, F (&dot)[R][T]) {
  I total[R][T] = {};
  const I low = splat_int(0x0f0f0f0f);
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      I both = load_int(w[t] + 64 * j);
      I weights = both & low;
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) dot4(total[r][t], weights, q + r * stride + 8 * j);
      weights = (both >> 4) & low;
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) dot4(total[r][t], weights, q + r * stride + 8 * j + 4);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) dot[r][t] = to_float(total[r][t]);
}

#elif RL_LEVEL == 1

RL_INLINE __m256i broadcast4(const int8_t* q) {
  int four;
  memcpy(&four, q, 4);
  return _mm256_set1_epi32(four);
}

// maddubs would saturate on 8-bit weights: widen to 16 bits, even and odd bytes apart.
template <int R, int T>
RL_INLINE void group_q8(const uint8_t* const (&w)[T], const int8_t* q, int64_t stride, const int (&sums)[R],
                        F (&dot)[R][T]) {
  __m256i total[R][T];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) total[r][t] = _mm256_set1_epi32(-128 * sums[r]);
#pragma GCC unroll 8
  for (int j = 0; j < 8; j++) {
    __m256i even[T], odd[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      __m256i weights = (__m256i)load_int(w[t] + 64 * j);
      even[t] = _mm256_and_si256(weights, _mm256_set1_epi16(255));
      odd[t] = _mm256_srli_epi16(weights, 8);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      __m256i both = broadcast4(q + r * stride + 4 * j);
      __m256i a = _mm256_srai_epi16(_mm256_slli_epi16(both, 8), 8), b = _mm256_srai_epi16(both, 8);
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) {
        __m256i part = _mm256_add_epi32(_mm256_madd_epi16(even[t], a), _mm256_madd_epi16(odd[t], b));
        total[r][t] = _mm256_add_epi32(total[r][t], part);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) dot[r][t] = _mm256_cvtepi32_ps(total[r][t]);
}

// 8 products pairs of at most 2 * 15 * 128 stay within 16 bits, so widening is needed once a group.
template <int R, int T>
RL_INLINE void group_q4(const uint8_t* const (&w)[T], const int8_t* q, int64_t stride, F (&dot)[R][T]) {
  __m256i total[R][T] = {};
  const __m256i low = _mm256_set1_epi8(15);
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      __m256i both = (__m256i)load_int(w[t] + 64 * j);
      __m256i weights = _mm256_and_si256(both, low), next = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        __m256i part = _mm256_maddubs_epi16(weights, broadcast4(q + r * stride + 8 * j));
        part = _mm256_add_epi16(part, _mm256_maddubs_epi16(next, broadcast4(q + r * stride + 8 * j + 4)));
        total[r][t] = _mm256_add_epi16(total[r][t], part);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++)
      dot[r][t] = _mm256_cvtepi32_ps(_mm256_madd_epi16(total[r][t], _mm256_set1_epi16(1)));
}

#else

// All partial sums stay below 2^24, so float arithmetic is exact here; SSE2 has no 32-bit multiply.
template <int R, int T>
RL_INLINE void group_q8(const uint8_t* const (&w)[T], const int8_t* q, int64_t stride, const int (&sums)[R],
                        F (&dot)[R][T]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) dot[r][t] = splat(static_cast<float>(-128 * sums[r]));
  for (int j = 0; j < 8; j++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      I weights = load_int(w[t] + 64 * j);
#pragma GCC unroll 4
      for (int b = 0; b < 4; b++) {
        F one = to_float(weights >> (8 * b) & 255);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) dot[r][t] += one * splat(static_cast<float>(q[r * stride + 4 * j + b]));
      }
    }
}

template <int R, int T>
RL_INLINE void group_q4(const uint8_t* const (&w)[T], const int8_t* q, int64_t stride, F (&dot)[R][T]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) dot[r][t] = splat(0.0f);
  for (int j = 0; j < 4; j++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      I weights = load_int(w[t] + 64 * j);
#pragma GCC unroll 8
      for (int b = 0; b < 8; b++) {  // byte b % 4, low nibble first
        F one = to_float(weights >> (8 * (b % 4) + b / 4 * 4) & 15);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) dot[r][t] += one * splat(static_cast<float>(q[r * stride + 8 * j + b]));
      }
    }
}

#endif

template <int R, int T, bool FETCH, bool Q4>
RL_INLINE void dot_groups(const Reads& from, const uint8_t* const (&tile)[T], const int (&lane)[T], F (&out)[R][T]) {
  constexpr int HEAD = Q4 ? 64 : 32, BYTES = Q4 ? 320 : 544;
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) out[r][t] = splat(0.0f);
  const int64_t groups = from.columns / RL_GROUP;
  const int8_t* q = reinterpret_cast<const int8_t*>(from.q);
  const uint8_t* scales = from.q + from.columns;
  const uint8_t* sums = scales + groups * 4;
  for (int64_t g = 0; g < groups; g++) {
    const uint8_t* w[T];
    F scale[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
      w[t] = tile[t] + g * BYTES + HEAD + lane[t] * 4;
      scale[t] = load_half(reinterpret_cast<const uint16_t*>(tile[t] + g * BYTES) + lane[t]);
    }
#pragma GCC unroll 9
    for (int line = 0; line < BYTES; line += 64) fetch<T, FETCH>(tile[0] + g * BYTES + line);
    F dot[R][T];
    int total[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) total[r] = reinterpret_cast<const int32_t*>(sums + r * from.q_stride)[g];
    if constexpr (Q4)
      group_q4<R, T>(w, q + g * RL_GROUP, from.q_stride, dot);
    else
      group_q8<R, T>(w, q + g * RL_GROUP, from.q_stride, total, dot);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const float a = reinterpret_cast<const float*>(scales + r * from.q_stride)[g];
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) out[r][t] = fma(scale[t] * splat(a), dot[r][t], out[r][t]);
    }
    if constexpr (Q4) {
      F least[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; t++)
        least[t] = load_half(reinterpret_cast<const uint16_t*>(tile[t] + g * BYTES + 32) + lane[t]);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const float a = reinterpret_cast<const float*>(scales + r * from.q_stride)[g] * static_cast<float>(total[r]);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) out[r][t] = fma(least[t], splat(a), out[r][t]);
      }
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
#pragma GCC unroll 8
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
#pragma GCC unroll 8
  for (int t = 0; t < T; t++) {
    const int64_t row = (unit + t) * LANES, left = part.weight->rows - row;
    if (left <= 0) break;
    const int n = left < LANES ? static_cast<int>(left) : LANES;
    F bias = {};
    if (part.weight->bias) bias = n < LANES ? load_part(part.weight->bias + row, n) : load(part.weight->bias + row);
#pragma GCC unroll 8
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

template <int FORMAT, int R, int T, bool FETCH, int ROWS>
constexpr Block pick() {
  if constexpr (R <= ROWS)
    return block<FORMAT, R, T, FETCH>;
  else
    return nullptr;
}

template <int T, bool FETCH, int ROWS>
struct Variants {
  Block at[4][6];  // [format][rows - 1]
  constexpr Variants() : at{} {
    fill<RL_F32>();
    fill<RL_BF16>();
    fill<RL_Q8_0>();
    fill<RL_Q4_1>();
  }
  template <int FORMAT>
  constexpr void fill() {
    at[FORMAT][0] = pick<FORMAT, 1, T, FETCH, ROWS>();
    at[FORMAT][1] = pick<FORMAT, 2, T, FETCH, ROWS>();
    at[FORMAT][2] = pick<FORMAT, 3, T, FETCH, ROWS>();
    at[FORMAT][3] = pick<FORMAT, 4, T, FETCH, ROWS>();
    at[FORMAT][4] = pick<FORMAT, 5, T, FETCH, ROWS>();
    at[FORMAT][5] = pick<FORMAT, 6, T, FETCH, ROWS>();
  }
};

constexpr Variants<COLD_UNITS, true, COLD_ROWS> COLD;
constexpr Variants<HOT_UNITS, false, HOT_ROWS> HOT;
constexpr Variants<1, false, HOT_ROWS> HOT_ODD;  // the last unit of a part

struct Linear {
  const Step& step;
  const RlInstr& in;
  Part parts[3];
  int64_t tiles, bytes, rows;
};

// Rows [begin, end) x tiles [first, last) of one part.
void run(const Linear& job, const Part& part, int64_t first, int64_t last, int64_t begin, int64_t end) {
  const RlInstr& in = job.in;
  const int format = part.weight->format;
  const bool cold = end - begin <= COLD_ROWS;
  const int height = cold ? COLD_ROWS : HOT_ROWS, width = cold ? COLD_UNITS : HOT_UNITS;
  Reads from{};
  from.columns = in.width_in;
  from.x_stride = in.width_in;
  from.q_stride = quant_stride(in.width_in);
  const int64_t units = last * UNITS_IN_TILE;
  for (int64_t unit = first * UNITS_IN_TILE; unit < units;) {
    const bool whole = unit + width <= units;
    const Block* variants = whole ? (cold ? COLD.at : HOT.at)[format] : HOT_ODD.at[format];
    for (int64_t row = begin; row < end; row += height) {
      const int64_t count = end - row < height ? end - row : height;
      if (in.in >= 0) from.x = floats(job.step, in.in) + row * from.x_stride;
      if (in.in_quant >= 0) from.q = job.step.arena + in.in_quant + row * from.q_stride;
      Writes to{floats(job.step, in.out) + row * in.width_out, nullptr, in.width_out};
      if (in.in2 >= 0) to.residual = floats(job.step, in.in2) + row * in.width_out;
      variants[count - 1](from, part, unit, to);
    }
    unit += whole ? width : 1;
  }
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
    run(job, part, tile_at(begin), worker.thread + 1 == worker.threads ? part.tiles : tile_at(end), 0, job.rows);
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
    run(job, part, first, first + step < part.tiles ? first + step : part.tiles, begin,
        begin + CHUNK_ROWS < job.rows ? begin + CHUNK_ROWS : job.rows);
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
  if (job.rows <= 2 * HOT_ROWS)
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
