// attend: append this step's k and v to the pages, then causal attention of q over the pages (never over the f32 input, so
// that a key means the same whether it came in this chunk or an earlier one).
// Idea: a row is (token, q head of one kv head's group). One work item = up to ITEM_ROWS rows x one kv head (x one split of
// RL_SPLIT_TOKENS keys when parallelism is scarce). Keys go by in steps of 64 at absolute positions: scores with lane = key
// (R rows share each K load), one softmax update a step, weighted values with lane = dimension (R rows share each V load).
// Promise 1: a row's own sequence of operations is fixed by positions alone:
//   score: fma over d = 0, 1, 2, ...; step: m, p, l, rescale only when the maximum grows (by 1 it would change nothing);
//   values: fma over keys in order; splits: merged in order by merge(), also when there is one or when they run in one item.
//   A key that a row may not see gets p = 0 exactly, and fma(0, v, acc) = acc; keys no row of the group sees are not read,
//   so stale bytes in pages never matter. Measured numbers: docs/findings.
#include "quantise.h"

namespace ridgeline::RL_ISA {
namespace {

constexpr int STEP_KEYS = 64, STEP_PAGES = STEP_KEYS / RL_BLOCK_TOKENS;
constexpr int ITEM_ROWS = 48, MAX_DIM = 256;
#if RL_LEVEL == 2
constexpr int GROUP_ROWS = 6, WIDE = 4;  // rows x vectors kept in registers
#elif RL_LEVEL == 1
constexpr int GROUP_ROWS = 6, WIDE = 2;
#else
constexpr int GROUP_ROWS = 4, WIDE = 2;
#endif
constexpr int VECTORS = STEP_KEYS / LANES;
constexpr float NOTHING = -__builtin_inff();

struct alignas(64) Item {
  // [row][stride]; the stride is not a power of two, or the rows would fight for the same sets of the first cache
  float q_rows[ITEM_ROWS * (MAX_DIM + 16)];      // scaled
  float values_rows[ITEM_ROWS * (MAX_DIM + 16)];  // of the current split
  float total_rows[ITEM_ROWS * (MAX_DIM + 16)];   // of the splits before
  float most[ITEM_ROWS], total_most[ITEM_ROWS];
  float total_sum[ITEM_ROWS];
  float sums[ITEM_ROWS][LANES];
  float scores[GROUP_ROWS][STEP_KEYS];
  int low[ITEM_ROWS], high[ITEM_ROWS];  // keys a row sees
  int rows, stride;

  float* q(int row) { return q_rows + row * stride; }
  float* values(int row) { return values_rows + row * stride; }
  float* total(int row) { return total_rows + row * stride; }
};

struct Pages {
  const uint8_t* k[STEP_PAGES];
  const uint8_t* v[STEP_PAGES];
};

uint8_t* page_of(const Step& step, const RlInstr& in, int sequence, int64_t page, int kv_head) {
  const RlPool& pool = step.pools[in.group];
  const RlBatch& batch = *step.batch;
  const int64_t row = static_cast<int64_t>(in.group) * batch.sequences + sequence;
  const int32_t block = batch.block_table[row * batch.table_stride + page];
  return pool.base + block * pool.block_stride + in.layer * pool.layer_stride + kv_head * pool.head_stride;
}

// Where this group keeps the batch's tokens: [tokens].
const int32_t* slots_of(const Step& step, const RlInstr& in) {
  const RlBatch& batch = *step.batch;
  return batch.slots ? batch.slots + static_cast<int64_t>(in.group) * batch.tokens : batch.positions;
}

void append(const Worker& worker, const Step& step, const RlInstr& in) {
  const int dim = in.head_dim;
  const int64_t width = static_cast<int64_t>(in.heads + 2 * in.kv_heads) * dim;
  const RlPool& pool = step.pools[in.group];
  const int32_t* slots = slots_of(step, in);
  int64_t begin, end;
  share(step.batch->tokens, worker, begin, end);
  for (int64_t token = begin; token < end; token++) {
    const int place = slots[token], slot = place % RL_BLOCK_TOKENS;
    const float* k = floats(step, in.in) + token * width + static_cast<int64_t>(in.heads) * dim;
    const float* v = k + static_cast<int64_t>(in.kv_heads) * dim;
    for (int h = 0; h < in.kv_heads; h++, k += dim, v += dim) {
      uint8_t* page = page_of(step, in, step.batch->sequence_of[token], place / RL_BLOCK_TOKENS, h);
      if (pool.storage == RL_KV_F32) {
        float* keys = reinterpret_cast<float*>(page) + slot;
        for (int d = 0; d < dim; d++) keys[d * RL_BLOCK_TOKENS] = k[d];
        memcpy(page + pool.page_bytes + static_cast<int64_t>(slot) * dim * 4, v, dim * 4);
      } else {
        uint16_t* keys = reinterpret_cast<uint16_t*>(page) + slot * 2;
        uint16_t* values = reinterpret_cast<uint16_t*>(page + pool.page_bytes) + slot * dim;
        for (int d = 0; d < dim; d++) keys[d / 2 * (2 * RL_BLOCK_TOKENS) + d % 2] = float_to_bf16(k[d]);
        for (int d = 0; d < dim; d++) values[d] = float_to_bf16(v[d]);
      }
    }
  }
}

// Scores of rows [first, first + R) against all 64 keys of the step into item.scores.
template <int R, bool BF16>
void score(Item& item, int first, const Pages& pages, int dim) {
  const float* q = item.q(first);
  const int stride = item.stride;
  for (int at = 0; at < VECTORS; at += WIDE) {
    const uint8_t* k[WIDE];
    F sum[R][WIDE] = {};
#pragma GCC unroll 4
    for (int j = 0; j < WIDE; j++) {
      const int key = (at + j) * LANES;
      k[j] = pages.k[key / RL_BLOCK_TOKENS] + key % RL_BLOCK_TOKENS * 4;  // 4 bytes a key in both storages
    }
    if constexpr (BF16) {
      for (int d = 0; d < dim; d += 2) {
        F even[WIDE], odd[WIDE];
#pragma GCC unroll 4
        for (int j = 0; j < WIDE; j++) load_pairs(k[j] + d * 32, even[j], odd[j]);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
          F a = splat(q[r * stride + d]), b = splat(q[r * stride + d + 1]);
#pragma GCC unroll 4
          for (int j = 0; j < WIDE; j++) sum[r][j] = fma(a, even[j], sum[r][j]);
#pragma GCC unroll 4
          for (int j = 0; j < WIDE; j++) sum[r][j] = fma(b, odd[j], sum[r][j]);
        }
      }
    } else {
      for (int d = 0; d < dim; d++) {
        F keys[WIDE];
#pragma GCC unroll 4
        for (int j = 0; j < WIDE; j++) keys[j] = load(reinterpret_cast<const float*>(k[j] + d * 64));
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
          F a = splat(q[r * stride + d]);
#pragma GCC unroll 4
          for (int j = 0; j < WIDE; j++) sum[r][j] = fma(a, keys[j], sum[r][j]);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int j = 0; j < WIDE; j++) store(item.scores[r] + (at + j) * LANES, sum[r][j]);
  }
}

// Scores -> weights of row `row`; keeps its maximum, sum and values consistent.
RL_INLINE void soften(Item& item, int row, float* scores, int key, int dim) {
  F x[VECTORS];
  F peak = splat(NOTHING);
#pragma GCC unroll 16
  for (int j = 0; j < VECTORS; j++) {
    x[j] = keep_range(load(scores + j * LANES), numbers() + splat_int(key + j * LANES), item.low[row], item.high[row],
                      splat(NOTHING));
    peak = max(peak, x[j]);
  }
  const float here = largest(peak), before = item.most[row];
  F sum = load(item.sums[row]);
  if (here > before) {
    const F shrink = exp(splat(before - here));
    item.most[row] = here;
    sum = sum * shrink;
    float* values = item.values(row);  // rows have room for whole vectors
    for (int d = 0; d < dim; d += LANES) store(values + d, load(values + d) * shrink);
  }
  // A row that has seen no key yet has most == -inf; -inf - -inf would be NaN.
  const F most = splat(item.most[row] == NOTHING ? 0.0f : item.most[row]);
#pragma GCC unroll 16
  for (int j = 0; j < VECTORS; j++) {
    F p = exp(x[j] - most);
    store(scores + j * LANES, p);
    sum = sum + p;
  }
  store(item.sums[row], sum);
}

// values[row][d ..] += weights . V over keys [begin, end] of the step. N: vectors; PART: the last one is partial.
template <int R, int N, bool BF16, bool PART>
void weigh(Item& item, int first, const Pages& pages, int begin, int end, int dim, int d) {
  F sum[R][N];
  float* values = item.values(first);
  const int stride = item.stride;
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int j = 0; j < N; j++) sum[r][j] = load(values + r * stride + d + j * LANES);
  for (int key = begin; key <= end; key++) {
    const uint8_t* page = pages.v[key / RL_BLOCK_TOKENS];
    const int64_t at = static_cast<int64_t>(key % RL_BLOCK_TOKENS) * dim + d;
    F v[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; j++) {
      if constexpr (BF16) {
        const uint16_t* from = reinterpret_cast<const uint16_t*>(page) + at + j * LANES;
        v[j] = PART ? load_bf16_part(from, dim - d) : load_bf16(from);
      } else {
        const float* from = reinterpret_cast<const float*>(page) + at + j * LANES;
        v[j] = PART ? load_part(from, dim - d) : load(from);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      F p = splat(item.scores[r][key]);
#pragma GCC unroll 4
      for (int j = 0; j < N; j++) sum[r][j] = fma(p, v[j], sum[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int j = 0; j < N; j++) store(values + r * stride + d + j * LANES, sum[r][j]);
}

template <int R, bool BF16>
void step_group(Item& item, int first, const Pages& pages, int key, int dim) {
  int low = item.low[first], high = item.high[first];
  for (int r = 1; r < R; r++) {
    low = item.low[first + r] < low ? item.low[first + r] : low;
    high = item.high[first + r] > high ? item.high[first + r] : high;
  }
  if (key > high || key + STEP_KEYS <= low) return;
  score<R, BF16>(item, first, pages, dim);
  for (int r = 0; r < R; r++) soften(item, first + r, item.scores[r], key, dim);
  const int begin = low > key ? low - key : 0, end = high - key < STEP_KEYS ? high - key : STEP_KEYS - 1;
  int d = 0;
  for (; d + WIDE * LANES <= dim; d += WIDE * LANES) weigh<R, WIDE, BF16, false>(item, first, pages, begin, end, dim, d);
  for (; d + LANES <= dim; d += LANES) weigh<R, 1, BF16, false>(item, first, pages, begin, end, dim, d);
  if (d < dim) weigh<R, 1, BF16, true>(item, first, pages, begin, end, dim, d);
}

template <bool BF16>
void step_rows(Item& item, const Pages& pages, int key, int dim) {
  typedef void (*Group)(Item&, int, const Pages&, int, int);
  constexpr Group groups[6] = {step_group<1, BF16>, step_group<2, BF16>, step_group<3, BF16>, step_group<4, BF16>,
                               GROUP_ROWS > 4 ? step_group<GROUP_ROWS - 1, BF16> : nullptr,
                               GROUP_ROWS > 4 ? step_group<GROUP_ROWS, BF16> : nullptr};
  for (int first = 0; first < item.rows; first += GROUP_ROWS) {
    const int left = item.rows - first;
    groups[(left < GROUP_ROWS ? left : GROUP_ROWS) - 1](item, first, pages, key, dim);
  }
}

// (most, sum, values) += (most', sum', values') of the next split. The one place where splits meet.
void merge(float& most, float& sum, float* values, float next_most, float next_sum, const float* next, int dim) {
  const float top = next_most > most ? next_most : most;
  if (top == NOTHING) return;
  const F keep = exp(splat(most - top)), take = exp(splat(next_most - top));
  most = top;
  sum = fma(splat(next_sum), take, splat(sum) * keep)[0];
  for (int d = 0; d < dim; d += LANES) store(values + d, fma(load(next + d), take, load(values + d) * keep));
}

struct Attend {
  const Step& step;
  const RlInstr& in;
  int ratio;         // q heads a kv head
  const int32_t* slots;
  int64_t splits;    // places of partial results a row has; 0: items run all splits themselves
  float* partials;   // [token][head][split][partial_floats]
  bool quant_early;  // groups of 32 columns lie inside heads
};

float* partial_of(const Attend& job, int64_t token, int head, int64_t split) {
  return job.partials + ((token * job.in.heads + head) * job.splits + split) * partial_floats(job.in.head_dim);
}

void emit(const Attend& job, int64_t token, int head, float sum, const float* values) {
  const int dim = job.in.head_dim;
  const int64_t width = static_cast<int64_t>(job.in.heads) * dim;
  float* row = floats(job.step, job.in.out) + token * width;
  float* out = row + static_cast<int64_t>(head) * dim;
  const float inverse = 1.0f / sum;
  for (int d = 0; d < dim; d++) out[d] = values[d] * inverse;
  if (job.quant_early)
    quantise(row, static_cast<int64_t>(head) * dim, static_cast<int64_t>(head + 1) * dim,
             quant_row(job.step, job.in.out_quant, width, token, job.step.batch->tokens));
}

// Rows [row, row + count) of (sequence, kv head) over splits [first_split, last_split).
void run_item(const Attend& job, Item& item, int sequence, int row, int count, int kv_head, int64_t split, bool all) {
  const RlInstr& in = job.in;
  const RlBatch& batch = *job.step.batch;
  const RlPool& pool = job.step.pools[in.group];
  const int dim = in.head_dim, start = batch.first_token[sequence];
  const int64_t width = static_cast<int64_t>(in.heads + 2 * in.kv_heads) * dim;
  int low = 0x7fffffff, high = -1;
  item.rows = count;
  for (int r = 0; r < count; r++) {
    const int token = start + (row + r) / job.ratio, head = kv_head * job.ratio + (row + r) % job.ratio;
    const float* q = floats(job.step, in.in) + token * width + static_cast<int64_t>(head) * dim;
    for (int d = 0; d < dim; d++) item.q(r)[d] = q[d] * in.scale;
    item.high[r] = job.slots[token];
    item.low[r] = in.window > 0 && item.high[r] >= in.window ? item.high[r] - in.window + 1 : 0;
    low = item.low[r] < low ? item.low[r] : low;
    high = item.high[r] > high ? item.high[r] : high;
    item.total_most[r] = NOTHING;
    item.total_sum[r] = 0.0f;
    memset(item.total(r), 0, sizeof(float) * round_up(dim, LANES));
  }
  if (!all && (split < low / RL_SPLIT_TOKENS || split > high / RL_SPLIT_TOKENS)) return;  // nobody will read it
  const int64_t first_split = all ? low / RL_SPLIT_TOKENS : split;
  const int64_t last_split = all ? high / RL_SPLIT_TOKENS : split;
  for (int64_t s = first_split; s <= last_split; s++) {
    for (int r = 0; r < count; r++) {
      item.most[r] = NOTHING;
      memset(item.sums[r], 0, sizeof item.sums[r]);
      memset(item.values(r), 0, sizeof(float) * round_up(dim, LANES));
    }
    for (int key = static_cast<int>(s * RL_SPLIT_TOKENS); key < (s + 1) * RL_SPLIT_TOKENS && key <= high;
         key += STEP_KEYS) {
      if (key + STEP_KEYS <= low) continue;
      Pages pages;
      const uint8_t* any = nullptr;
      for (int j = 0; j < STEP_PAGES; j++) {
        const int page_key = key + j * RL_BLOCK_TOKENS;
        const bool seen = page_key <= high && page_key + RL_BLOCK_TOKENS > low;
        pages.k[j] = seen ? page_of(job.step, in, sequence, page_key / RL_BLOCK_TOKENS, kv_head) : nullptr;
        if (seen) any = pages.k[j];
      }
      for (int j = 0; j < STEP_PAGES; j++) {
        if (!pages.k[j]) pages.k[j] = any;  // scored for nothing, then masked
        pages.v[j] = pages.k[j] + pool.page_bytes;
      }
      (pool.storage == RL_KV_BF16 ? step_rows<true> : step_rows<false>)(item, pages, key, dim);
    }
    for (int r = 0; r < count; r++) {
      const float sum_here = sum(load(item.sums[r]));
      if (all) {
        merge(item.total_most[r], item.total_sum[r], item.total(r), item.most[r], sum_here, item.values(r), dim);
        continue;
      }
      float* partial =
          partial_of(job, start + (row + r) / job.ratio, kv_head * job.ratio + (row + r) % job.ratio, split);
      partial[0] = item.most[r];
      partial[1] = sum_here;
      memcpy(partial + 16, item.values(r), sizeof(float) * round_up(dim, LANES));
    }
  }
  if (!all) return;
  for (int r = 0; r < count; r++)
    emit(job, start + (row + r) / job.ratio, kv_head * job.ratio + (row + r) % job.ratio, item.total_sum[r],
         item.total(r));
}

void merge_rows(const Attend& job, const Worker& worker, Item& item) {
  const RlInstr& in = job.in;
  int64_t begin, end;
  share(static_cast<int64_t>(job.step.batch->tokens) * in.heads, worker, begin, end);
  for (int64_t i = begin; i < end; i++) {
    const int64_t token = i / in.heads;
    const int head = static_cast<int>(i % in.heads), high = job.slots[token];
    const int low = in.window > 0 && high >= in.window ? high - in.window + 1 : 0;
    float most = NOTHING, total = 0.0f;
    memset(item.total(0), 0, sizeof(float) * round_up(in.head_dim, LANES));
    for (int64_t s = low / RL_SPLIT_TOKENS; s <= high / RL_SPLIT_TOKENS; s++) {
      const float* partial = partial_of(job, token, head, s);
      merge(most, total, item.total(0), partial[0], partial[1], partial + 16, in.head_dim);
    }
    emit(job, token, head, total, item.total(0));
  }
}

}  // namespace

void attend(Worker& worker, const Step& step, const RlInstr& in) {
  append(worker, step, in);
  barrier(worker);
  const RlBatch& batch = *step.batch;
  Attend job{step, in, in.heads / in.kv_heads, slots_of(step, in), 0, reinterpret_cast<float*>(step.scratch),
             in.out_quant >= 0 && in.head_dim % RL_GROUP == 0};
  // One pass over the sequences decides, alike on every thread, whether splits run as items of their own.
  int64_t items = 0;
  int longest = 0;
  for (int s = 0; s < batch.sequences; s++) {
    const int rows = (batch.first_token[s + 1] - batch.first_token[s]) * job.ratio;
    items += static_cast<int64_t>((rows + ITEM_ROWS - 1) / ITEM_ROWS) * in.kv_heads;
  }
  for (int t = 0; t < batch.tokens; t++) longest = job.slots[t] > longest ? job.slots[t] : longest;
  const int64_t splits = longest / RL_SPLIT_TOKENS + 1;
  if (splits > 1 && worker.threads > 1 && items < 4 * worker.threads &&
      static_cast<int64_t>(batch.tokens) * in.heads * splits * partial_floats(in.head_dim) * 4 <= step.scratch_bytes)
    job.splits = splits;
  Item item;
  item.stride = static_cast<int>(round_up(in.head_dim, 16)) + 16;
  int64_t ticket = take(worker), base = 0;
  for (int s = 0; s < batch.sequences; s++) {
    const int tokens = batch.first_token[s + 1] - batch.first_token[s], rows = tokens * job.ratio;
    if (tokens == 0) continue;
    const int64_t blocks = (rows + ITEM_ROWS - 1) / ITEM_ROWS;
    const int64_t each = job.splits ? job.splits : 1;
    for (; ticket < base + blocks * in.kv_heads * each; ticket = take(worker)) {
      const int64_t index = ticket - base, split = index % each;
      const int64_t block = blocks - 1 - index / each / in.kv_heads;  // the longest contexts first
      const int kv_head = static_cast<int>(index / each % in.kv_heads);
      const int row = static_cast<int>(block * ITEM_ROWS), count = rows - row < ITEM_ROWS ? rows - row : ITEM_ROWS;
      run_item(job, item, s, row, count, kv_head, split, job.splits == 0);
    }
    base += blocks * in.kv_heads * each;
  }
  if (job.splits) {
    barrier(worker);
    merge_rows(job, worker, item);
  }
  if (in.out_quant < 0 || job.quant_early) return;
  barrier(worker);
  const int64_t width = static_cast<int64_t>(in.heads) * in.head_dim;
  int64_t begin, end;
  share(batch.tokens, worker, begin, end);
  for (int64_t row = begin; row < end; row++)
    quantise(floats(step, in.out) + row * width, 0, width, quant_row(step, in.out_quant, width, row, batch.tokens));
}

}  // namespace ridgeline::RL_ISA
