// Attention over int8 pages in whole numbers (AVX-512 VNNI). q becomes 16 bits with one scale a row, K and V are the bytes
// the pages hold, and a row's weights become 15 bits of the step's largest weight x value scale. A dot product then takes
// half of what floats take, and rounding stays far below that of the pages' own 8 bits (docs/findings/cpu-attention.md).
// Promise 1: sums of whole numbers have no order; all else is a function of a row and of the keys it sees in one step of 64.
// Pairs: K dimensions (0, 2) and (1, 3) of every four; V tokens i and 16 + i of every 32. Sums fit 32 bits up to MAX_DIM.
// Refused: pools that keep mass, whose second pass needs the weights as they were.
#pragma once
#include "attend_rows.h"

namespace ridgeline {
namespace {

constexpr float Q_LEVELS = 32767.0f, P_LEVELS = 32767.0f, LOG2_E = 1.44269504088896341f;

RL_INLINE I pair_halves(I low, I high) {  // lower 16 bits of each
  return (I)_mm512_mask_blend_epi16(0xaaaaaaaa, (__m512i)low, (__m512i)(high << 16));
}

struct WholePages {
  static constexpr int DIMS = 2;  // pairs in a unit
  static constexpr bool SCALED = true, SHIFTED = false, WHOLE = true;
  RL_INLINE I part(I unit, int i) {
    const __m512i halves = i ? (__m512i)unit : _mm512_slli_epi16((__m512i)unit, 8);
    return (I)_mm512_srai_epi16(halves, 8);
  }
  // Tokens i and 16 + i of `block`, dimensions d .. d + 15.
  RL_INLINE I values(const Pages& pages, int block, int i, int d, int dim) {
    const int64_t at = i * static_cast<int64_t>(Int8Pages::row_bytes(dim)) + d;
    const __mmask16 lanes = dim - d < LANES ? first(dim - d) : 0xffff;
    const __m128i low = _mm_maskz_loadu_epi8(lanes, pages.v[2 * block] + at);
    const __m128i high = _mm_maskz_loadu_epi8(lanes, pages.v[2 * block + 1] + at);
    return pair_halves((I)_mm512_cvtepi8_epi32(low), (I)_mm512_cvtepi8_epi32(high));
  }
  RL_INLINE F value_scales(const Pages& pages, int page, int dim) {
    return _mm512_i32gather_ps((__m512i)(numbers() * Int8Pages::row_bytes(dim)), pages.v[page] + dim, 1);
  }
};

// The same, unfolded once for many rows: K pages [pair][16 tokens] then scales; v[2 * block]: [i][dimension] pairs; v[1]:
// scales of the 64 values.
struct WideWholePages {
  static constexpr int DIMS = 1;
  static constexpr bool SCALED = true, SHIFTED = false, WHOLE = true;
  RL_INLINE I part(I unit, int) { return unit; }
  RL_INLINE I values(const Pages& pages, int block, int i, int d, int dim) {
    return load_int(pages.v[2 * block] + (i * round_up(dim, LANES) + d) * 4);
  }
  RL_INLINE F value_scales(const Pages& pages, int page, int) {
    return load(reinterpret_cast<const float*>(pages.v[1]) + page * LANES);
  }
};

static inline void widen_whole(const Pages& from, int dim, WideStep& to, Pages& wide) {
  for (int page = 0; page < STEP_PAGES; page++) {
    wide.k[page] = to.k[page];
    wide.v[page] = reinterpret_cast<const uint8_t*>(to.v[page]);
    const uint8_t* unit = from.k[page];
    uint8_t* pairs = to.k[page];
    for (int d = 0; d < dim; d += 4, unit += UNIT_STRIDE, pairs += 2 * UNIT_STRIDE) {
      const I whole = load_int(unit);
      store(reinterpret_cast<float*>(pairs), bits(WholePages::part(whole, 0)));
      store(reinterpret_cast<float*>(pairs + UNIT_STRIDE), bits(WholePages::part(whole, 1)));
    }
    store(reinterpret_cast<float*>(pairs), bits(load_int(unit)));
    store(to.v[1] + page * LANES, WholePages::value_scales(from, page, dim));
  }
  for (int block = 0; block < STEP_PAGES / 2; block++) {
    float* pairs = to.v[2 * block];
    for (int i = 0; i < RL_BLOCK_TOKENS; i++)
      for (int d = 0; d < dim; d += LANES, pairs += LANES) store(pairs, bits(WholePages::values(from, block, i, d, dim)));
  }
}

// Row r of a query, floats -> pairs, where it lies; its scale goes into sums[r]. NaN, infinite or huge rows come out as NaN.
static inline void round_query(Query& query, int r, int stride, int dim) {
  float* row = query.rows + r * stride;
  F most = splat(0.0f), total = splat(0.0f);
  for (int d = 0; d < dim; d += LANES) {
    const F x = abs(load_part(row + d, dim - d < LANES ? dim - d : LANES));
    most = max(most, x);
    total = total + x;
  }
  const float scale = largest(most) / Q_LEVELS;
  query.sums[r] = sum(total) < 1e38f ? scale : __builtin_nanf("");
  const F inverse = splat(scale > 1e-30f ? 1.0f / scale : 0.0f);
  for (int d = 0; d < dim; d += LANES) {
    const I whole = round_int(load_part(row + d, dim - d < LANES ? dim - d : LANES) * inverse);
    const I behind = (I)_mm512_shuffle_epi32((__m512i)whole, _MM_PERM_DCDC);
    const __m512i pairs = _mm512_maskz_compress_epi32(0x3333, (__m512i)pair_halves(whole, behind));
    _mm256_storeu_si256((__m256i*)(row + d / 2), _mm512_castsi512_si256(pairs));
  }
}

// 2^x of four vectors, x <= 0: relative error below 3e-6, exactly 1 at 0, nothing smaller than 2^-100; NaN stays NaN.
RL_INLINE void power_of_two(F (&x)[4]) {
  constexpr float TERMS[] = {0.05590642616f, 0.2402409911f, 0.6931241751f, 1.0f};
  const F magic = splat(12582912.0f);  // 1.5 * 2^23: its last bits count
  F shifted[4], p[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) x[i] = max(splat(-100.0f), x[i]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) shifted[i] = x[i] + magic;
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) x[i] = x[i] - (shifted[i] - magic);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) p[i] = splat(0.009582852945f);
#pragma GCC unroll 4
  for (const float term : TERMS)
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) p[i] = fma(p[i], x[i], splat(term));
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) x[i] = bits((I)p[i] + ((I)shifted[i] << 23));
}

// Scores -> pairs of rounded weights (the first half of a row of item.scores), and what the step's sums and values count
// for: item.shrink for what was before, item.take for a unit of this step's. IS_PART: some of the keys may be unseen, which
// scores of NOTHING say. unit: value scales; for rows that see everything already times P_LEVELS / their largest.
template <bool IS_PART>
RL_INLINE void soften_row(Item& item, int row, float peak, float grow, float most, const F (&unit)[VECTORS]) {
  float* scores = item.scores[row];
  F p[VECTORS], levels[VECTORS];
  __mmask16 sees[VECTORS];
#pragma GCC unroll 4
  for (int j = 0; j < VECTORS; j++) {
    p[j] = load(scores + j * LANES);
    levels[j] = unit[j];
  }
  if constexpr (IS_PART) {
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) {
      sees[j] = _mm512_cmp_ps_mask(p[j], splat(NOTHING), _CMP_NEQ_UQ);
      levels[j] = _mm512_maskz_mov_ps(sees[j], unit[j]);
    }
    most = largest(max(max(levels[0], levels[1]), max(levels[2], levels[3])));
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) levels[j] = levels[j] * splat(most > 0.0f ? P_LEVELS / most : 0.0f);
    peak = peak == NOTHING ? 0.0f : peak;
  }
  const F from = splat(-LOG2_E * peak);
#pragma GCC unroll 4
  for (int j = 0; j < VECTORS; j++) p[j] = fma(p[j], splat(LOG2_E), from);
  power_of_two(p);
  if constexpr (IS_PART) {
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) p[j] = _mm512_maskz_mov_ps(sees[j], p[j]);
  }
  const F sum = (p[0] + p[1]) + (p[2] + p[3]);
  store(item.sums[row], fma(sum, splat(grow), load(item.sums[row]) * splat(item.shrink[row])));
  item.take[row] = grow * (most / P_LEVELS);
#pragma GCC unroll 4
  for (int j = 0; j < VECTORS; j++) p[j] = fma(p[j], levels[j], splat(12582912.0f));
#pragma GCC unroll 2
  for (int block = 0; block < 2; block++)
    store(scores + block * LANES, bits(pair_halves((I)p[2 * block], (I)p[2 * block + 1])));
}

template <int R, class S>
void soften_whole(Item& item, int first, const Pages& pages, int key, int dim) {
  static_assert(VECTORS == 4, "a step is four vectors of keys");
  const Seen seen = seen_by<R>(item, first, key);
  if (seen.nothing()) return;
  alignas(64) float peak[LANES] = {}, grow[LANES];
  bool is_part = seen.has_sinks;
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) is_part = is_part || item.low[first + r] > key || item.high[first + r] < key + STEP_KEYS - 1;
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    const int row = first + r, low = seen.has_sinks ? 0 : item.low[row], high = item.high[row];
    float* scores = item.scores[row];
    F part[VECTORS];
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j++) {
      part[j] = load(scores + j * LANES);
      if (__builtin_expect(!is_part, 1)) continue;
      part[j] = keep_range(part[j], numbers() + splat_int(key + j * LANES), low, high, splat(NOTHING));
      store(scores + j * LANES, part[j]);
    }
    peak[r] = largest(max(max(part[0], part[1]), max(part[2], part[3])));
  }
  const F before = load_part(item.most + first, R), here = load(peak), top = max(before, here);
  const F finite = max(splat(-3e38f), top);  // -inf - -inf would be NaN
  F change[2] = {before - finite, here - finite}, unit[VECTORS];
  exp<2, true>(change);
  store_part(item.most + first, top, R);
  store_part(item.shrink + first, change[0], R);
  store(grow, change[1]);
#pragma GCC unroll 4
  for (int j = 0; j < VECTORS; j++) unit[j] = S::value_scales(pages, j, dim);
  if (is_part) {
    for (int r = 0; r < R; r++) soften_row<true>(item, first + r, peak[r], grow[r], 0.0f, unit);
    return;
  }
  const float most = largest(max(max(unit[0], unit[1]), max(unit[2], unit[3])));
  const F levels = splat(most > 0.0f ? P_LEVELS / most : 0.0f);
#pragma GCC unroll 4
  for (int j = 0; j < VECTORS; j++) unit[j] = unit[j] * levels;
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) soften_row<false>(item, first + r, peak[r], grow[r], most, unit);
}

// values[row][d ..] = values * shrink + take * (weights . V) over the keys up to `end` of the step.
template <int R, int N, class S>
void weigh_whole(Item& item, int first, const Pages& pages, int end, int dim, int d) {
  I sum[R][N] = {};
  const int64_t bytes = Int8Pages::row_bytes(dim);
  for (int block = 0; block * 2 * RL_BLOCK_TOKENS <= end; block++) {
    const int last = end - block * 2 * RL_BLOCK_TOKENS;
    for (int i = 0; i < RL_BLOCK_TOKENS && i <= last; i++) {
      if constexpr (R < GROUP_ROWS) {
        fetch(item.next.v[2 * block] + i * bytes + d, N * LANES);
        fetch(item.next.v[2 * block + 1] + i * bytes + d, N * LANES);
      }
      I v[N];
#pragma GCC unroll 4
      for (int j = 0; j < N; j++) v[j] = S::values(pages, block, i, d + j * LANES, dim);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const float pair = item.scores[first + r][block * RL_BLOCK_TOKENS + i];
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) add_product(pair, v[j], sum[r][j]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    const F shrink = splat(item.shrink[first + r]), take = splat(item.take[first + r]);
#pragma GCC unroll 4
    for (int j = 0; j < N; j++) {
      float* values = item.values(first + r) + d + j * LANES;
      store(values, fma(to_float(sum[r][j]), take, load(values) * shrink));
    }
  }
}

template <int R, class S>
void weigh_whole_group(Item& item, int first, const Pages& pages, int key, int dim) {
  const Seen seen = seen_by<R>(item, first, key);
  if (seen.nothing()) return;
  int d = 0;
  for (; d + WIDE * LANES <= dim; d += WIDE * LANES) weigh_whole<R, WIDE, S>(item, first, pages, seen.end, dim, d);
  for (; d < dim; d += LANES) weigh_whole<R, 1, S>(item, first, pages, seen.end, dim, d);
}

}  // namespace
}  // namespace ridgeline
