// linear: out[:, part] = in . weight[part]^T + bias + residual, on the stored bits.
// Idea: a block of R rows (tokens) x T units (LANES weight rows each) keeps its sums in registers while the packed tile
// streams by once. Promise 1: for one output the sequence of operations over k is the same in every R x T variant
//   e4m3, e5m2: two sums for each scale, then sum = fma(scale, even + odd, sum)
//   f32, bf16:  two sums (even k, odd k), added at the end
//   q8_0, q4_1: per group of 32 an exact integer dot of each plane (high, low), each then sum = fma(d_w * d_a, dot, sum);
//               q4_1 adds fma(m_w, sum of both planes' d_a * sum q, .); likewise q4_0, q5_0 (whose dot is of the signed
//               weights) and q4_k (d_w = d * scale, m_w = -dmin * minimum); q6_k has a dot and a d_w for each sixteen;
//               int8, int4 (with zeros) are q8_0 and q4_0 (q4_1, m_w = -d_w * zero) under scales that last longer
// so neither the number of rows, nor threads, nor tiles beside it can change a bit.
// A block of few rows streams one tile and prefetches it (the weights come from memory once: one stream at a time beats
// two, KERNELS.md §2); integer blocks take up to PANEL rows of one unit, float ones up to HOT_ROWS of two.
// Measured numbers: docs/findings (command: ridgeline doctor, bench/).
// size: one operator; every instruction set's inner loops stand beside each other to be compared
#include "dots.h"
#include "linear.h"

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

// ---- integer groups: group_q8 (and dot_quads of dots.h) give the exact dot of 32 weights and 32 activations as a float.
// w: the group's first weight byte of each unit (stored + 128 for q8); q: the panel's group, whose last R words are the
// offsets -128 * sum that undo the + 128.

#if RL_LEVEL == 2

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

#elif RL_LEVEL == 1

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

// out = sum over groups of scale * (dot of each plane, high first) and, where a format has them, minima * sums.
template <int R, int T>
RL_INLINE void accumulate(const F (&scale)[T], const uint8_t* q, const F (&dot)[PLANES * R][T], F (&out)[R][T]) {
  constexpr int V = PLANES * R;  // high and low planes are lanes of their own
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++)
#pragma GCC unroll 2
      for (int v = PLANES * r; v < PLANES * (r + 1); v++)
        out[r][t] = fma(scale[t] * splat(scale_of<V>(q, v)), dot[v][t], out[r][t]);
}

template <int R, int T>
RL_INLINE void accumulate_least(const F (&least)[T], const uint8_t* q, F (&out)[R][T]) {
  float sums[16];
  weighted_sums<PLANES * R>(q, sums);
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++)
      out[r][t] = fma(least[t], splat(sums[PLANES * r] + sums[PLANES * r + 1]), out[r][t]);
}

// One group of a format whose groups have one scale. tile: at the group's block of each unit.
template <int FORMAT, int R, int T, bool FETCH>
RL_INLINE void add_group(const uint8_t* const (&tile)[T], const int (&lane)[T], int64_t g, int64_t groups,
                         const uint8_t* q, F (&out)[R][T]) {
  constexpr int V = PLANES * R;
  constexpr int BODY = FORMAT == RL_Q8_0 ? Q8_0_BODY : FORMAT == RL_Q5_0 ? Q5_0_BODY : Q4_0_BODY;
  constexpr int STORED = FORMAT == RL_Q4_1 ? 320 : FORMAT == RL_Q4_K ? Q4_K_BODY / 8 : BODY + 32;
  const int64_t block = FORMAT == RL_Q4_K ? (g >> 3) * Q4_K_BODY : g * 320;
  const int64_t scales = FORMAT == RL_Q4_1 || FORMAT == RL_Q4_K ? block : pair_scales(g, BODY);
  const int64_t body = FORMAT == RL_Q4_1   ? block + 64
                       : FORMAT == RL_Q4_K ? block + Q4_K_NIBBLES + (g & 7) * Q4_K_GROUP
                                           : pair_body(g, groups, BODY);
  const uint8_t *w[T], *nibbles[T];
  F scale[T], least[T], dot[V][T];
#pragma GCC unroll 4
  for (int t = 0; t < T; t++) {
    w[t] = tile[t] + body + lane[t] * 4;
    nibbles[t] = FORMAT == RL_Q5_0 ? w[t] + Q5_0_NIBBLES : w[t];
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(tile[t] + scales) + lane[t];
    if constexpr (FORMAT == RL_Q4_K) {
      q4_k_factors(tile[t] + block, lane[t], static_cast<int>(g & 7), scale[t], least[t]);
      least[t] = -least[t];
    } else {
      scale[t] = load_half(halves);
      if constexpr (FORMAT == RL_Q4_1) least[t] = load_half(halves + 16);
    }
  }
#pragma GCC unroll 9
  for (int line = 0; line < STORED; line += 64) fetch<FETCH>(tile[0] + body + line);
  if constexpr (FORMAT == RL_Q8_0) {
    group_q8<V, T>(w, q, dot);
  } else {
    int32_t start[16];
    if constexpr (zero_of(FORMAT) != 0) offsets<FORMAT, V>(q, start);
    dot_quads<FORMAT, V, T, 0, 8>(nibbles, w, q, start, dot);
  }
  accumulate<R, T>(scale, q, dot, out);
  if constexpr (FORMAT == RL_Q4_1 || FORMAT == RL_Q4_K) accumulate_least<R, T>(least, q, out);
}

// One group of q6_k: two scales, the first sixteen weights first.
template <int R, int T, bool FETCH>
RL_INLINE void add_halves(const uint8_t* const (&tile)[T], const int (&lane)[T], int64_t g, int64_t groups,
                          const uint8_t* q, F (&out)[R][T]) {
  constexpr int V = PLANES * R;
  const int64_t block = g >> 3, body = pair_body(block, groups >> 3, Q6_K_BODY);
  const int group = static_cast<int>(g & 7);
  const uint8_t *nibbles[T], *high[T];
  F scale[T], dot[V][T], d[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; t++) {
    d[t] = load_half(reinterpret_cast<const uint16_t*>(tile[t] + pair_scales(block, Q6_K_BODY)) + lane[t]);
    nibbles[t] = tile[t] + body + Q6_K_NIBBLES + group * Q6_K_GROUP + lane[t] * 4;
    high[t] = nibbles[t] + Q6_K_HIGH;
  }
#pragma GCC unroll 9
  for (int line = 0; line < Q6_K_GROUP + 64; line += 64) fetch<FETCH>(nibbles[0] + line);
  int32_t first_half[16], second_half[16];
  half_offsets<V>(q, first_half, second_half);
#pragma GCC unroll 2
  for (int half = 0; half < 2; half++) {
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) scale[t] = q6_k_factor(d[t], tile[t] + body + lane[t] * 4, group, half);
    if (half == 0)
      dot_quads<RL_Q6_K, V, T, 0, 4>(nibbles, high, q, first_half, dot);
    else
      dot_quads<RL_Q6_K, V, T, 4, 8>(nibbles, high, q, second_half, dot);
    accumulate<R, T>(scale, q, dot, out);
  }
}

template <int FORMAT, int R, int T, bool FETCH>
RL_INLINE void dot_groups(const Reads& from, const uint8_t* const (&tile)[T], const int (&lane)[T], F (&out)[R][T]) {
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) out[r][t] = splat(0.0f);
  const int64_t groups = from.columns / RL_GROUP;
  const uint8_t* q = from.panel;
  for (int64_t g = 0; g < groups; g++, q += R * PANEL_GROUP) {
    if constexpr (FORMAT == RL_Q6_K)
      add_halves<R, T, FETCH>(tile, lane, g, groups, q, out);
    else
      add_group<FORMAT, R, T, FETCH>(tile, lane, g, groups, q, out);
  }
}

// ---- affine and float8 kinds: their parameters stand behind all tiles

struct Part {
  const RlWeight* weight;
  int64_t tile_bytes, tiles, column;  // column: where this part starts in the output row
};

RL_INLINE F load_scale(int format, const uint8_t* at) {
  if (option_of(format) == SCALE_F32) return load(reinterpret_cast<const float*>(at));
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(at);
  return option_of(format) == SCALE_F16 ? load_half(halves) : load_bf16(halves);
}

// sum of scale * (code - zero) * x: per 32 columns as in add_group, the zero as q4_1's minimum.
template <int KIND, int R, int T, bool FETCH>
RL_INLINE void dot_affine(const Reads& from, const Part& part, int64_t unit, const uint8_t* const (&tile)[T],
                          const int (&lane)[T], F (&out)[R][T]) {
  constexpr int V = PLANES * R, BODY = is_four(KIND) ? 256 : 512;
  const int format = part.weight->format;
  const int64_t group = group_columns(format, from.columns), groups = group_count(format, from.columns);
  const int64_t row_bytes = RL_TILE_ROWS * scale_bytes(format), own = tile_parameter_bytes(format, from.columns);
  const uint8_t *scales[T], *zeros[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; t++) {
    const int64_t index = (unit + t) * LANES / RL_TILE_ROWS;
    scales[t] = static_cast<const uint8_t*>(part.weight->data) + part.tiles * part.tile_bytes + index * own;
    zeros[t] = scales[t] + groups * row_bytes + lane[t];
    scales[t] += lane[t] * scale_bytes(format);
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) out[r][t] = splat(0.0f);
  const uint8_t* q = from.panel;
  for (int64_t g = 0, k = 0; g < groups; g++) {
    F scale[T], least[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      scale[t] = load_scale(format, scales[t] + g * row_bytes);
      if constexpr (has_zero(KIND)) {
        I zero = is_four(KIND) ? load_bytes(zeros[t] + (g >> 1) * RL_TILE_ROWS) >> (4 * (g & 1)) & splat_int(15)
                               : load_bytes(zeros[t] + g * RL_TILE_ROWS) - splat_int(128);
        least[t] = -(scale[t] * to_float(zero));
      }
    }
    const int64_t end = k + group < from.columns ? k + group : from.columns;
    for (; k < end; k += RL_GROUP, q += R * PANEL_GROUP) {
      const uint8_t* w[T];
      F dot[V][T];
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) w[t] = tile[t] + k / RL_GROUP * BODY + lane[t] * 4;
#pragma GCC unroll 8
      for (int line = 0; line < BODY; line += 64) fetch<FETCH>(w[0] + line);
      if constexpr (is_four(KIND)) {
        constexpr int LIKE = has_zero(KIND) ? RL_Q4_1 : RL_Q4_0;
        int32_t start[16];
        if constexpr (!has_zero(KIND)) offsets<LIKE, V>(q, start);
        dot_quads<LIKE, V, T, 0, 8>(w, w, q, start, dot);
      } else {
        group_q8<V, T>(w, q, dot);
      }
      accumulate<R, T>(scale, q, dot, out);
      if constexpr (has_zero(KIND)) accumulate_least<R, T>(least, q, out);
    }
  }
}

// Column j of four as a float. Without subnormal arithmetic, which is slow: those of the eight bits are a difference of two
// normal numbers. Infinity and NaN are refused where weights are loaded.
template <int KIND>
RL_INLINE F float8(I words, int j) {
  constexpr int SHIFT = KIND == RL_E4M3 ? 20 : 21, BIAS = (KIND == RL_E4M3 ? 120 : 112) << 23;
  const I code = words >> (8 * j), size = (code & 127) << SHIFT, sign = code << 24 & static_cast<int>(0x80000000u);
  const F normal = bits(size + BIAS), small = bits(size + (BIAS + (1 << 23))) - bits(splat_int(BIAS + (1 << 23)));
  const I is_small = size < splat_int(1 << 23);
  return bits(((I)small & is_small) | ((I)normal & ~is_small) | sign);
}

// Two sums (even k, odd k) for each stretch of columns under one scale.
template <int KIND, int R, int T, bool FETCH>
RL_INLINE void dot_float8(const Reads& from, const Part& part, int64_t unit, const uint8_t* const (&tile)[T],
                          const int (&lane)[T], F (&out)[R][T]) {
  const int by = option_of(part.weight->format);
  const uint8_t* behind = static_cast<const uint8_t*>(part.weight->data) + part.tiles * part.tile_bytes;
  const float* scales = reinterpret_cast<const float*>(behind);
  const int64_t across = (from.columns + RL_EDGE - 1) / RL_EDGE, stretch = by == UNIT_BLOCK ? RL_EDGE : from.columns;
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) out[r][t] = splat(0.0f);
  for (int64_t begin = 0; begin < from.columns; begin += stretch) {
    const int64_t end = begin + stretch < from.columns ? begin + stretch : from.columns;
    F even[R][T] = {}, odd[R][T] = {};
    for (int64_t k = begin; k < end; k += 4) {
      const int count = end - k < 4 ? static_cast<int>(end - k) : 4;
      fetch<FETCH>(tile[0] + k * 16);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        if (j == count) break;
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
          F weight = float8<KIND>(load_int(tile[t] + k * 16 + lane[t] * 4), j);
#pragma GCC unroll 12
          for (int r = 0; r < R; r++) {
            F& sum = j % 2 ? odd[r][t] : even[r][t];
            sum = fma(splat(from.x[r * from.stride + k + j]), weight, sum);
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      const int64_t row = (unit + t) * LANES;
      F scale = by == UNIT_ROW      ? load(scales + row)
                : by == UNIT_TENSOR ? splat(scales[0])
                                    : splat(row < part.weight->rows ? scales[row / RL_EDGE * across + begin / RL_EDGE] : 0);
#pragma GCC unroll 12
      for (int r = 0; r < R; r++) out[r][t] = fma(scale, even[r][t] + odd[r][t], out[r][t]);
    }
  }
}

// ---- blocks

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
  else if constexpr (is_affine(FORMAT))
    dot_affine<FORMAT, R, T, FETCH>(from, part, unit, tile, lane, result);
  else if constexpr (is_float8(FORMAT))
    dot_float8<FORMAT, R, T, FETCH>(from, part, unit, tile, lane, result);
  else
    dot_groups<FORMAT, R, T, FETCH>(from, tile, lane, result);
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
  Block at[RL_FORMAT_END][PANEL];
  int units[PANEL];

  constexpr Blocks() : at{}, units{} { fill<1>(); }
  template <int R>
  constexpr void fill() {
    units[R - 1] = ridgeline::RL_ISA::units<R>();
    at[RL_F32][R - 1] = block<RL_F32, R, ridgeline::RL_ISA::units<R>(), true>;
    at[RL_BF16][R - 1] = block<RL_BF16, R, ridgeline::RL_ISA::units<R>(), true>;
    at[RL_E4M3][R - 1] = block<RL_E4M3, R, ridgeline::RL_ISA::units<R>(), true>;
    at[RL_E5M2][R - 1] = block<RL_E5M2, R, ridgeline::RL_ISA::units<R>(), true>;
    fill_integer<R, RL_Q8_0, RL_Q4_1, RL_Q4_0, RL_Q5_0, RL_Q4_K, RL_Q6_K>();
    fill_integer<R, RL_INT8, RL_INT8_ZERO, RL_INT4, RL_INT4_ZERO>();
    if constexpr (R < PANEL) fill<R + 1>();
  }
  template <int R, int... FORMATS>
  constexpr void fill_integer() {
    ((at[FORMATS][R - 1] = block<FORMATS, R, ridgeline::RL_ISA::units<R>(), R < PANEL>), ...);
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
      BLOCKS.at[kind_of(part.weight->format)][count - 1](from, part, u, to);
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

// For experts.cpp: tiles x rows of one matrix, read and written where `in` says, with the bits of `linear`. Panels of the
// quantised input begin at rows.begin.
void linear_block(const Step& step, const RlInstr& in, const RlWeight& weight, int64_t column, Range tiles, Range rows) {
  const Linear job{step, in, {}, 0, 0, 0};
  const int64_t count = (weight.rows + RL_TILE_ROWS - 1) / RL_TILE_ROWS;
  const Part part{&weight, tile_bytes(weight.format, weight.columns), count, column};
  run(job, part, tiles.begin, tiles.end, {rows.begin, rows.end});
}

}  // namespace ridgeline::RL_ISA
