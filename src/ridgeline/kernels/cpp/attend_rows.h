// The arithmetic of attention: rows (queries) against 64 keys at a time. Scores with lane = key (R rows share each K load),
// one softmax update a step, weighted values with lane = dimension (R rows share each V load).
// Promise 1: a row's own sequence of operations is fixed by the places of the keys it sees:
//   score: fma over d = 0, 1, 2, ...; step: m, p, l, rescale only when the maximum grows by more than SLACK;
//   values: fma over keys in order. A key that a row may not see gets p = 0 exactly, and fma(0, v, acc) = acc; keys no row
//   of the group sees are not read, so stale bytes in pages never matter. Measured numbers: docs/findings.
#pragma once
#include "pages.h"

namespace ridgeline {
namespace {

constexpr int ITEM_ROWS = 96;
#if RL_LEVEL == 2
constexpr int GROUP_ROWS = 6, WIDE = 4;  // rows x vectors kept in registers
#elif RL_LEVEL == 1
constexpr int GROUP_ROWS = 6, WIDE = 2;
#else
constexpr int GROUP_ROWS = 4, WIDE = 2;
#endif
constexpr int WIDE_ROWS = 2 * GROUP_ROWS + 1;  // from so many rows on, a step's keys are widened once for all of them
constexpr int PAGE_ROWS = 13;  // fewer of a sequence are bound by reading its pages (13: WIDE_ROWS of the widest bodies)
// Fetched for later at most: a quarter of the second cache. A line in two: neighbours come along.
constexpr int FETCH_BYTES = 256 << 10, LIST_PAGES = 128, FETCH_STRIDE = 128;
constexpr int VECTORS = STEP_KEYS / LANES;
constexpr float NOTHING = -__builtin_inff(), SLACK = 8.0f;
constexpr int ROW_STRIDE = MAX_DIM + 16;  // not a power of two, or rows would fight for the same sets of the first cache

struct Query {
  float rows[ITEM_ROWS * ROW_STRIDE];  // [row][Item::stride], scaled
  float sums[ITEM_ROWS];               // over dimensions, of shifted storages; scales, where rows are whole numbers
};

struct alignas(64) Item {
  Query q, sink_q;                      // sink_q: as turned for the first `sinks` keys
  float values_rows[ITEM_ROWS * ROW_STRIDE];  // of the current split
  float total_rows[ITEM_ROWS * ROW_STRIDE];   // of the splits before
  float most[ITEM_ROWS], total_most[ITEM_ROWS];
  float total_sum[ITEM_ROWS];
  float sums[ITEM_ROWS][LANES];
  float shrink[ITEM_ROWS], take[ITEM_ROWS];  // attend_integers.h
  alignas(64) float scores[ITEM_ROWS][STEP_KEYS], sink_scores[GROUP_ROWS][STEP_KEYS];
  int low[ITEM_ROWS], high[ITEM_ROWS];  // keys a row sees, beside the sinks
  int rows, stride, sinks, block;  // block: tokens of a closed one (attend_closed.h)
  Pages next;                             // of the 64 keys after these; where there are none: these
  const uint8_t *ahead, *ahead_end;       // bytes that are read later; full groups fetch them as they go
  int ahead_step;                         // 0: nothing is read later
  int near, list_at, list_end;            // pages of `next` and of `list` that are still to be fetched
  const uint8_t* list[LIST_PAGES];
  alignas(64) uint8_t branch[2][STEP_KEYS * MAX_ROW_BYTES];  // K and V pages of one branch of a tree
  WideStep wide;

  float* values(int row) { return values_rows + row * stride; }
  float* total(int row) { return total_rows + row * stride; }
};

RL_INLINE void add_product(float a, F b, F& sum) { sum = fma(splat(a), b, sum); }
#if RL_LEVEL == 2
RL_INLINE void add_product(float a, I b, I& sum) {  // of 16 bits, two in each lane; a: the bits of two
  sum = (I)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)splat(a), (__m512i)b);
}
#endif

// Reading pages from memory must go on while the arithmetic does, or their times add up. Groups that are not full (few
// rows: most of the time is reading) fetch what lies at the same place of the next step; full ones what is listed.
RL_INLINE void fetch(const uint8_t* at) { __builtin_prefetch(at, 0, 2); }
RL_INLINE void fetch(const uint8_t* at, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) fetch(at + i);
}

// Scores of R rows of `query` from row `first` on against all 64 keys of the step.
template <int R, class S>
void score(Item& item, const Query& query, int first, const Pages& pages, int dim, float (*scores)[STEP_KEYS]) {
  const int stride = item.stride;
  const uint8_t* ahead = item.ahead;
  const int ahead_step = item.ahead_step;
  typedef decltype(S::part(I{}, 0)) Part;  // F, or pairs of whole numbers
  const int parts = S::WHOLE ? dim / 2 : dim;
  const float* q = query.rows + first * stride;
  for (int at = 0; at < VECTORS; at += WIDE) {
    const uint8_t *k[WIDE], *next[WIDE];
    Part sum[R][WIDE] = {};
#pragma GCC unroll 4
    for (int j = 0; j < WIDE; j++) {
      const int key = (at + j) * LANES;
      k[j] = pages.k[key / RL_BLOCK_TOKENS] + key % RL_BLOCK_TOKENS * 4;
      next[j] = item.next.k[key / RL_BLOCK_TOKENS] + key % RL_BLOCK_TOKENS * 4;
    }
#pragma GCC unroll 2
    for (int d = 0; d < parts; d += S::DIMS) {
      I unit[WIDE];
#pragma GCC unroll 4
      for (int j = 0; j < WIDE; j++) {
        unit[j] = load_int(k[j]);
        k[j] += UNIT_STRIDE;
        if constexpr (R < GROUP_ROWS) {
          fetch(next[j]);
          next[j] += UNIT_STRIDE;
        }
      }
      if constexpr (R == GROUP_ROWS) {
        if (d % 2 == 0) {
          fetch(ahead);
          ahead += ahead_step;
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < S::DIMS; i++) {
        Part keys[WIDE];
#pragma GCC unroll 4
        for (int j = 0; j < WIDE; j++) keys[j] = S::part(unit[j], i);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
          const float a = q[r * stride + d + i];
#pragma GCC unroll 4
          for (int j = 0; j < WIDE; j++) add_product(a, keys[j], sum[r][j]);
        }
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < WIDE; j++) {  // k[j] now points to the keys' scales
      F scale = splat(1.0f), low = splat(0.0f);
      if constexpr (S::SHIFTED)
        load_pairs(k[j], scale, low);
      else if constexpr (S::SCALED)
        scale = load(reinterpret_cast<const float*>(k[j]));
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        F result;
        if constexpr (S::WHOLE)
          result = to_float(sum[r][j]) * scale * splat(query.sums[first + r]);
        else if constexpr (S::SHIFTED)
          result = fma(sum[r][j], scale, splat(query.sums[first + r]) * low);
        else
          result = S::SCALED ? sum[r][j] * scale : sum[r][j];
        store(scores[r] + (at + j) * LANES, result);
      }
    }
  }
  item.ahead = ahead;
}

// Scores of a step that holds sinks: their lanes from the turned query, and whatever a row does not see becomes NOTHING.
RL_INLINE void put_sinks(const Item& item, int row, int key, float* scores, const float* sink_scores) {
  const int high = item.high[row], low = item.low[row] > item.sinks ? item.low[row] : item.sinks;
  const int last = item.sinks - 1 < high ? item.sinks - 1 : high;
  for (int j = 0; j < VECTORS; j++) {
    const I number = numbers() + splat_int(key + j * LANES);
    const F own = keep_range(load(scores + j * LANES), number, low, high, splat(NOTHING));
    store(scores + j * LANES, max(own, keep_range(load(sink_scores + j * LANES), number, 0, last, splat(NOTHING))));
  }
}

// Scores -> weights of R rows from `first` on, each of which sees its keys low .. high; keeps their maxima, sums and values
// consistent. item.most is a row's largest score when it was last looked up: it is looked up anew only where a score is
// larger by SLACK, so that sums and values are seldom rescaled (weights up to e^8 lose nothing in f32).
template <int R>
RL_INLINE void soften(Item& item, int first, int key, int dim, bool has_low) {
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    const int row = first + r;
    float* scores = item.scores[row];
    const int low = has_low ? item.low[row] : 0, high = item.high[row];
    if (low > key || high < key + STEP_KEYS - 1) {
#pragma GCC unroll 16
      for (int j = 0; j < VECTORS; j++) {
        const I number = numbers() + splat_int(key + j * LANES);
        store(scores + j * LANES, keep_range(load(scores + j * LANES), number, low, high, splat(NOTHING)));
      }
    }
    F peak = load(scores);
#pragma GCC unroll 16
    for (int j = 1; j < VECTORS; j++) peak = max(peak, load(scores + j * LANES));
    const float before = item.most[row];
    if (!any_above(peak, before + SLACK)) continue;
    const float here = largest(peak);
    item.most[row] = here;
    if (before == NOTHING) continue;  // sums and values are still zero
    const F shrink = exp(splat(before - here));
    store(item.sums[row], load(item.sums[row]) * shrink);
    float* values = item.values(row);  // rows have room for whole vectors
    for (int d = 0; d < dim; d += LANES) store(values + d, load(values + d) * shrink);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    const int row = first + r;
    // A row that has seen no key yet has most == -inf; -inf - -inf would be NaN.
    const F most = splat(item.most[row] == NOTHING ? 0.0f : item.most[row]);
    F sum = load(item.sums[row]);
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; j += 4) {
      float* scores = item.scores[row] + j * LANES;
      F p[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) p[i] = load(scores + i * LANES) - most;
      exp<4, true>(p);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        store(scores + i * LANES, p[i]);
        sum = sum + p[i];
      }
    }
    store(item.sums[row], sum);
  }
}

// values[row][d ..] += weights . V over keys [begin, end] of the step. N: vectors; PART: the last one is partial.
template <int R, int N, class S, bool PART>
void weigh(Item& item, int first, const Pages& pages, int begin, int end, int dim, int d) {
  F sum[R][N];
  float* values = item.values(first);
  const int stride = item.stride;
  const int64_t bytes = S::row_bytes(dim), wide = N * LANES * bytes / dim, offset = d * bytes / dim;
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int j = 0; j < N; j++) sum[r][j] = load(values + r * stride + d + j * LANES);
  for (int key = begin; key <= end; key++) {
    const int64_t at = key % RL_BLOCK_TOKENS * bytes;
    const uint8_t* row = pages.v[key / RL_BLOCK_TOKENS] + at;
    if constexpr (R < GROUP_ROWS) fetch(item.next.v[key / RL_BLOCK_TOKENS] + at + offset, wide);
    F v[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; j++) v[j] = PART ? S::last_values(row, d, dim) : S::values(row, d + j * LANES, dim);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      F p = splat(item.scores[first + r][key]);
#pragma GCC unroll 4
      for (int j = 0; j < N; j++) sum[r][j] = fma(p, v[j], sum[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int j = 0; j < N; j++) store(values + r * stride + d + j * LANES, sum[r][j]);
}

template <int R, class S>
void weigh_all(Item& item, int first, const Pages& pages, int begin, int end, int dim) {
  int d = 0;
  for (; d + WIDE * LANES <= dim; d += WIDE * LANES) weigh<R, WIDE, S, false>(item, first, pages, begin, end, dim, d);
  for (; d + LANES <= dim; d += LANES) weigh<R, 1, S, false>(item, first, pages, begin, end, dim, d);
  if (d < dim) weigh<R, 1, S, true>(item, first, pages, begin, end, dim, d);
}

// Keys [begin, end] of the step from `key` on that some of R rows see beside the sinks; empty: neither those nor sinks.
struct Seen {
  int begin, end;
  bool has_sinks;

  bool nothing() const { return end < begin && !has_sinks; }
};

template <int R>
RL_INLINE Seen seen_by(const Item& item, int first, int key) {
  int low = item.low[first], high = item.high[first];
#pragma GCC unroll 8
  for (int r = 1; r < R; r++) {
    low = item.low[first + r] < low ? item.low[first + r] : low;
    high = item.high[first + r] > high ? item.high[first + r] : high;
  }
  const int begin = low > key ? low - key : 0, end = high - key < STEP_KEYS ? high - key : STEP_KEYS - 1;
  return {begin, end, key < item.sinks && high >= key};
}

// One step of 64 keys from `key` on for R rows, in three stages, so that K and then V stay in the first cache while all
// rows of an item pass by.
template <int R, class S>
void score_group(Item& item, int first, const Pages& pages, int key, int dim) {
  const Seen seen = seen_by<R>(item, first, key);
  if (seen.nothing()) return;
  score<R, S>(item, item.q, first, pages, dim, item.scores + first);
  if (!seen.has_sinks) return;
  score<R, S>(item, item.sink_q, first, pages, dim, item.sink_scores);
  for (int r = 0; r < R; r++) put_sinks(item, first + r, key, item.scores[first + r], item.sink_scores[r]);
}

template <int R>
void soften_group(Item& item, int first, const Pages&, int key, int dim) {
  const Seen seen = seen_by<R>(item, first, key);
  if (!seen.nothing()) soften<R>(item, first, key, dim, !seen.has_sinks);
}

template <int R, class S>
void weigh_group(Item& item, int first, const Pages& pages, int key, int dim) {
  Seen seen = seen_by<R>(item, first, key);
  if (seen.nothing()) return;
  if (seen.has_sinks) {
    const int last = item.sinks - 1 - key < seen.end ? item.sinks - 1 - key : seen.end;
    weigh_all<R, S>(item, first, pages, 0, last, dim);
    seen.begin = seen.begin > last ? seen.begin : last + 1;
  }
  weigh_all<R, S>(item, first, pages, seen.begin, seen.end, dim);
}

// Weights of R rows whose maximum and sum are known (item.most, item.total_sum) into item.scores.
template <int R, class S>
void weigh_again(Item& item, int first, const Pages& pages, int key, int dim) {
  score<R, S>(item, item.q, first, pages, dim, item.scores + first);
  for (int r = 0; r < R; r++) {
    const F most = splat(item.most[first + r]), inverse = splat(1.0f / item.total_sum[first + r]);
    for (int j = 0; j < VECTORS; j++) {
      float* at = item.scores[first + r] + j * LANES;
      const I number = numbers() + splat_int(key + j * LANES);
      store(at, exp(keep_range(load(at), number, item.low[first + r], item.high[first + r], splat(NOTHING)) - most) *
                    inverse);
    }
  }
}

}  // namespace
}  // namespace ridgeline
